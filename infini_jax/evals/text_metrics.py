"""How close a text that a model says is to its reference: ROUGE, the F1 of words, METEOR. Each is 0 to 1, 1 for the same text.

ROUGE-1, -2 and -L (Lin 2004) are the F-measures of the package rouge-score with stems, as BookSum's followers report them.
F1 is that of dialogue papers (ParlAI; SQuAD's normalization): words in lower case without punctuation and articles.
METEOR (Banerjee & Lavie 2005) is NLTK's.
DEVIATION: METEOR matches words and stems but no synonyms, which would take a download of WordNet: it is somewhat lower.
"""

import collections
import functools
import importlib.util
import re
import string
from collections.abc import Iterator, Sequence
from typing import Any

from infini_jax.errors import installs, require

METRICS = ("rouge1", "rouge2", "rougeL", "f1", "meteor")
ROUGES = METRICS[:3]
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def require_packages() -> None:
    """Checks that the packages of the metrics are installed: raises `ConfigError` where one is missing."""
    for package in ("rouge_score", "nltk"):
        is_here = importlib.util.find_spec(package) is not None
        require(is_here, "task", f"{package} is not installed and texts are scored by it", installs("summaries"))


def scores(said: str, reference: str) -> dict[str, float]:
    """Each of `METRICS` of a text against its reference."""
    return {**rouge(said, reference), "f1": word_f1(said, reference), "meteor": meteor(said, reference)}


@functools.cache
def scorer() -> Any:
    """The scorer of rouge-score, which takes a second to load."""
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(list(ROUGES), use_stemmer=True)


def rouge(said: str, reference: str) -> dict[str, float]:
    """The F-measures of ROUGE-1, ROUGE-2 and ROUGE-L."""
    return {name: float(found.fmeasure) for name, found in scorer().score(reference, said).items()}


def normalized(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and articles."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def word_f1(said: str, reference: str) -> float:
    """The harmonic mean of precision and recall of words, each counted as often as both texts have it; 0 without any."""
    ours, theirs = collections.Counter(normalized(said)), collections.Counter(normalized(reference))
    common = (ours & theirs).total()
    return 2 * common / (ours.total() + theirs.total()) if common else 0.0


class NoSynonyms:
    """A WordNet that knows no word."""

    def synsets(self, word: str) -> Sequence[Any]:
        """No set of synonyms."""
        del word
        return ()


def meteor(said: str, reference: str) -> float:
    """METEOR by words in lower case and their stems; punctuation marks are words of their own."""
    from nltk.translate.meteor_score import single_meteor_score

    wordnet: Any = NoSynonyms()
    return float(single_meteor_score(list(words_and_marks(reference)), list(words_and_marks(said)), wordnet=wordnet))


def words_and_marks(text: str) -> Iterator[str]:
    """The words and punctuation marks of a text, in order."""
    return (found.group() for found in re.finditer(r"\w+|[^\w\s]", text))
