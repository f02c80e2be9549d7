"""Faults of a run as its user meets them, through the command line: one line each, the last good checkpoint stays."""

import contextlib
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest

from infini_jax.cli.main import main
from infini_jax.data.batch import Rows
from infini_jax.data.corpus import CorpusConfig
from infini_jax.data.prepare import TokenizerSettings, prepare
from infini_jax.errors import ConfigError, TrainingDiverged
from infini_jax.records.folder import CHECKPOINTS_FOLDER, CONFIG_FILE, METRICS_FILE, ROW_FILE
from infini_jax.records.rows import read_rows
from infini_jax.training import checkpoint
from infini_jax.training.loop import is_sound
from tests.support.commands import disk, killed_at, largest_file, spawned, told, training
from tests.support.corpora import write_stories

SPLIT = {"train/a.txt": "It was a dark night. " * 9, "train/b.md": "The rain fell. " * 20, "train/c.txt": "xyz " * 30}
SPLIT |= {f"validation/{name}.txt": f"Held out, {name}. " * 9 for name in ("d", "e")}
QUICKLY = ["--saving.every-minutes", "0"]


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    return write_stories(tmp_path_factory.mktemp("texts") / "stories", SPLIT)


@pytest.fixture(scope="module")
def data(tmp_path_factory, stories):
    """A data folder with the prepared stories."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFINI_JAX_DATA", str(tmp_path_factory.mktemp("data")))
        prepare("text_folder", TokenizerSettings(), path=stories, jobs=1)
        yield


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """The folder of a run that nothing disturbed, with checkpoints of steps 4 and 6."""
    folder = tmp_path_factory.mktemp("finished")
    main(training(folder))
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it that a test may break."""
    return Path(shutil.copytree(finished, tmp_path / "results" / "run"))


def saved(run) -> list[int]:
    return sorted(int(one.name) for one in (run / CHECKPOINTS_FOLDER).iterdir() if one.name.isdigit())


def numbers(run) -> list:
    """All that must be equal bit for bit: each step's losses and gradients, and the scores at the end."""
    lines = [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]
    (row,) = read_rows(run / ROW_FILE)
    clock = ("seconds", "tokens_per_second", "recent_tokens_per_second")
    measured = [{name: value for name, value in line.items() if name not in clock} for line in lines]
    return [measured, row.loss, row.accuracy, row.train_loss]


def killed_while_saving(results, step: int, operation: int, every: int, *, renames: bool = False):
    """The run dies at a file operation of the save of `step`; whether there is a half-written checkpoint now."""
    before = killed_at(f"/{step}.orbax-checkpoint-tmp", operation, ("os.rename",) if renames else ("open", "os.mkdir"))
    done = spawned(training(results, *QUICKLY, every=every), before)
    assert done.returncode == -9, done.stderr[-1000:]
    return any(one.name.startswith(f"{step}.") for one in (results / "run" / CHECKPOINTS_FOLDER).iterdir())


@pytest.mark.slow
def test_a_run_that_is_killed_just_before_a_save_is_whole_goes_on_from_the_one_before(finished, tmp_path):
    """At the last of four renames, of the three parts and of the checkpoint: nothing is missing but the name."""
    assert killed_while_saving(tmp_path, step=4, operation=4, every=2, renames=True)
    assert saved(tmp_path / "run") == [2]
    main(training(tmp_path))
    assert numbers(tmp_path / "run") == numbers(finished)
    assert sorted(one.name for one in (tmp_path / "run" / CHECKPOINTS_FOLDER).iterdir()) == ["4", "6"]


@pytest.mark.slow
def test_a_run_that_is_killed_in_every_save_ends_as_if_nothing_had_happened(finished, tmp_path):
    """At its first folder, while arrays and notes are written, and after some parts are whole."""
    for step, operation in ((2, 2), (2, 6), (4, 9), (4, 12), (6, 16)):
        assert killed_while_saving(tmp_path, step, operation, every=2)
        assert saved(tmp_path / "run") == list(range(2, step, 2))[-2:]
    main(training(tmp_path))
    assert numbers(tmp_path / "run") == numbers(finished)


def test_a_cut_checkpoint_is_refused_and_the_one_before_goes_on(run, finished, capsys):
    newest = run / CHECKPOINTS_FOLDER / "6"
    cut = [newest / "meta" / "metadata", newest / "state" / "_METADATA"]
    cut += [max((newest / part).rglob("d/*"), key=lambda file: file.stat().st_size) for part in ("state", "memory")]
    for file in cut:
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        line = told(capsys, training(run.parent), 1)
        assert line == f"checkpoint: {newest} is damaged or incomplete; resume from step 4 with --resume 4"
        assert saved(run) == [4, 6]
        if file != cut[-1]:
            file.write_bytes(whole)
    main(training(run.parent, "--resume", "4"))
    assert numbers(run) == numbers(finished)


def test_a_checkpoint_that_cannot_be_read_is_not_offered(run, capsys):
    for step in (4, 6):
        (run / CHECKPOINTS_FOLDER / str(step) / "meta" / "metadata").write_text("{")
    line = told(capsys, training(run.parent), 1)
    assert line == f"checkpoint: {run / CHECKPOINTS_FOLDER / '6'} is damaged or incomplete; delete it to start the run again"


def test_newer_checkpoints_are_kept_until_the_older_one_is_read(run, capsys):
    array = max((run / CHECKPOINTS_FOLDER / "4" / "state").rglob("d/*"), key=lambda file: file.stat().st_size)
    array.write_bytes(array.read_bytes()[: array.stat().st_size // 2])
    assert "4 is damaged or incomplete" in told(capsys, training(run.parent, "--resume", "4"), 1)
    said = told(capsys, training(run.parent, "--resume", "5"), 2)
    assert said == "resume: there is no checkpoint of step 5; choose one of 4, 6"
    assert "another config" in told(capsys, training(run.parent, "--resume", "4", "--seed", "3"), 1)
    assert saved(run) == [4, 6]


def test_a_run_of_another_config_is_refused_and_left_alone(run, capsys):
    config = (run / CONFIG_FILE).read_text()
    line = told(capsys, training(run.parent, "--train.learning-rate", "1e-4"), 1)
    assert line == (
        f"checkpoint: {run / CHECKPOINTS_FOLDER / '6'} is of another config (train.learning_rate was 0.001, is 0.0001); "
        "give the run a new name, or restore its settings"
    )
    assert (run / CONFIG_FILE).read_text() == config
    assert len(numbers(run)[0]) == 7  # six steps, and the held-out documents


def test_a_checkpoint_of_a_newer_version_offers_the_older_one(run, capsys):
    notes = run / CHECKPOINTS_FOLDER / "6" / "meta" / "metadata"
    notes.write_text(json.dumps({"format": checkpoint.FORMAT + 1, "who knows": "what follows"}))
    line = told(capsys, training(run.parent), 1)
    known, mend = checkpoint.FORMAT, "update infini_jax, or resume from step 4 with --resume 4"
    assert f"6 has format {known + 1}, newer than this version's {known}; {mend}" in line


@pytest.fixture
def own_corpus(data, stories, tmp_path, monkeypatch):
    """The stories prepared in a folder of this test's own."""
    texts = Path(shutil.copytree(stories, tmp_path / "stories"))
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    prepared, _ = prepare("text_folder", TokenizerSettings(), path=texts, jobs=1)
    return texts, prepared.folder


def test_a_corpus_with_other_text_is_another_run(own_corpus, run, capsys):
    texts, _ = own_corpus
    for text in texts.rglob("*.*"):
        text.write_text(text.read_text().replace("a", "o"))
    main(["corpus", "prepare", "text_folder", "--path", str(texts), "--jobs", "1"])
    line = told(capsys, training(run.parent), 1)
    assert "is of another config (data.content was " in line
    assert line.endswith("); give the run a new name, or restore its settings")


def test_an_altered_corpus_is_refused_and_mended_by_preparing_it_again(own_corpus, run, finished, capsys):
    texts, folder = own_corpus
    whole = (folder / "train.tokens").read_bytes()
    for altered in (whole[:-1], b"?" + whole[1:]):
        (folder / "train.tokens").write_bytes(altered)
        line = told(capsys, training(run.parent), 2)
        assert line == "data.name: stories-bytes/train.tokens is damaged; prepare it again: infini-jax corpus prepare"
    main(["corpus", "prepare", "text_folder", "--path", str(texts), "--jobs", "1"])
    main(training(run.parent))
    assert numbers(run) == numbers(finished)


def test_a_corpus_that_is_altered_while_it_is_read_stops_the_reader(own_corpus):
    """Reading behind the end of a file that was cut would kill the process; who prepares anew cuts no open file."""
    texts, folder = own_corpus
    source = CorpusConfig("stories-bytes").open(Rows(2, 16, 0))
    before = source.batch(5)
    (texts / "train" / "a.txt").write_text("something else")
    prepare("text_folder", TokenizerSettings(), path=texts, jobs=1)
    assert (source.batch(5).tokens == before.tokens).all()
    again = CorpusConfig("stories-bytes").open(Rows(2, 16, 0))
    (folder / "train.tokens").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"^data.name: stories-bytes/train.tokens was changed while it was read; prepare it"):
        again.batch(5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--data.tokenizer", "sentencepiece:12ab34cd56ef"], "data.tokenizer: the run wants sentencepiece:12ab34cd56ef and"),
        (["--data.symbols", "300"], "data.symbols: the run wants 300 and the prepared corpus 'stories-bytes' has 256"),
        (["--model.vocab", "255"], "model.vocab: 255 symbols, but the data has 256"),
        (["--train.batch", "4"], "train.batch: 4 rows need as many documents and the train split has 3"),
    ],
)
def test_a_tokenizer_or_corpus_that_does_not_fit_is_told_before_anything_compiles(
    change, said, data, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("infini_jax.training.loop.compiled_steps", lambda *_: pytest.fail("it compiles"))
    assert told(capsys, training(tmp_path, *change), 2).startswith(said)
    assert not (tmp_path / "run" / CHECKPOINTS_FOLDER).exists() or not saved(tmp_path / "run")


def test_a_loss_that_is_no_number_stops_the_run_and_a_lower_rate_is_another_run(data, tmp_path, capsys):
    steep = ["--train.learning-rate", "1e30", "--train.warmup", "0"]
    line = told(capsys, training(tmp_path, *steep, every=1), 1)
    assert line.startswith(tuple(f"{one}: not finite at step " for one in ("loss", "gradient", "parameters or memory")))
    assert line.endswith(
        "; lower train.learning_rate, now 1e+30, under another name: "
        "the run begins anew, and the checkpoints of this one are kept"
    )
    kept = saved(tmp_path / "run")
    assert told(capsys, training(tmp_path, *steep, every=1), 1) == line  # from the last good one: it is whole
    assert saved(tmp_path / "run") == kept
    assert "train.learning_rate was 1e+30, is 0.001" in told(capsys, training(tmp_path, "--train.warmup", "0"), 1)


def test_a_state_that_is_no_number_is_never_saved():
    good, bad = {"w": jnp.ones(3)}, {"w": jnp.array([1.0, jnp.inf, 1.0])}
    empty = {"memory": jnp.array([-jnp.inf, 0.0]), "document": jnp.array([1])}
    assert is_sound(good, good, empty)
    assert not is_sound(good, bad, empty)
    assert not is_sound(bad, good, empty)
    assert not is_sound(good, good, {"memory": jnp.array([jnp.nan])})
    assert issubclass(TrainingDiverged, RuntimeError)


def test_a_full_disk_stops_the_run_and_with_room_it_goes_on(finished, tmp_path, capsys):
    """Room for about two of the checkpoints; what fills the rest is then removed."""
    with disk(tmp_path / "disk", "2m") as folder:
        stop_at = folder / "filler"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("infini_jax.training.execute.metrics_after", filling(stop_at, after=5))
            line = told(capsys, training(folder), 1)
        assert line.startswith(("checkpoint: ", "disk: "))
        assert "No space left on device" in line
        assert saved(folder / "run") in ([2], [2, 4])  # the save of step 4 was under way
        stop_at.unlink()
        main(training(folder))
        assert numbers(folder / "run") == numbers(finished)


def filling(filler: Path, after: int):
    """`metrics_after` that fills the disk once step `after` is logged."""
    from infini_jax.training.execute import metrics_after

    @contextlib.contextmanager
    def opened(file: Path, step: int):
        with metrics_after(file, step) as log:
            yield Filler(log, filler, after)

    return opened


class Filler:
    def __init__(self, log, filler: Path, after: int):
        self.log, self.filler, self.after = log, filler, after

    def write(self, line: str) -> None:
        self.log.write(line)
        if json.loads(line)["step"] == self.after:
            with contextlib.suppress(OSError), self.filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))


@pytest.mark.slow
def test_files_that_may_not_grow_stop_the_run_and_it_goes_on(finished, run):
    """The second way to a full disk, for machines where none can be mounted: every write fails behind some bytes."""
    shutil.rmtree(run / CHECKPOINTS_FOLDER / "6")
    reads_only = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}  # it would cut the programs it shares with other tests
    done = spawned(training(run.parent), largest_file(2000), **reads_only)
    assert done.returncode == 1
    assert done.stderr.startswith(("infini-jax: checkpoint: ", "infini-jax: disk: "))
    assert done.stderr.count("\n") == 1
    assert saved(run) == [4]
    main(training(run.parent))
    assert numbers(run) == numbers(finished)


def test_a_folder_that_cannot_be_written_is_one_line(data, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    line = told(capsys, training(file), 1)
    assert (
        line == f"disk: {file / 'run'}: Not a directory; "
        "make room or give another folder, then repeat the command: finished work is kept"
    )


def test_a_disk_that_is_read_only_is_one_line(data, tmp_path, capsys):
    with disk(tmp_path / "disk", "1m", "ro") as folder:
        assert told(capsys, training(folder), 1).startswith(f"disk: {folder / 'run'}: Read-only file system; make room")
