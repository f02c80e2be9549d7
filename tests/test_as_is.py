"""Imported models as they are: what is kept of their files, and what evaluations read with them."""

import dataclasses
import hashlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax import results
from infini_jax.cli.compare import compared
from infini_jax.cli.main import main
from infini_jax.config.plain import to_plain
from infini_jax.evals.haystack import HaystackEvaluation
from infini_jax.evals.language import LanguageEvaluation
from infini_jax.evals.passkey import PasskeyEvaluation
from infini_jax.model.inheritance import inherited
from infini_jax.model.stream import forward_segments, init_carry, init_params, logits_of
from infini_jax.study.evaluations import measure_name
from infini_jax.training.trained import Trained, run_tokenizer
from tests.support.as_is import LINES, made_model
from tests.support.commands import told

MODEL = "results/models/tiny"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the imported model tiny, in half precision, and texts."""
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    main(["import", str(made_model(tmp_path / "tiny", "bfloat16"))])
    (tmp_path / "texts").mkdir()
    for number in range(3):
        (tmp_path / "texts" / f"{number}.txt").write_text("".join(LINES[number :: number + 2]))
    return tmp_path


def logits(trained: Trained, ids: np.ndarray) -> jax.Array:
    model = trained.run.model
    tokens = jnp.asarray(np.resize(ids[: model.segment], (1, model.segment)))  # what stands behind is not seen
    _, x, _ = forward_segments(model, trained.params, init_carry(model, 1), tokens, jnp.zeros_like(tokens))
    return logits_of(model, trained.params, x)


def test_parameters_keep_the_type_of_their_file_and_mean_the_same(place):
    main(["import", "tiny", "--name", "wide", "--dtype", "float32"])
    kept, wide = Trained.open(place / MODEL), Trained.open(place / "results/models/wide")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(kept.params)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(wide.params)} == {"float32"}
    jax.tree.map(lambda one, other: np.testing.assert_array_equal(one.astype(np.float32), other), kept.params, wide.params)
    ids = run_tokenizer(kept.run).encode("".join(LINES[:8]))
    assert len(ids) >= kept.run.model.segment
    found, wanted = logits(kept, ids), logits(wide, ids)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())  # bfloat16 -> float32 is exact
    assert json.loads((place / MODEL / "source.json").read_text())["types"] == ["bfloat16"]


def test_what_is_kept_in_half_precision_is_trained_in_float32(place):
    kept = Trained.open(place / MODEL)
    fresh = init_params(kept.run.model, jax.random.key(0))
    begun = inherited(kept.run.model, kept.params, kept.run.model, fresh)
    assert jax.tree.map(lambda leaf: leaf.dtype, begun) == jax.tree.map(lambda leaf: leaf.dtype, fresh)
    jax.tree.map(lambda one, other: np.testing.assert_array_equal(one, np.asarray(other, np.float32)), begun, kept.params)


def nats_of(trained: Trained, ids: np.ndarray) -> float:
    """The loss of a text no longer than the context, in float64 from the logits of one segment."""
    table = np.asarray(logits(trained, ids)[0], np.float64)[: len(ids) - 1]
    return float((np.log(np.exp(table).sum(axis=1)) - table[np.arange(len(ids) - 1), ids[1:]]).mean())


def test_a_file_is_read_in_the_tokens_of_the_model(place, capsys):
    main(["evaluate", MODEL, "--data", "texts/1.txt", "--tokens", "40", "--conditions", "carried"])
    assert "bits per byte" in capsys.readouterr().out
    trained = Trained.open(place / MODEL)
    tokenizer = run_tokenizer(trained.run)
    ids = tokenizer.encode((place / "texts/1.txt").read_text())[:40]
    nats, size = nats_of(trained, ids), len(tokenizer.decode(ids).encode())
    table = results.load(place / MODEL).measures
    found = {line.metric: line for line in table[table["eval"] == "perplexity"].itertuples() if "from" not in line.labels}
    assert found["loss"].value == pytest.approx(nats, rel=1e-5)  # float32
    assert found["bits_per_byte"].value == pytest.approx(nats * 40 / size / math.log(2), rel=1e-5)
    assert json.loads(found["loss"].labels) == {"condition": "carried", "data": "1.txt"}
    by_place = table[table["metric"] == "bits_per_byte_by_position"]
    tokens = [count for count in by_place["count"]]
    assert sum(tokens) == 39
    mean = np.average(by_place["value"], weights=tokens)
    assert mean == pytest.approx(found["bits_per_byte"].value, rel=1e-6)
    assert (place / MODEL / "evaluation-perplexity-data-1.txt.json").is_file()


def test_a_folder_is_read_as_its_prepared_corpus_is(place, capsys):
    model = ["--tokenizer", "sentencepiece", "--model", f"{MODEL}/tokenizer.model", "--jobs", "1"]
    for split in ("train", "validation"):
        (place / "split" / split).mkdir(parents=True)
        for file in (place / "texts").iterdir():
            (place / "split" / split / file.name).write_text(file.read_text())
    main(["corpus", "prepare", "text_folder", "--path", "split", "--name", "lines", *model])
    losses = []
    capsys.readouterr()
    for given in ("lines", "texts"):
        main(["evaluate", MODEL, "--data", given, "--json"])
        losses.append(json.loads(capsys.readouterr().out)["conditions"])
    for condition, figures in losses[0].items():
        assert losses[1][condition] == pytest.approx(figures, rel=1e-6), condition  # documents in another order
    found = compared(place / MODEL, place / MODEL).figures
    assert found["perplexity loss condition=carried data=lines"][0] == losses[0]["carried"]["loss"]


def test_documents_that_cannot_be_read_are_told_with_what_to_do(place, capsys):
    assert told(capsys, ["evaluate", MODEL], 2).startswith("data: the run has no documents of its own; name a prepared corpus")
    main(["corpus", "prepare", "text_folder", "--path", "texts", "--name", "in-bytes", "--jobs", "1"])
    capsys.readouterr()
    line = told(capsys, ["evaluate", MODEL, "--data", "in-bytes"], 2)
    assert "'in-bytes' is in tokens of bytes, and the run reads those of sentencepiece:" in line
    command = line.partition("prepare it: infini-jax ")[2].replace("FOLDER", "texts").split()
    main([*command, "--name", "in-pieces", "--jobs", "1"])
    main(["evaluate", MODEL, "--data", "in-pieces", "--split", "train", "--conditions", "carried"])
    assert "is neither a prepared corpus nor a path" in told(capsys, ["evaluate", MODEL, "--data", "nothing"], 2)
    (place / "empty").mkdir()
    assert "has no file that ends in .txt" in told(capsys, ["evaluate", MODEL, "--data", "empty"], 2)


def test_tasks_in_text_are_asked_of_an_imported_model(place, capsys):
    grid = ["--lengths", "400", "--examples", "2", "--rows", "2"]
    main(["evaluate", MODEL, "--task", "passkey", *grid, "--depths", "0,1", "--formats", "landmark"])
    main(["evaluate", MODEL, "--task", "haystack", "--kinds", "single,facts1", "--data", "texts", *grid])
    capsys.readouterr()
    found = results.load(place / MODEL).measures
    passkey = found[(found["eval"] == "passkey") & (found["metric"] == "exact_match")]
    assert {json.loads(labels)["depth"] for labels in passkey["labels"]} == {0.0, 1.0}
    haystack = {json.loads(labels)["kind"] for labels in found[found["eval"] == "haystack"]["labels"]}
    assert haystack == {"single", "facts1"}
    run = Trained.open(place / MODEL).run
    without = {cell.labels["kind"] for cell in HaystackEvaluation(lengths=(400,)).cells(run)}
    assert "single" in without
    assert "facts1" not in without  # nothing to hide them in
    assert PasskeyEvaluation().applies(run)


def test_minimal_pairs_are_asked_of_an_imported_model(place, capsys):
    pair = {"sentence_good": "the 7 words", "sentence_bad": "words 7 the", "linguistics_term": "order", "UID": "order"}
    (place / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    main(["evaluate", MODEL, "--task", "blimp", "--path", "pairs.jsonl", "--pairs", "1"])
    trained = Trained.open(place / MODEL)
    tokenizer, score = run_tokenizer(trained.run), {}
    for kind in ("good", "bad"):
        ids = np.concatenate([tokenizer.encode("\n")[-1:], tokenizer.encode(pair[f"sentence_{kind}"])])
        score[kind] = -nats_of(trained, ids) * (len(ids) - 1)
    found = results.load(place / MODEL).measures
    (value,) = set(found[found["eval"] == "blimp"]["value"])
    assert value == float(score["good"] > score["bad"])


def test_a_text_longer_than_the_context_is_read_in_a_window_and_says_so(place, capsys):
    text = "".join(LINES[:60])
    read = ["generate", MODEL, "--prompt", text, "--tokens", "3", "--temperature", "0"]
    main(read)
    said = capsys.readouterr()
    tokens = len(run_tokenizer(Trained.open(place / MODEL).run).encode(text)) + 3
    assert f"memory: of {tokens:,} tokens each sees the last 48; --memory.slots sets another window" in said.err
    main([*read, "--memory.slots", "4096"])
    assert "sees the last" not in capsys.readouterr().err
    main(["generate", MODEL, "--prompt", LINES[0], "--tokens", "3"])
    assert "sees the last" not in capsys.readouterr().err


def test_evaluations_of_the_own_data_keep_their_names():
    evaluation = LanguageEvaluation(documents=3)
    plain = to_plain(evaluation)
    assert plain.pop("data") == ""
    assert measure_name(evaluation) != measure_name(dataclasses.replace(evaluation, data="books"))
    text = json.dumps(plain, sort_keys=True)
    assert measure_name(evaluation) == f"perplexity-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
