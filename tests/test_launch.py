"""What launchers say before they start anything, and what they refuse."""

import pytest

from infini_jax.cli import main
from infini_jax.errors import ConfigError
from infini_jax.launch import LAUNCHERS, Resources
from infini_jax.launch.slurm import Worker
from infini_jax.study import Study, save_study
from tests.commands import told
from tests.test_slurm import run_of

STUDY = Study("queued", "Does it start?", (run_of("one", 20), run_of("two", 20)))


def test_what_would_be_submitted_is_shown_and_nothing_is_written(tmp_path):
    launcher = LAUNCHERS["slurm"](5, Resources(cpus=3, gpus=1, memory_gb=8, minutes=30, partition="short"))
    said = launcher.described(STUDY, tmp_path)
    assert said.startswith("a SLURM array of 2 workers for 2 runs, ")
    for line in ("time: 30", "cpus_per_task: 3", "gpus_per_node: 1", "mem: 8GB", "partition: short", "'requeue': True"):
        assert line in said
    assert LAUNCHERS["local"](3, Resources()).described(STUDY, tmp_path) == "3 processes on this machine for 2 runs"
    assert not list(tmp_path.iterdir())


def test_a_dry_run_names_the_array(tmp_path, capsys):
    main(["study", "gates", "--scale", "smoke", "--results", str(tmp_path), "--launch", "slurm", "--jobs", "2", "--dry-run"])
    assert "a SLURM array of 2 workers for" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_where_there_is_no_slurm_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("infini_jax.launch.slurm.shutil.which", lambda name: None)
    save_study(STUDY, tmp_path)
    with pytest.raises(ConfigError, match=r"^launch: there is no sbatch here; log in to a SLURM machine$"):
        LAUNCHERS["slurm"](1, Resources()).run(STUDY, tmp_path, lambda desk: None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--resources.cpus", "0"], "resources.cpus: 0 is below one; give 1 or more"),
        (["--resources.gpus", "-1"], "resources.gpus: -1 is below zero; give 0 or more"),
    ],
)
def test_resources_that_cannot_be_are_refused(options, said, capsys):
    assert told(capsys, ["study", "gates", "--scale", "smoke", "--launch", "slurm", *options], 2) == said


def test_a_worker_that_is_queued_again_is_the_same(tmp_path):
    submitit = pytest.importorskip("submitit")
    worker = Worker(tmp_path, 1, 3, "mark")
    again = worker.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function == worker
