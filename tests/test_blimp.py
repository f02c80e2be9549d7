"""BLiMP: the files are read as they are, and each sentence is scored as if it were read alone."""

import functools
import io
import json
import math
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import RunConfig, TrainConfig
from infini_jax.data.minimal_pairs import Pair, blimp_pairs, blimp_place
from infini_jax.data.snapshots import quiet_tfds
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.data.tokenizers import Bytes, SentencePiece
from infini_jax.devices.side_by_side import OneModel
from infini_jax.errors import ConfigError
from infini_jax.evals.base import Subject
from infini_jax.evals.blimp import Blimp, BlimpSupplement, Packed, encoded, log_probabilities
from infini_jax.memory import MECHANISMS
from infini_jax.model.cost import model_cost
from infini_jax.model.stream import forward_segments, init_carry, logits_of
from tests.support import streams

STRADDLED = streams.tiny("landmark", layers=2, segment=12)  # segments that are no whole landmark blocks
OTHERS = [streams.tiny(name, layers=1, segment=16) for name in MECHANISMS]
MODELS = [STRADDLED, *(pytest.param(model, marks=pytest.mark.slow) for model in OTHERS)]


def line(good: str, bad: str, paradigm: str, term: str, number: int = 0, field: str = "syntax") -> dict:
    kinds = dict.fromkeys(("simple_LM_method", "one_prefix_method", "two_prefix_method", "lexically_identical"), True)
    names = {"sentence_good": good, "sentence_bad": bad, "field": field, "linguistics_term": term, "UID": paradigm}
    return {**names, **kinds, "pairID": str(number)}


LINES = {
    "anaphor_number_agreement": [
        line(
            "Many girls insulted themselves.",
            "Many girls insulted herself.",
            "anaphor_number_agreement",
            "anaphor_agreement",
            n,
        )
        for n in range(1)
    ],
    "principle_A_case_1": [
        line("Éva hurt herself.", "Éva hurt himself.", "principle_A_case_1", "binding", 0, "syntax/semantics"),
        line("The same.", "The same.", "principle_A_case_1", "binding", 1, "syntax/semantics"),
        *(
            line(f"He saw {n} men.", f"He saw {n} man.", "principle_A_case_1", "binding", n, "syntax_semantics")
            for n in "2345"
        ),
    ],
    "principle_A_case_2": [line("She ran.", "Ran she.", "principle_A_case_2", "binding", 0, "syntax_semantics")],
    "animate_subject_trans": [line("Tina ran.", "The rock ran.", "animate_subject_trans", "s-selection")],
}


def jsonl(lines: list[dict]) -> str:
    return "".join(json.dumps(fields) + "\n" for fields in lines)


@pytest.fixture
def folder(tmp_path):
    for paradigm, lines in LINES.items():
        file = tmp_path / "blimp" / "data" / f"{paradigm}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(jsonl(lines))
    return tmp_path / "blimp"


def expected_pairs() -> dict[str, list[Pair]]:
    terms = {"s-selection": "argument_structure"}
    return {
        paradigm: [
            Pair(
                one["sentence_good"],
                one["sentence_bad"],
                paradigm,
                terms.get(one["linguistics_term"], one["linguistics_term"]),
            )
            for one in lines
        ]
        for paradigm, lines in sorted(LINES.items())
    }


def test_a_folder_and_a_zip_with_what_a_mac_adds_are_read_alike(folder, tmp_path, monkeypatch):
    assert blimp_pairs(str(folder)) == expected_pairs()
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    with zipfile.ZipFile(tmp_path / "data" / "blimp.zip", "w") as opened:
        for paradigm, lines in LINES.items():
            opened.writestr(f"data/{paradigm}.jsonl", jsonl(lines))
            opened.writestr(f"__MACOSX/data/._{paradigm}.jsonl", b"\0\5\26\7\0Mac OS X")
    blimp_pairs.cache_clear()
    assert blimp_pairs() == expected_pairs()  # where the data folder has it


def test_what_tfds_prepares_is_read_alike(tmp_path):
    """A data set with the names and features of its own builder, which would download; a paradigm is a config."""
    tfds = pytest.importorskip("tensorflow_datasets")
    texts = dict.fromkeys(("sentence_good", "sentence_bad", "field", "linguistics_term", "UID"), tfds.features.Text())

    class Blimp(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, version="0.1.0") for name in LINES]  # noqa: RUF012

        def _info(self):
            features = tfds.features.FeaturesDict({**texts, "lexically_identical": np.bool_, "pair_id": np.int32})
            return tfds.core.DatasetInfo(builder=self, description="made", features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, fields in enumerate(LINES[self.builder_config.name]):
                kept = {name: fields[name] for name in (*texts, "lexically_identical")}
                yield number, {**kept, "pair_id": number}

    for name in LINES:
        with quiet_tfds():
            Blimp(data_dir=tmp_path, config=name, file_format="array_record").download_and_prepare()
    found = blimp_pairs(str(tmp_path / "blimp"))
    assert {name: set(pairs) for name, pairs in found.items()} == {
        name: set(pairs) for name, pairs in expected_pairs().items()
    }
    record = next((tmp_path / "blimp" / "principle_A_case_2").rglob("*.array_record*"))
    record.write_bytes(record.read_bytes()[:40])
    blimp_pairs.cache_clear()
    with pytest.raises(ConfigError, match=r"principle_A_case_2.*cannot be read"):
        blimp_pairs(str(tmp_path / "blimp"))
    record.unlink()
    with pytest.raises(ConfigError, match="only they are read without TensorFlow"):
        blimp_pairs(str(tmp_path / "blimp"))


def test_the_supplement_is_read_from_babylms_folder_and_its_paradigms_are_its_files(tmp_path, monkeypatch):
    """Also beside the fast evaluation, whose pairs are fewer."""
    lines = [{"row": 0, "contrast": "a/b", "sentence_good": f"If {n}, so.", "sentence_bad": f"So, if {n}."} for n in range(3)]
    for place, count in (("fast_eval", 1), ("full_eval", 3)):
        for paradigm in ("turn_taking", "hypernym"):
            file = tmp_path / "evaluation_data" / place / "supplement_filtered" / f"{paradigm}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(jsonl(lines[:count]))
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path))
    chosen = BlimpSupplement()._chosen()
    assert list(chosen) == ["hypernym", "turn_taking"]
    assert chosen["hypernym"][2] == Pair("If 2, so.", "So, if 2.", "hypernym", "supplement")
    assert {len(pairs) for pairs in chosen.values()} == {3}
    evaluation = BlimpSupplement(pairs=2)
    evaluation.check(RUN)
    figures = evaluation.measure(Subject(RUN, streams.parameters_of(RUN.model)))
    assert {(one.eval, one.labels["phenomenon"]) for one in figures} == {
        (evaluation.name, "supplement"),
        (evaluation.name, "all"),
    }
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"^blimp.path: the supplement of BLiMP is not here; put BabyLM's evaluation_data"):
        evaluation.check(RUN)


@pytest.mark.skipif(blimp_place() is None, reason="BLiMP is not in the data folder")
def test_blimp_itself_has_67_paradigms_of_1000_pairs_in_12_phenomena():
    blimp_pairs.cache_clear()
    found = blimp_pairs()
    assert len(found) == 67
    assert {len(pairs) for pairs in found.values()} == {1000}
    assert len({pair.phenomenon for pairs in found.values() for pair in pairs}) == 12
    assert sum(pair.good == pair.bad for pairs in found.values() for pair in pairs) == 7


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", "{", "a.jsonl line 1 is not JSON"),
        ("a.jsonl", '{"sentence_good": "Yes."}\n', "'sentence_bad' is missing"),
        ("a.jsonl", "[1]\n", "not a BLiMP pair"),
        ("a.txt", "text", "holds no pairs"),
    ],
)
def test_files_that_are_not_blimp_are_refused_in_one_line(tmp_path, name, content, problem):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=problem) as error:
        blimp_pairs(str(tmp_path))
    assert error.value.field == "blimp.path"
    assert "\n" not in str(error.value)


def test_what_is_not_here_is_said_in_one_line_with_the_mend(tmp_path, monkeypatch):
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path))
    blimp_pairs.cache_clear()
    with pytest.raises(ConfigError, match=r"BLiMP is not here; put blimp.zip, .* into \$INFINI_JAX_DATA, or give a path"):
        Blimp().check(RUN)
    (tmp_path / "blimp.zip").write_bytes(b"no zip")
    with pytest.raises(ConfigError, match=r"blimp\.zip is not a complete archive"):
        Blimp().check(RUN)
    with pytest.raises(ConfigError, match=r"blimp\.pairs"):
        Blimp(pairs=-1)


@functools.cache
def reading(model):
    """Jitted: one segment of one sentence behind a carry."""

    def segment(params, carry, tokens):
        carry, x, _ = forward_segments(model, params, carry, tokens, jnp.zeros_like(tokens))
        return carry, jax.nn.log_softmax(logits_of(model, params, x))

    return jax.jit(segment)


def alone(model, params, sentence: np.ndarray) -> float:
    """The sentence by itself from a fresh memory, one segment after the other."""
    carry, total, size = init_carry(model, 1), 0.0, model.segment
    for begin in range(0, len(sentence) - 1, size):
        inputs, targets = sentence[:-1][begin : begin + size], sentence[1:][begin : begin + size]
        padded = np.zeros((1, size), np.int32)
        padded[0, : len(inputs)] = inputs
        carry, log_p = reading(model)(params, carry, padded)
        total += sum(float(log_p[0, place, target]) for place, target in enumerate(targets))
    return total


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.mechanism)
def test_a_packed_sentence_scores_as_it_does_alone(model):
    """Also where it is longer than a segment and goes on through the memory; float32 sums in another order move it by 1e-5."""
    random = np.random.default_rng(0)
    lengths = [2, 3, 16, 17, 18, 33, 40, 5, 9, 9, 12, 13, 7, 30, 4]
    sentences = [random.integers(0, model.vocab, length).astype(np.int32) for length in lengths]
    params = streams.parameters_of(model)
    slow = [alone(model, params, sentence) for sentence in sentences]
    np.testing.assert_allclose(log_probabilities(model, OneModel(params), sentences)[0], slow, atol=2e-4)


@pytest.mark.parametrize(("segment", "mechanism"), [(16, "infini"), (64, "infini"), (32, "landmark"), (12, "landmark")])
def test_packing_reads_every_token_once_and_parts_no_sentence_that_fits_a_segment(segment, mechanism):
    model = streams.tiny(mechanism, layers=1, segment=segment)
    random = np.random.default_rng(segment)
    sentences = [random.integers(1, 9, length) for length in random.integers(2, 50, 200)]
    packed = Packed.of(model, sentences)
    read = np.zeros(len(sentences), int)
    for rows, numbers, local_RxT in packed.batches():
        for local, number in enumerate(numbers):
            is_here_RxT = (local_RxT == local) & (rows.weights > 0)
            (row,) = set(np.nonzero(is_here_RxT)[0])
            places = np.flatnonzero(is_here_RxT[row])
            np.testing.assert_array_equal(rows.tokens[row, places], sentences[number][:-1])
            np.testing.assert_array_equal(rows.targets[row, places], sentences[number][1:])
            assert len(set(rows.documents[row, places])) == 1
            assert places[0] % (model.memory.landmark_every or 1) == 0
            assert places[0] // segment == places[-1] // segment or (len(places) > segment and places[0] == 0)
            read[number] += 1
        assert rows.weights.sum() == sum(len(sentences[number]) - 1 for number in numbers)
    assert (read == 1).all()


RUN = RunConfig(data=StdlibConfig(), model=streams.tiny("infini", layers=1, vocab=256), train=TrainConfig(sequence=64))


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Wilson (1927), equation for z = 1.96."""
    z, p = 1.959964, hits / count
    middle, half = p + z * z / (2 * count), z * math.sqrt(p * (1 - p) / count + z * z / (4 * count**2))
    return (middle - half) / (1 + z * z / count), (middle + half) / (1 + z * z / count)


def test_accuracy_is_that_of_sentences_scored_one_by_one_and_a_tie_is_wrong(folder):
    params = streams.parameters_of(RUN.model)
    evaluation = Blimp(str(folder))
    evaluation.check(RUN)
    assert evaluation.applies(RUN)
    seen = []
    found = {
        tuple(sorted(one.labels.items())): one for one in evaluation.measure(Subject(RUN, params), lambda *at: seen.append(at))
    }
    right = {}
    for paradigm, pairs in expected_pairs().items():
        for pair in pairs:
            good, bad = (
                alone(RUN.model, params, np.frombuffer(f"\n{one}".encode(), np.uint8)) for one in (pair.good, pair.bad)
            )
            for group in ((("paradigm", paradigm), ("phenomenon", pair.phenomenon)), (("phenomenon", pair.phenomenon),)):
                right.setdefault(group, []).append(good > bad)
            right.setdefault((("phenomenon", "all"),), []).append(good > bad)
    assert found.keys() == right.keys()
    for group, hits in right.items():
        one = found[group]
        assert (one.eval, one.metric, one.count) == ("blimp", "accuracy", len(hits))
        assert one.value == pytest.approx(np.mean(hits))
        assert (one.low, one.high) == pytest.approx(wilson(sum(hits), len(hits)), abs=1e-6)
    assert 0 < sum(right[("phenomenon", "all"),]) < 8
    assert seen[-1][0] == seen[-1][1]
    assert evaluation.cost(RUN) == seen[-1][1] * model_cost(RUN.model).flops


def test_pairs_are_spread_evenly_over_a_paradigm(folder):
    kept = Blimp(str(folder), pairs=3)._chosen()["principle_A_case_1"]
    assert [pair.good for pair in kept] == ["Éva hurt herself.", "He saw 2 men.", "He saw 4 men."]


def test_a_sentence_begins_behind_a_line_end_or_a_full_stop_where_there_is_none():
    import sentencepiece

    assert encoded(Bytes(), ["Hi."])[0].tolist() == [10, *b"Hi."]
    model = io.BytesIO()
    texts = ["the men saw a cat. the cat ran. a man sat down."] * 9
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=25, model_type="bpe", minloglevel=2
    )
    without = SentencePiece(model.getvalue())
    assert len(without.encode("\n")) == 0
    (first, *rest), stop = encoded(without, ["the cat."])[0], without.encode("a.")[-1]
    assert first == stop
    assert rest == without.encode("the cat.").tolist()
