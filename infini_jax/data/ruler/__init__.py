"""RULER (Hsieh et al. 2024, arXiv 2404.06654): thirteen tasks, by the definitions and templates of its published generators.

A length counts the prompt and the tokens that a model says, as in RULER; the prompt holds the most units that fit.
DEVIATION: essays are text of any corpus, and words are made up (`infini_jax.data.words`), because neither the essays nor the
word lists of the original are part of this package. Sentences end at ".", "!" and "?". Every example is drawn afresh, also
where the original shuffles all of them alike. No chat template stands around a prompt.
"""

import dataclasses
from collections.abc import Mapping

from infini_jax.data.asked import Asked, Suite
from infini_jax.data.ruler.common_words import CommonWords
from infini_jax.data.ruler.frequent_words import FrequentWords
from infini_jax.data.ruler.needles import Needles
from infini_jax.data.ruler.questions import Questions
from infini_jax.data.ruler.variables import Variables


@dataclasses.dataclass(frozen=True)
class Ruler(Suite):
    """The tasks of RULER.

    Attributes:
      squad: path of the questions of qa_1, a JSON file in the form of SQuAD 2.0.
      hotpot: path of the questions of qa_2, a JSON file in the form of HotpotQA.
    """

    title = "RULER"
    squad: str = ""
    hotpot: str = ""

    def tasks(self) -> Mapping[str, Asked]:
        """The thirteen tasks by RULER's names."""
        return {**TASKS, "qa_1": Questions("squad", self.squad), "qa_2": Questions("hotpot", self.hotpot)}


TASKS: dict[str, Asked] = {
    "niah_single_1": Needles("noise"),
    "niah_single_2": Needles("essay"),
    "niah_single_3": Needles("essay", values="uuids"),
    "niah_multikey_1": Needles("essay", keys=4),
    "niah_multikey_2": Needles("needle"),
    "niah_multikey_3": Needles("needle", names="uuids", values="uuids"),
    "niah_multivalue": Needles("essay", each=4),
    "niah_multiquery": Needles("essay", keys=4, asked=4),
    "vt": Variables(),
    "cwe": CommonWords(),
    "fwe": FrequentWords(),
}
"""Tasks that need no file, by RULER's names."""
QUESTIONS = ("qa_1", "qa_2")
