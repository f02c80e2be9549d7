"""`infini-jax evaluate` and `infini-jax generate` on a run as `train` leaves it."""

import dataclasses
import io
import itertools
import json
import shutil
import sys

import numpy as np
import pytest

from infini_jax.cli.main import main
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.config.evaluation import EvaluationConfig
from infini_jax.data.corpus import CorpusConfig
from infini_jax.data.prepare import TokenizerSettings, prepare
from infini_jax.devices.sharding import ROWS_ALONE
from infini_jax.devices.side_by_side import OneModel
from infini_jax.errors import CheckpointError
from infini_jax.evals import perplexity
from infini_jax.model.generate import Sampling, continuation, read_prompt
from infini_jax.records.folder import METRICS_FILE, ROW_FILE
from infini_jax.records.measures import read_measures
from infini_jax.records.rows import read_rows
from infini_jax.training.checkpoint import Saving
from infini_jax.training.execute import execute
from infini_jax.training.held_out import HeldOut
from infini_jax.training.text_generator import TextGenerator
from infini_jax.training.trained import Trained, run_tokenizer
from infini_jax.units import human_bytes
from tests.support.asking import answered
from tests.support.commands import told
from tests.support.corpora import STORIES, write_stories
from tests.test_cli import fails

MODEL = ModelConfig(vocab=310, layers=1, d_model=16, heads=2, segment=16)
TRAIN = TrainConfig(batch=1, sequence=16, log_every=2, evaluate_every=4)
EVALUATION = EvaluationConfig(documents=0, tokens=0, rows=2)
SAVING = Saving(every_steps=2, keep=10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(the run's settings, its folder); the corpus stays where INFINI_JAX_DATA says."""
    top = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFINI_JAX_DATA", str(top / "data"))
        stories = write_stories(
            top / "stories", {**STORIES, "validation/one.txt": "held out\n", "validation/two.txt": "é " * 40}
        )
        (stories / "train").mkdir()
        for name in STORIES:
            (stories / "train" / name.replace("/", "-")).write_bytes((stories / name).read_bytes())
            (stories / name).unlink()
        prepare("text_folder", TokenizerSettings("sentencepiece", 300), "stories", stories, jobs=1)
        data = CorpusConfig("stories")
        run = RunConfig(name="run", model=MODEL, data=data, train=TRAIN, budget=Budget("steps", 10), evaluation=EVALUATION)
        execute(run, top / "run", study="", saving=SAVING)
        yield run, top / "run"


def logged(folder) -> list[dict]:
    """Lines without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    return [{name: value for name, value in line.items() if "second" not in name} for line in lines]


def test_held_out_documents_are_read_on_the_way_and_at_the_end(trained):
    lines = logged(trained[1])
    assert [(line["step"], "loss" in line) for line in lines] == [
        *((2, True), (4, True), (4, False), (6, True), (8, True), (8, False), (10, True), (10, False))
    ]
    last = lines[-1]
    assert {"validation_loss_reset", "validation_loss_another", "validation_loss_from_1"} < set(last)
    assert last["validation_tokens"] > 0
    assert last["validation_loss"] < lines[2]["validation_loss"]


def test_test_documents_are_scored_at_the_end_where_there_are_some(trained, tmp_path):
    """A corpus whose test documents are its validation documents has the same scores on both; one without them has none."""
    run, folder = trained
    (row,) = read_rows(folder / ROW_FILE)
    assert (row.test_loss, row.test_accuracy) == (None, None)
    stories = tmp_path / "stories"
    for name, text in STORIES.items():
        write_stories(stories, {f"train/{name.replace('/', '-')}": text})
    write_stories(stories, {f"{split}/one.txt": "held out\n" * 9 for split in ("validation", "test")})
    prepare("text_folder", TokenizerSettings("sentencepiece", 300), "tested", stories, jobs=1)
    lines = []
    held_out = HeldOut(dataclasses.replace(run, data=CorpusConfig("tested")), lines.append, ROWS_ALONE)
    learned = OneModel(Trained.open(folder).params)
    answered(held_out.examine(10), learned)
    scores = answered(held_out.scores(), learned)
    assert (scores.test_loss, scores.test_accuracy) == pytest.approx((scores.loss, scores.accuracy), rel=1e-5)
    assert not [name for line in lines for name in line if "test" in name]


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["training", "reading"])
def test_a_run_that_goes_on_has_the_metrics_of_one_that_was_never_stopped(broken, trained, tmp_path, monkeypatch):
    run, folder = trained

    def fail_at_six(line):
        if broken == "training" and line["step"] == 6:
            raise CheckpointError("stopped here")

    def read(reader, learned):
        nonlocal readings
        readings += 1
        if broken == "reading" and readings == 2:
            raise KeyboardInterrupt("stopped here")  # an error of an evaluation would not end the run
        return read_whole(reader, learned)

    readings, read_whole = 0, perplexity.Reader.read_each
    monkeypatch.setattr(perplexity.Reader, "read_each", read)
    with pytest.raises((CheckpointError, KeyboardInterrupt), match="stopped here"):
        execute(run, tmp_path, "", fail_at_six, saving=SAVING)
    row = execute(run, tmp_path, study="", saving=SAVING)
    assert logged(tmp_path) == logged(folder)
    assert row.loss == logged(folder)[-1]["validation_loss"]
    execute(run, tmp_path, study="", saving=SAVING)  # a finished run is read again and logs nothing twice
    assert logged(tmp_path) == logged(folder)


def test_evaluate_shows_and_writes_what_training_measured(trained, capsys):
    folder = trained[1]
    main(["evaluate", str(folder), "--rows", "2"])
    text = capsys.readouterr().out
    assert all(word in text for word in ("carried", "reset", "another", "bits per byte", "evaluation.json"))
    assert max(map(len, text.splitlines()[:-1])) <= 80
    found, measured = json.loads((folder / "evaluation.json").read_text()), logged(folder)[-1]
    assert found["conditions"]["carried"]["loss"] == measured["validation_loss"]
    assert found["conditions"]["another"]["loss"] == measured["validation_loss_another"]
    assert (found["step"], found["split"], found["documents"], found["documents_cut"]) == (10, "validation", 2, 0)
    assert found["tokens"] == sum(row["tokens"] for row in found["by_document"]) == measured["validation_tokens"]
    assert {"device", "jax", "package", "fingerprint", "corpus", "finished"} < set(found)
    measures = {(one.metric, *one.labels.values()): one for _, one in read_measures([folder / "measures/perplexity.parquet"])}
    for condition, figures in found["conditions"].items():
        for metric, value in figures.items():
            one = measures.pop((metric, condition))
            assert one.value == value
            assert one.low < value < one.high
    metrics = ("loss_by_position", "bits_per_byte_by_position")
    places = {(one, name, at["from"]) for one in metrics for at in found["by_position"] for name in found["conditions"]}
    assert set(measures) == places | {("gain", "reset"), ("gain", "another")}
    of = found["conditions"]
    for control in ("reset", "another"):
        assert measures["gain", control].value == pytest.approx(of[control]["loss"] - of["carried"]["loss"], abs=1e-6)


def test_evaluate_takes_a_step_a_split_and_limits(trained, capsys, tmp_path):
    folder, file = trained[1], tmp_path / "some.json"
    arguments = ["--step", "4", "--split", "train", "--documents", "3", "--tokens", "20", "--conditions", "carried"]
    main(["evaluate", str(folder), *arguments, "--output", str(file)])
    found = json.loads(file.read_text())
    assert (found["step"], found["split"], found["documents"], list(found["conditions"])) == (4, "train", 3, ["carried"])
    assert found["documents_cut"] > 0
    assert found["tokens"] <= 3 * 19


def test_generate_streams_a_file_and_prints_what_the_model_says(trained, capsys, tmp_path):
    run, folder = trained
    text = "".join(STORIES.values()) + "and then\n"
    file = tmp_path / "prompt.txt"
    file.write_bytes(text.encode())
    arguments = ["generate", str(folder), "--tokens", "30", "--top-p", "0.9", "--seed", "3"]
    main([*arguments, "--prompt-file", str(file)])
    shown = capsys.readouterr().out
    opened = Trained.open(folder)
    tokenizer = run_tokenizer(run)
    tokens = tokenizer.encode(text)
    drawn = continuation(
        run.model, opened.params, *read_prompt(run.model, opened.params, [tokens]), Sampling(1.0, 0.9, 3, 300)
    )
    assert shown == tokenizer.decode(list(itertools.islice(drawn, 30))) + "\n"
    main([*arguments, "--prompt", text])
    assert capsys.readouterr().out == shown


def test_questions_behind_a_saved_memory_have_the_answers_of_whole_prompts(trained, capsys, tmp_path):
    folder, file, book = str(trained[1]), tmp_path / "book.memory", tmp_path / "book.txt"
    text = "".join(STORIES.values()) + "and then"
    book.write_bytes(text.encode())
    main(["generate", folder, "--prompt-file", str(book), "--save-memory", str(file)])
    said = capsys.readouterr()
    assert said.out == ""
    tokens = TextGenerator.open(trained[1]).load(file).state.tokens
    assert said.err == f"{file}: {tokens:,} tokens are remembered in {human_bytes(file.stat().st_size)}\n"
    content = file.read_bytes()
    for question in (" there was", "\nWho?"):
        options = ["--tokens", "10", "--seed", "3"]
        main(["generate", folder, "--memory", str(file), "--prompt", question, *options])
        behind = capsys.readouterr().out
        main(["generate", folder, "--prompt", text + question, *options])
        assert capsys.readouterr().out == behind
    assert file.read_bytes() == content
    for arguments, said in (
        (["--prompt", "x", "--save-memory", str(file)], f"save_memory: {file} exists; give another name, or delete it"),
        (["--prompt", "", "--memory", str(file)], "prompt: it is empty; give at least one token"),
        (["--memory", str(file)], "prompt: there is none; give --prompt or --prompt-file"),
        (
            ["--prompt", "x", "--memory", str(file), "--step", "4"],
            f"memory: {file} is of step 10, this is step 4; give --step 10",
        ),
    ):
        assert told(capsys, ["generate", folder, *arguments], 2) == said


def test_generate_reads_standard_input_and_ends_in_front_of_a_stop(trained, capsys, monkeypatch):
    folder, text = str(trained[1]), "A story.\n"
    options = ["generate", folder, "--tokens", "20", "--seed", "3"]
    main([*options, "--prompt", text])
    whole = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    main([*options, "--prompt-file", "-", "--stop", "never said", "--stop", whole[5:7]])
    assert capsys.readouterr().out == whole[: whole.index(whole[5:7])] + "\n"
    for wrong, said in (
        (["--stop", ""], "stop: it is empty; give a text"),
        (["--stop-token", "300"], "stop_token: 300 is none of the tokenizer's 300 tokens; give 0 to 299"),
        (["--stop-token", "-1"], "stop_token: '-1' is not a token; give its number, or end"),
        (["--stop-token", "9" * 5000], f"stop_token: '{'9' * 57}...' is not a token; give its number, or end"),
        (
            ["--stop-token", "end"],
            f"stop_token: the tokenizer {trained[0].data.tokenizer} declares no end of a document; "
            "give the number of a token, or a text with --stop",
        ),
    ):
        assert told(capsys, [*options, "--prompt", "x", *wrong], 2) == said


def test_only_parameters_are_read_and_those_of_an_older_step_too(trained):
    newest, older = Trained.open(trained[1]), Trained.open(trained[1], 2)
    assert (newest.step, older.step) == (10, 2)
    tables = [np.asarray(one.params["embedding"]["embedding"]) for one in (newest, older)]
    assert np.abs(tables[0] - tables[1]).max() > 1e-4


def test_what_cannot_be_read_gets_one_line(trained, capsys, tmp_path):
    folder = trained[1]
    (tmp_path / "empty").mkdir()
    empty = tmp_path / "nothing.txt"
    empty.touch()
    untrained = tmp_path / "untrained"
    untrained.mkdir()
    shutil.copy(folder / "config.json", untrained)
    for arguments, said in (
        (["evaluate", str(tmp_path / "no")], "run: "),
        (["evaluate", str(tmp_path / "empty")], "has no config.json; give the folder"),
        (["generate", str(untrained), "--prompt", "x"], "has no checkpoints; train it first"),
        (["evaluate", str(folder), "--step", "77"], "step: there is no checkpoint of step 77; choose one of 2, 4, 6"),
        (["evaluate", str(folder), "--split", "test"], "has no test split"),
        (["evaluate", str(folder), "--rows", "1"], "evaluation.rows: one row has no other"),
        (["generate", str(folder)], "prompt: there is none; give --prompt or --prompt-file"),
        (["generate", str(folder), "--prompt", ""], "prompt: it is empty; give at least one token"),
        (["generate", str(folder), "--prompt", "\udcff"], "prompt: it is not UTF-8"),
        (["generate", str(folder), "--prompt-file", str(empty)], "prompt: it is empty"),
        (["generate", str(folder), "--prompt-file", str(tmp_path)], "Is a directory; give a file that can be read"),
        (["generate", str(folder), "--prompt", "x", "--top-p", "0"], "top_p: 0 is not a probability mass"),
        (["generate", str(folder), "--prompt", "x", "--tokens", "-1"], "tokens: -1 is negative"),
    ):
        text = fails(capsys, *arguments)
        assert said in text, text
        assert text.strip().count("\n") == 0, text


def test_a_run_without_text_says_so(capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(RunConfig().to_dict()))
    assert "run: its task mqar has no documents; choose a run on a corpus" in fails(capsys, "evaluate", str(tmp_path))
    assert "run: its task mqar has no text; choose a run" in fails(capsys, "generate", str(tmp_path), "--prompt", "x")


def test_another_tokenizer_than_the_runs_gets_one_line(trained, capsys, tmp_path, monkeypatch):
    run, folder = trained
    stories = write_stories(tmp_path / "stories")
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    assert "no prepared corpus 'stories'" in fails(capsys, "generate", str(folder), "--prompt", "x")
    prepare("text_folder", TokenizerSettings(), "stories", stories, jobs=1)
    for command in (["generate", str(folder), "--prompt", "x"], ["evaluate", str(folder)]):
        text = fails(capsys, *command)
        assert (
            f"data.tokenizer: the run wants {run.data.tokenizer} and the prepared corpus 'stories' has bytes; prepare" in text
        )
        assert text.strip().count("\n") == 0
