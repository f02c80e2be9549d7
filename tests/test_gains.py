"""Who gains from memory: words, their classes and their losses, against slow definitions."""

import collections
import dataclasses
import math
import re

import numpy as np
import pytest
import scipy.stats

from infini_jax.config import RunConfig, TrainConfig
from infini_jax.config.evaluation import CONDITIONS
from infini_jax.data.base import DataConfig
from infini_jax.data.documents import Documents
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.stdlib import counted_bytes
from infini_jax.data.tokenizers import Bytes, SentencePiece, train_sentencepiece
from infini_jax.errors import ConfigError
from infini_jax.evals.base import Subject
from infini_jax.evals.gains import Classes, Gains, Tally, half_share, training_words
from infini_jax.evals.perplexity import Reader
from infini_jax.evals.words import UNIT_KINDS, count_words, unit_of_tokens, units_of
from infini_jax.model.cost import model_cost
from tests.support import streams
from tests.test_perplexity import ALL, COUNTS, LENGTHS, documents_of, expected

PROSE = (
    "Call me Ishmael. Some years ago—never mind how long—I met Mr. Darcy and Jane's aunt, in 1,812. "
    '"Well," said Jane. "Then Mr. Bennet is here?" She saw that Bennet had 3 dogs.\n\nThe Dogs of JANE ran [12], see [3, 7].'
)
LATEX = (
    r"As Theorem~\ref{thm:a} of \citet[p.~3]{knuth84} shows, \eqref{eq:1} holds; x[0] does not. The field $\alpha$ is Galois."
)
CODE = """import os
def area(width, height):
    size = width * height
    return size
class Box(Shape):
    def area(self): return area(self.width, self.size)
let rec fact n = if n = 0 then 1 else n * fact (n - 1)
print(f'{size}', Box, height)
"""


def by_kind(text: str) -> dict[str, list[str]]:
    units = units_of(text)
    ends = [*units.starts[1:], len(text)]
    found = collections.defaultdict(list)
    for start, end, kind in zip(units.starts, ends, units.kinds, strict=True):
        found[UNIT_KINDS[kind]].append(text[start:end])
    assert "".join(text[start:end] for start, end in zip(units.starts, ends, strict=True)) == text
    return found


def test_kinds_of_prose_latex_and_code():
    prose, latex, code = by_kind(PROSE), by_kind(LATEX), by_kind(CODE)
    assert prose["name"] == ["Ishmael", "Darcy", "Jane's", "Jane", "Bennet", "Bennet", "Dogs"]
    assert prose["number"] == ["1,812", "3"]
    assert prose["reference"] == ["[12]", "[3, 7]"]
    assert latex["reference"] == [r"\ref{thm:a}", r"\citet[p.~3]{knuth84}", r"\eqref{eq:1}"]
    assert latex["number"] == ["0"]
    assert latex["name"] == ["Theorem", "Galois"]
    assert code["identifier"] == ["size", "area", "area", "size", "fact", "size", "Box"]
    assert not prose["identifier"] + latex["identifier"]


def test_the_same_word_is_known_again_at_a_sentence_s_beginning_in_emphasis_and_with_s():
    assert count_words(["The cat. the _Cat_'s CAT, cat's 12 12"]) == {"the": 2, "cat": 4, "12": 2}


@pytest.fixture(scope="module")
def pieces() -> SentencePiece:
    return SentencePiece(train_sentencepiece([PROSE * 3, CODE * 3, LATEX * 3], 340))


@pytest.mark.parametrize("text", [PROSE, CODE, LATEX, "naïve é😀 œuvre\n\n  ends", " ", "é"])
def test_each_byte_belongs_to_the_unit_of_its_character(text):
    units = units_of(text)
    slow = [
        max(n for n, start in enumerate(units.starts) if start <= place)
        for place, character in enumerate(text)
        for _ in character.encode()
    ]
    found = unit_of_tokens(Bytes().encode(text).tolist(), Bytes())
    assert found[0] == text
    np.testing.assert_array_equal(found[2], slow)


@pytest.mark.parametrize("text", [PROSE, CODE, LATEX, "naïve é😀 œuvre\n\n  ends"])
def test_each_piece_belongs_to_the_unit_of_its_first_character_that_is_no_space(text, pieces):
    """Found by decoding ever longer beginnings; a piece that adds nothing waits for its character."""
    tokens = pieces.encode(text).tolist()
    found, units, unit_T = unit_of_tokens(tokens, pieces)
    assert found == text
    for place, unit in enumerate(unit_T):
        before = len(pieces.decode(tokens[:place]).rstrip("\ufffd"))
        added = text[before : len(pieces.decode(tokens[: place + 1]).rstrip("\ufffd"))]
        first = before + len(added) - len(added.lstrip()) if added.strip() else before
        assert units.starts[unit] <= first < [*units.starts, len(text)][unit + 1]


def classes_slowly(text: str, segment: int, uses: dict[str, int], total: int) -> dict[tuple[str, str], list[int]]:
    """Of a text of bytes, all ASCII: the classes of every unit, one after the other."""
    units = units_of(text)
    found, seen, copier, solid = collections.defaultdict(list), {}, {}, []
    for number, (start, word, kind) in enumerate(zip(units.starts, units.spelt, units.kinds, strict=True)):
        names = [("kind", UNIT_KINDS[kind])]
        if UNIT_KINDS[kind] in ("word", "name", "number", "identifier"):
            per_million = 1e6 * uses.get(word, 0) / total
            decade = "none" if not per_million else f"<= {10 ** max(0, math.ceil(math.log10(per_million)))}"
            names.append(("rarity", decade if per_million <= 10_000 else "> 10000"))
            gap = start - seen.get(word, -math.inf)
            edge = next((f"<= {edge}" for edge in (segment, 512, 8192) if gap <= edge), "> 8192")
            edge = {f"<= {segment}": "<= segment"}.get(edge, edge)
            names.append(("gap", "never before" if gap == math.inf else edge))
        seen[word] = start
        if UNIT_KINDS[kind] != "space":
            context = tuple(solid[-3:])
            source = copier.get(context) if len(context) == 3 else None
            if source and source[1] == word:
                names += [("kind", f"copy > {least}") for least in (512, 8192) if start - source[0] > least]
            copier[context] = (start, word)
            solid.append(word)
        if 0 < number < len(units.starts) - 1:
            for name in names:
                found[name].append(number)
    return found


def test_classes_are_those_of_a_slow_reading():
    """A text of 20 000 bytes from few words, so that all gaps and copies from far back occur."""
    random = np.random.default_rng(0)
    words = [f"w{n}" for n in range(400)] + ["Ann", "12", ".", ",", "the"] * 20
    text = " ".join(random.choice(words, 3000)) + " quite a new phrase of its own here " + " ".join(random.choice(words, 2500))
    text += " quite a new phrase of its own here."
    uses = {"the": 30_000, "w1": 9, "w2": 10, "w3": 99, "w4": 100, "w5": 10_000, "ann": 10_001, "12": 1}
    _, units, unit_T = unit_of_tokens(list(text.encode()), Bytes())
    found = Classes(units, unit_T, 64).all(collections.Counter(uses), 1_000_000)
    slow = classes_slowly(text, 64, uses, 1_000_000)
    assert {name: numbers.tolist() for name, numbers in found.items() if len(numbers)} == slow
    assert {name for by, name in slow if by == "gap"} == {"<= segment", "<= 512", "<= 8192", "> 8192", "never before"}
    assert slow["kind", "copy > 8192"]
    assert {"<= 10", "<= 100", "<= 10000", "> 10000", "none", "<= 1"} <= {name for by, name in slow if by == "rarity"}


@pytest.mark.parametrize(
    ("segment", "names"), [(512, ["<= segment", "<= 8192", "> 8192"]), (9000, ["<= segment", "> segment"])]
)
def test_a_long_segment_takes_the_place_of_shorter_gaps(segment, names):
    _, units, unit_T = unit_of_tokens(list(b"one two one."), Bytes())
    found = Classes(units, unit_T, segment).all(collections.Counter(), 1)
    assert [name for by, name in found if by == "gap"] == [*names, "never before"]


def test_tokens_under_each_condition_are_those_of_documents_read_alone():
    """Every token in its place, as the sums in test_perplexity cannot tell."""
    model = streams.tiny("infini", layers=1, segment=16)
    documents = documents_of(model.vocab)
    reader, seen = Reader(model, documents, COUNTS, ALL), []
    found = dict(reader.token_nats(streams.parameters_of(model), seen.append))
    slow = expected(model, documents, ALL.rows)
    assert found.keys() == slow.keys()
    for number, nats_CxT in found.items():
        for condition, nats_T in zip(CONDITIONS, nats_CxT, strict=True):
            np.testing.assert_allclose(nats_T, slow[number][condition], atol=5e-5)
    assert seen[-1] == sum(length - 1 for length in LENGTHS)
    assert reader.read_tokens == (4 + 1 + 1) * 16 * 3  # segments of the longest of (55, 40, 33), (17, 16, 5), (2): three rows


@dataclasses.dataclass(frozen=True)
class Texts(DataConfig):
    """Bytes of given texts, the same for training and held out."""

    texts: tuple[str, ...]
    vocab: int = 256

    def check(self, tokens: int) -> None:
        pass

    def open(self, rows):
        raise NotImplementedError

    def whole(self, split):
        documents = Documents.join([text.encode() for text in self.texts])
        return documents, counted_bytes(documents)

    def open_tokenizer(self):
        return Bytes()


MODEL = streams.tiny("infini", layers=1, segment=16, vocab=256)
RUN = RunConfig(data=Texts((PROSE, CODE, PROSE[40:] + LATEX)), model=MODEL, train=TrainConfig(sequence=64))
SETTINGS = Gains(tokens=150, rows=3, draws=200)


def test_gains_are_the_losses_of_words_added_up_by_class():
    """From the reader's nats, word by word; and the words of two controls are the same."""
    params, seen = streams.parameters_of(MODEL), []
    SETTINGS.check(RUN)
    found = SETTINGS.measure(Subject(RUN, params), lambda *at: seen.append(at))
    uses = collections.Counter(re.findall(r"\w+", " ".join(RUN.data.texts).lower()))
    words, total = training_words(RUN.data, SETTINGS.counted)
    assert words["jane"] == uses["jane"] == 6
    sums = collections.defaultdict(lambda: [0.0, 0])
    reader = Reader(MODEL, *RUN.data.whole("validation"), SETTINGS.reading)
    for number, nats_CxT in reader.token_nats(params):
        text = RUN.data.texts[number].encode()[:150].decode(errors="replace")
        ends = [*units_of(text).starts, len(text)]
        width = [len(character.encode()) for character in text]
        nats = dict(zip(reader.conditions, nats_CxT, strict=True))
        for name, numbers in classes_by_bytes(text, 16, words, total).items():
            for unit in numbers:
                a, b = (sum(width[: ends[unit + edge]]) - 1 for edge in (0, 1))  # the first byte is not scored
                for control in ("reset", "another"):
                    sums[control, *name][0] += float(nats[control][a:b].sum() - nats["carried"][a:b].sum())
                    sums[control, *name][1] += 1
    gains = {(one.labels["control"], one.labels["by"], one.labels["class"]): one for one in found if one.metric == "gain"}
    assert gains.keys() == sums.keys()
    for name, (nats, count) in sums.items():
        assert gains[name].count == count
        assert gains[name].value == pytest.approx(nats / count, abs=1e-5)
    shares = [one for one in found if one.metric == "gain_share"]
    assert {one.labels["control"] for one in shares} <= {"reset", "another"}
    assert all(0 < one.value < 1 and one.count == 447 for one in shares)
    assert seen[-1] == (447, 447)
    assert SETTINGS.cost(RUN) == 10 * 16 * 3 * 3 * model_cost(MODEL).flops


def classes_by_bytes(text, segment, uses, total):
    """As `classes_slowly`, whose places are bytes, for text that is not all ASCII."""
    _, units, unit_T = unit_of_tokens(list(text.encode()), Bytes())
    return {name: n for name, n in Classes(units, unit_T, segment).all(uses, total).items() if len(n)}


def test_a_single_document_has_no_interval_and_no_other_memory():
    run = dataclasses.replace(RUN, data=Texts((PROSE,)))
    found = SETTINGS.measure(Subject(run, streams.parameters_of(MODEL)))
    assert {one.labels["control"] for one in found} == {"reset"}
    assert all(math.isnan(one.low) and math.isnan(one.high) for one in found)


def test_the_interval_is_that_of_scipy_s_bootstrap_of_a_ratio_over_documents():
    """Both draw 4000 times; the ends of a 95 % interval then move by about 3 % of its width."""
    random = np.random.default_rng(1)
    gain_D, tally = [], Tally(4000)
    count_D = random.integers(3, 30, 25)
    for count in count_D:
        gain_T = random.normal(0.5 + 0.05 * count, 1, count)
        gain_D.append(gain_T.sum())
        tally.add(gain_T, np.arange(count), {("kind", "word"): np.arange(count)})
    (one, *_) = tally.measures("reset")
    slow = scipy.stats.bootstrap(
        (np.array(gain_D), count_D), lambda g, n: g.sum() / n.sum(), paired=True, vectorized=False, n_resamples=4000,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert one.value == pytest.approx(sum(gain_D) / count_D.sum())
    assert (one.low, one.high) == pytest.approx(tuple(slow), abs=0.08 * (slow.high - slow.low))


def test_half_of_the_gain_is_made_up_by_the_fewest_tokens_that_can():
    def slowly(gains):
        best = [sum(sorted(gains)[::-1][:count]) >= sum(gains) / 2 for count in range(1, len(gains) + 1)]
        return (best.index(True) + 1) / len(gains)

    random = np.random.default_rng(2)
    for count in (1, 2, 7, 50):
        gains = random.normal(1, 2, count) + 1e-9
        if gains.sum() > 0:
            assert half_share(np.sort(gains)[::-1], np.ones(count)) == pytest.approx(slowly(gains.tolist()))
    assert half_share(np.array([3.0, 1.0, 1.0, 1.0]), np.ones(4)) == 0.25
    assert half_share(np.array([3.0, 1.0]), np.array([0.0, 2.0])) == 1.0  # the first was not drawn; copies go together
    assert math.isnan(half_share(np.array([1.0, -1.0]), np.ones(2)))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"rows": 1}, "evaluation.rows"),
        ({"tokens": 1}, "evaluation.tokens"),
        ({"counted": 9}, "gains.counted"),
        ({"draws": 0}, "gains.draws"),
    ],
)
def test_impossible_settings_are_refused(settings, field):
    with pytest.raises(ConfigError) as error:
        Gains(**settings)
    assert error.value.field == field


def test_it_applies_to_runs_on_text():
    assert Gains().applies(RUN)
    assert not Gains().applies(dataclasses.replace(RUN, data=MqarConfig(), model=dataclasses.replace(MODEL, vocab=1 << 14)))
