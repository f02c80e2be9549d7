"""Runs that begin at another run's parameters: what is taken, what is refused, and that a resume needs nothing of it."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from infini_jax.cli.main import main
from infini_jax.config import Budget, ModelConfig, Origin, RunConfig, TrainConfig
from infini_jax.data.corpus import CorpusConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.errors import CheckpointError, ConfigError, Stopped
from infini_jax.files import write_json
from infini_jax.memory import MECHANISMS
from infini_jax.memory.compressive import CompressiveConfig
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.landmark import LandmarkConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.memory.memorizing import MemorizingConfig
from infini_jax.model.inheritance import inheritance, inherited, shapes_by_layer
from infini_jax.model.stream import init_params
from infini_jax.records.folder import CHECKPOINTS_FOLDER, CONFIG_FILE, METRICS_FILE
from infini_jax.records.rows import ORIGIN, read_rows
from infini_jax.report.sections import notes
from infini_jax.study.jobs import job_from_plain, job_to_plain
from infini_jax.study.scores import score_of
from infini_jax.training.checkpoint import Saving
from infini_jax.training.execute import execute
from infini_jax.training.origin import begun_from, check_origin
from infini_jax.training.trained import Trained
from tests.support.saved import drawn, saved_run

MODEL = ModelConfig(memory=LocalConfig(), vocab=48, layers=3, d_model=16, segment=8)
PARENT = RunConfig(
    name="first",
    model=dataclasses.replace(MODEL, layers=1),
    data=MqarConfig(pairs=4, symbols=32, repeats=2),
    train=TrainConfig(batch=2, sequence=16, log_every=1, evaluation_steps=1, average=0.5),
    budget=Budget("steps", 2),
)
CHILD = dataclasses.replace(
    PARENT,
    name="second",
    seed=1,
    model=dataclasses.replace(PARENT.model, memory=InfiniConfig(), segment=16),
    train=dataclasses.replace(PARENT.train, average=0.0, optimiser="adafactor"),
    budget=Budget("steps", 3),
)
SHARED = ["vocab", "layers", "d_model", "heads", "kv_heads", "key_dim", "value_dim", "mlp_dim"]


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """The folder of a run with checkpoints of two steps."""
    return saved_run(PARENT, tmp_path_factory.mktemp("origin") / "first")


@pytest.fixture(scope="module")
def child(parent):
    """(a run with another memory that began at the first one's parameters, its folder, its row); it saved every step."""
    run = begun_from(CHILD, parent)
    folder = parent.parent / "second"
    return run, folder, execute(run, folder, study="", saving=Saving(every_steps=1, keep=9))


def params_of(model, seed):
    return drawn(jax.eval_shape(lambda: init_params(model, jax.random.key(0))), seed)


@pytest.mark.parametrize("name", ["infini", "gated_delta", "compressive", "landmark"])
def test_every_mechanism_begins_at_a_windows_parameters(name):
    found = inheritance(MODEL, dataclasses.replace(MODEL, memory=MECHANISMS[name].Config()), "first")
    assert found.taken.keys() == shapes_by_layer(MODEL).keys()
    assert not found.left
    assert all("memory" in path or path == ("embedding", "inserted") for path in found.fresh)


def test_layers_are_matched_one_by_one_however_they_are_stacked():
    """A memory in the middle layer alone makes three stacks of what was one."""
    other, model = MODEL, dataclasses.replace(MODEL, memory=MemorizingConfig(layers=(1,)))
    learned, fresh = params_of(other, 1), params_of(model, 2)
    found = inherited(other, learned, model, fresh)
    assert jax.tree.structure(found) == jax.tree.structure(fresh)
    for layer in range(3):
        np.testing.assert_array_equal(
            found[f"groups_{layer}"]["query"]["kernel"][0], learned["groups_0"]["query"]["kernel"][layer]
        )
    np.testing.assert_array_equal(found["groups_1"]["memory"]["bias"], fresh["groups_1"]["memory"]["bias"])
    jax.tree.map(np.testing.assert_array_equal, inherited(model, found, other, params_of(other, 3)), learned)


def test_tokens_are_taken_beside_the_landmark():
    model = dataclasses.replace(MODEL, memory=LandmarkConfig(block=4))
    learned, fresh = params_of(MODEL, 1), params_of(model, 2)
    table = inherited(MODEL, learned, model, fresh)["embedding"]["embedding"]
    np.testing.assert_array_equal(table[:48], learned["embedding"]["embedding"])
    np.testing.assert_array_equal(table[48:], fresh["embedding"]["embedding"][48:])


def test_what_is_taken_and_what_is_not_is_said_in_one_line():
    compressive, infini = (dataclasses.replace(MODEL, memory=memory) for memory in (CompressiveConfig(), InfiniConfig()))
    said = inheritance(compressive, infini, "x").said
    assert said.endswith(
        "freshly initialized: memory/gate (3 layers); left behind: memory/compress_keys/kernel (3 layers), "
        "memory/compress_values/kernel (3 layers), memory/compress_values/offset (3 layers)"
    )


@pytest.mark.parametrize("field", SHARED)
def test_sizes_that_must_agree_are_told_by_name(field):
    changes = {field: {"heads": 4, "kv_heads": 1, "layers": 2}.get(field, 32)}
    said = rf"^model\.{field}: \d+ does not fit the parameters of first, which have \d+; give \d+$"
    with pytest.raises(ConfigError, match=said):
        inheritance(MODEL, dataclasses.replace(MODEL, **changes), "first")


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        ({"memory": CompressiveConfig(ratio=2)}, {"memory": CompressiveConfig(ratio=4)}, "memory.ratio: 4 .* give 2"),
        ({"key_taps": 2}, {"key_taps": 4}, "model.key_taps: 4 .* give 2"),
    ],
)
def test_a_parameter_of_another_shape_is_told_by_the_setting_that_made_it(theirs, ours, said):
    with pytest.raises(ConfigError, match=f"^{said}$"):
        inheritance(dataclasses.replace(MODEL, **theirs), dataclasses.replace(MODEL, **ours), "first")


def test_another_tokenizer_is_refused():
    corpus = CorpusConfig("books", "sentencepiece:0123456789ab", 40, "0")
    model = dataclasses.replace(MODEL, vocab=256)
    other = RunConfig(name="first", model=model, data=StdlibConfig())
    said = r"^data.tokenizer: sentencepiece:0123456789ab is not the tokenizer of first, which is bytes; "
    with pytest.raises(ConfigError, match=said):
        check_origin(RunConfig(model=model, data=corpus), other)
    assert not check_origin(RunConfig(model=model, data=StdlibConfig()), other).fresh


def test_runs_without_an_origin_keep_their_fingerprints_and_settings():
    assert RunConfig().fingerprint() == "6b6f6a7365f3"
    plain = RunConfig().to_dict()
    assert plain.pop("origin") is None
    assert RunConfig.from_dict(plain) == RunConfig()


def test_the_fingerprint_is_of_the_parameters_and_not_of_their_place():
    origin = Origin("here", "first", "f" * 12, 3, "d" * 12)
    run, moved, other = (
        dataclasses.replace(RunConfig(), origin=dataclasses.replace(origin, **change))
        for change in ({}, {"folder": "there", "name": "x"}, {"digest": "e" * 12})
    )
    assert run.fingerprint() == moved.fingerprint() != other.fingerprint()
    assert run.fingerprint() != RunConfig().fingerprint()
    assert job_from_plain(json.loads(json.dumps(job_to_plain(run)))) == run


@pytest.mark.slow
def test_a_run_begins_at_the_averaged_parameters_with_its_own_memory(child, parent):
    _, folder, _ = child
    learned, begun = Trained.open(parent).params, Trained.open(folder, 0).params
    assert PARENT.train.average
    gate = begun["groups_0"]["memory"].pop("gate")
    np.testing.assert_array_equal(gate, np.full_like(gate, CHILD.model.memory.gate_init))
    jax.tree.map(np.testing.assert_array_equal, begun, learned)
    assert [json.loads(line)["step"] for line in (folder / METRICS_FILE).read_text().splitlines()] == [1, 2, 3]


def test_row_and_reports_say_where_a_run_began(child):
    run, folder, row = child
    assert read_rows(folder / "row.parquet") == [row]
    assert (row.origin, row.origin_step, row.origin_fingerprint) == ("first", 2, PARENT.fingerprint())
    assert row.origin_digest == run.origin.digest
    assert RunConfig.from_dict(json.loads((folder / CONFIG_FILE).read_text())) == run
    assert notes([row], score_of(row.task))[-1] == "Runs that began at another run's parameters: first at step 2 (1)."
    fresh = dataclasses.replace(row, **dict.fromkeys(ORIGIN))
    assert len(notes([fresh], score_of(row.task))) == 1


def test_an_older_checkpoint_can_be_begun_from(parent):
    older, newest = begun_from(CHILD, parent, 1).origin, begun_from(CHILD, parent).origin
    assert (older.step, newest.step) == (1, 2)
    assert older.digest != newest.digest
    with pytest.raises(ConfigError, match=r"^from-step: there is no checkpoint of step 7; choose one of 1, 2$"):
        begun_from(CHILD, parent, 7)


def test_a_run_goes_on_without_the_other_one(child, tmp_path):
    """Killed before its first step, with its parent gone: the same numbers, by the same words."""
    run, folder, row = child
    copy = shutil.copytree(folder, tmp_path / "second")
    (copy / "row.parquet").unlink()
    gone = dataclasses.replace(run, origin=dataclasses.replace(run.origin, folder=str(tmp_path / "gone")))
    write_json(gone.to_dict(), copy / CONFIG_FILE)
    again = begun_from(CHILD, tmp_path / "gone", own=copy)
    assert again == gone
    found = execute(again, copy, study="", saving=Saving(every_steps=1, keep=9), resume=0)
    assert (found.train_loss, found.loss) == (row.train_loss, row.loss)


def test_a_parent_that_is_gone_damaged_or_another_is_told_in_one_line(parent, tmp_path):
    copy = shutil.copytree(parent, tmp_path / "first")
    run = begun_from(CHILD, copy)
    for file in (copy / CHECKPOINTS_FOLDER / "2" / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:9])
    with pytest.raises(CheckpointError, match=r"2 is damaged or incomplete; read step 1 with --from-step 1$"):
        execute(run, tmp_path / "second", study="")
    other = dataclasses.replace(run, origin=dataclasses.replace(run.origin, digest="0" * 12))
    with pytest.raises(CheckpointError, match=r"^origin: step 2 of .* has other parameters than this run was to begin from;"):
        execute(other, tmp_path / "third", study="")
    shutil.rmtree(copy)
    with pytest.raises(ConfigError, match=r"^from: .*first is not a folder; give the folder that `infini-jax train` left"):
        execute(run, tmp_path / "fourth", study="")


def test_a_run_does_not_begin_from_itself(tmp_path):
    with pytest.raises(ConfigError, match=r"^from: .* is the folder of this run itself; give it another --name$"):
        begun_from(CHILD, tmp_path / "a" / ".." / "second", own=tmp_path / "second")
    with pytest.raises(ConfigError, match=r"^from: .*second is not a folder; "):
        begun_from(CHILD, tmp_path / "second", own=tmp_path / "third")


def test_the_command_line_says_what_it_takes(parent, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("infini_jax.cli.train.execute", lambda run, *_, **__: (_ for _ in ()).throw(Stopped(run.origin.said)))
    command = ["train", "infini", "mqar", "--model.vocab", "48", "--model.layers", "1", "--model.d-model", "16"]
    command += ["--model.segment", "8", "--train.sequence", "16", "--data.pairs", "4", "--data.symbols", "32"]
    command += ["--data.repeats", "2"]
    command += ["--results", str(tmp_path), "--from", str(parent)]
    with pytest.raises(SystemExit):
        main(command)
    said = capsys.readouterr()
    assert said.out.startswith("run starts from the parameters of first, step 2: takes ")
    assert "freshly initialized: memory/gate; left behind: none" in said.out
    with pytest.raises(SystemExit):
        main([*command, "--model.d-model", "32"])
    assert capsys.readouterr().err == (
        "infini-jax: model.d_model: 32 does not fit the parameters of first, which have 16; give 16\n"
    )
    with pytest.raises(SystemExit):
        main([*command[:-2], "--from-step", "1"])
    assert capsys.readouterr().err == "infini-jax: from-step: no run is named; give --from, too\n"
