"""What launchers say before they start anything, what they write, and what they refuse."""

import importlib.util
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from infini_jax.cli.main import main
from infini_jax.errors import ConfigError
from infini_jax.records.rows import read_rows
from infini_jax.study.launch import LAUNCHERS, Resources
from infini_jax.study.launch.base import job_name
from infini_jax.study.launch.slurm import TAKEN, Slurm, Worker, sbatch_options
from infini_jax.study.study import Study, save_study
from tests.support.commands import spawned, told
from tests.support.documentation import all_blocks
from tests.test_slurm import run_of

STUDY = Study("queued", "Does it start?", (run_of("one", 20), run_of("two", 20)))


def test_what_would_be_submitted_is_shown_and_nothing_is_written(tmp_path):
    launcher = LAUNCHERS["slurm"](5, Resources(cpus=3, gpus=1, memory_gb=8, minutes=30, partition="short"))
    said = launcher.described(STUDY, tmp_path)
    assert said.startswith("a SLURM array of 2 workers for 2 runs, ")
    for line in (
        "time: 30",
        "cpus_per_task: 3",
        "gpus_per_node: 1",
        "mem: 8GB",
        "partition: short",
        "'requeue': True",
        "signal_delay_s: 120",
    ):
        assert line in said
    assert LAUNCHERS["local"](3, Resources()).described(STUDY, tmp_path) == "3 processes on this machine for 2 runs"
    assert not list(tmp_path.iterdir())


def test_further_options_of_sbatch_are_shown_as_they_are_submitted(tmp_path):
    asked = Resources(account="lab", qos="long", constraint="a100&nvlink", reservation="course", extra=("exclusive", "nice=7"))
    said = LAUNCHERS["slurm"](1, asked).described(STUDY, tmp_path)
    for line in ("account: lab", "qos: long", "constraint: a100&nvlink"):
        assert f"  {line}\n" in f"{said}\n"
    assert "{'requeue': True, 'reservation': 'course', 'exclusive': True, 'nice': '7'}" in said


def test_options_are_taken_as_lines_of_a_script_have_them():
    lines = ("#SBATCH --mail-type=END", "--exclusive", " licenses=a:1 ", "comment=x = y", "export=", "#SBATCH  gres=gpu:1")
    expected = {"mail-type": "END", "exclusive": True, "licenses": "a:1", "comment": "x = y", "export": "", "gres": "gpu:1"}
    assert sbatch_options(lines) == expected


def test_workers_with_little_time_are_told_to_save_within_a_quarter_of_it():
    delays = [LAUNCHERS["slurm"](1, Resources(minutes=n)).settings(Path("x"), 1)["slurm_signal_delay_s"] for n in (4, 8, 240)]
    assert delays == [60, 120, 120]


def test_a_dry_run_names_the_array(tmp_path, capsys):
    main(["study", "gates", "--scale", "smoke", "--results", str(tmp_path), "--launch", "slurm", "--jobs", "2", "--dry-run"])
    assert "a SLURM array of 2 workers for" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_where_there_is_no_slurm_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("infini_jax.study.launch.slurm.shutil.which", lambda name: None)
    save_study(STUDY, tmp_path)
    with pytest.raises(ConfigError, match=r"^launch: sbatch is not installed; log in to a SLURM machine$"):
        LAUNCHERS["slurm"](1, Resources()).run(STUDY, tmp_path, lambda desk: None)


def test_nothing_that_the_launcher_sets_can_be_set_twice(tmp_path):
    """Of the options in the script of an array, whatever is asked for."""
    slurm = pytest.importorskip("submitit.slurm.slurm")
    asked = Resources(1, 1, 1, 9, "low", account="a", qos="b", constraint="c", reservation="d")
    found = {name.removeprefix("slurm_"): value for name, value in Slurm(2, asked).settings(tmp_path, 2).items()}
    script = slurm._make_sbatch_string(command="work", folder=tmp_path, map_count=2, **found)
    options = re.findall(r"^#SBATCH --([a-z-]+)", script, re.MULTILINE)
    assert len(options) == len(set(options))
    assert set(options) <= set(TAKEN)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--resources.cpus", "0"], "resources.cpus: 0 is below one; give 1 or more"),
        (["--resources.gpus", "-1"], "resources.gpus: -1 is below zero; give 0 or more"),
        (["--resources.storage", "here"], "resources.storage: slurm has no use for it; leave it out"),
        (["--launch", "sky", "--resources.package", "infini_jax"], "resources.storage: sky needs it; name one"),
        (["--resources.extra", "output=x"], "resources.extra: 'output' is the launcher's own; leave it out"),
        (["--resources.extra", "signal=USR1@5"], "resources.extra: 'signal' is the launcher's own; leave it out"),
        (["--resources.extra", "nice", "time=5"], "resources.extra: 'time' is the launcher's own; give resources.minutes"),
        (["--resources.extra", "account=x"], "resources.extra: 'account' is the launcher's own; give resources.account"),
        (
            ["--resources.extra", "outp=x"],  # sbatch would take it for --output
            "resources.extra: 'outp' may be short for 'output', which is the launcher's own; leave it out",
        ),
        (
            ["--resources.extra", "gpus=2"],
            "resources.extra: 'gpus' may be short for 'gpus-per-node', which is the launcher's own; give resources.gpus",
        ),
        (["--resources.extra", "nice=1", "nice=2"], "resources.extra: 'nice' is given twice; give it once"),
        (["--launch", "local", "--resources.extra", "nice"], "resources.extra: local has no use for it; leave it out"),
        (["--launch", "sky", "--resources.qos", "long"], "resources.qos: sky has no use for it; leave it out"),
        (["--launch", "local", "--resources.cpus", "2"], "resources.cpus: local has no use for it; leave it out"),
    ],
)
def test_resources_that_cannot_be_are_refused(options, said, capsys):
    assert told(capsys, ["study", "gates", "--scale", "smoke", "--launch", "slurm", *options], 2) == said


# ---- files for clouds ----------------------------------------------------------------------------------------------------

ASKED = {
    "sky": Resources(cpus=8, memory_gb=32, accelerator="tpu-v5e-8", storage="my-study", package="infini_jax[tpu]"),
    "xpk": Resources(partition="my-cluster", accelerator="v5litepod-8", storage="my-store", package="my-image"),
}


def written(name: str, folder) -> tuple[str, str]:
    """(text of the file, what is left to do) of a study that was begun."""
    save_study(STUDY, folder)
    launcher = LAUNCHERS[name](2, ASKED[name])
    left = launcher.run(STUDY, folder, lambda desk: None)
    text = (folder / launcher.file).read_text()
    assert text in launcher.described(STUDY, folder)
    assert left in launcher.described(STUDY, folder)
    return text, left


def test_a_task_for_skypilot_mounts_the_study_and_does_what_is_missing_of_it(tmp_path):
    text, left = written("sky", tmp_path / "A_study-cpu")
    task = yaml.safe_load(text)
    name = task["name"]
    assert re.fullmatch("infini-jax-a-study-cpu-[0-9a-f]{8}", name)
    assert task["resources"] == {"cpus": "8+", "use_spot": True, "memory": "32+", "accelerators": "tpu-v5e-8"}
    assert task["file_mounts"] == {"/study": {"name": "my-study", "source": str(tmp_path / "A_study-cpu"), "mode": "MOUNT"}}
    assert task["setup"] == "pip install 'infini_jax[tpu]'"
    assert task["run"] == "infini-jax study /study --jobs 2"
    assert left == f"start with: sky jobs launch --name {name} {tmp_path}/A_study-cpu/sky.yaml"


def test_what_a_machine_is_told_to_do_does_what_is_missing(tmp_path, capsys):
    """The worker's command, with the study's folder where the machine would mount it."""
    text, _ = written("sky", tmp_path / "study")
    command = shlex.split(yaml.safe_load(text)["run"].replace("/study", str(tmp_path / "study"), 1))
    assert command[0] == "infini-jax"
    main([*command[1:], "--dry-run"])
    assert "2 processes on this machine for 2 runs" in capsys.readouterr().out


def test_a_script_for_xpk_starts_a_worker_on_each_slice(tmp_path):
    text, left = written("xpk", tmp_path / "study")
    assert subprocess.run(["sh", "-n"], input=text, text=True, check=False).returncode == 0
    command = shlex.split(text.splitlines()[-1])
    assert command[:3] == ["xpk", "workload", "create"]
    options = dict(zip(command[3:-1:2], command[4:-1:2], strict=True))
    assert (options["--cluster"], options["--tpu-type"], options["--num-slices"]) == ("my-cluster", "v5litepod-8", "2")
    assert (options["--docker-image"], options["--storage"]) == ("my-image", "my-store")
    assert options["--command"] == "infini-jax study /study"
    assert left == f"start with: sh {tmp_path}/study/xpk.sh"


def test_cancelling_in_a_cloud_is_said(tmp_path):
    said = [LAUNCHERS[name](1, ASKED[name]).cancel(tmp_path / "study") for name in ASKED]
    name = job_name(tmp_path / "study")
    assert said == [
        f"cancel with: sky jobs cancel --name {name}",
        f"cancel with: xpk workload delete --cluster my-cluster --workload {name}",
    ]


FOLDERS = ["a_b", "a-b", "A_b", "a b", "a.b", "x" * 60, "x" * 61, "study", "研究", "研", "---", "1"]


def test_each_folder_has_a_job_name_of_its_own_that_clouds_take(tmp_path):
    """Of at most 40 letters, the most that xpk takes."""
    folders = [tmp_path / inner / name for inner in ("", "other") for name in FOLDERS]
    names = [job_name(folder) for folder in folders]
    assert len(set(names)) == len(folders)
    assert all(re.fullmatch(r"infini-jax(-[a-z0-9]+)*-[0-9a-f]{8}", name) and len(name) <= 40 for name in names)


def test_a_folder_has_one_job_name_wherever_it_is_called_from(tmp_path, monkeypatch):
    (tmp_path / "study").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "study")
    monkeypatch.chdir(tmp_path)
    assert job_name(Path("study")) == job_name(Path("link")) == job_name(tmp_path / "other" / ".." / "study")


@pytest.mark.parametrize("name", ["sky", "xpk", "slurm"])
def test_what_cancels_a_study_names_no_other_one(name, tmp_path):
    """`a_b` and `a-b` in two folders of results: neither's job is the other's."""
    asked = ASKED.get(name, Resources())
    one, other = (LAUNCHERS[name](2, asked).described(STUDY, tmp_path / folder) for folder in ("a_b", "a-b"))
    assert job_name(tmp_path / "a_b") in one
    assert job_name(tmp_path / "a_b") not in other


@pytest.mark.skipif(not importlib.util.find_spec("sky"), reason="needs SkyPilot: pip install skypilot")
def test_skypilot_reads_the_task(tmp_path):
    import sky

    text, _ = written("sky", tmp_path / "study")
    task = sky.Task.from_yaml_config(yaml.safe_load(text))
    assert task.name == job_name(tmp_path / "study")


@pytest.mark.skipif(not shutil.which("xpk"), reason="needs xpk: pip install xpk")
def test_xpk_takes_the_command(tmp_path):
    text, _ = written("xpk", tmp_path / "study")
    command = shlex.split(text.splitlines()[-1])[:-1]
    done = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=False, timeout=300)
    assert job_name(tmp_path / "study") in done.stdout
    assert "unrecognized arguments" not in done.stderr


def test_a_worker_that_is_queued_again_is_the_same(tmp_path):
    submitit = pytest.importorskip("submitit")
    worker = Worker(tmp_path, 1, 3, "mark")
    again = worker.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function == worker


# ---- a user's own --------------------------------------------------------------------------------------------------------

OWN_MECHANISM = """
import dataclasses
from infini_jax.memory import MECHANISMS
from infini_jax.memory.local import Local

@dataclasses.dataclass(frozen=True)
class MineConfig(Local.Config):
    pass

class Mine(Local):
    Config = MineConfig

MECHANISMS["mine"] = Mine
"""
OWN_STUDY = """
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.memory import MECHANISMS
from infini_jax.study.study import Study

def study():
    model = ModelConfig(memory=MECHANISMS["mine"].Config(), vocab=32, layers=1, d_model=16, segment=8)
    run = RunConfig(name="one", model=model, data=MqarConfig(pairs=2, symbols=32),
                    train=TrainConfig(batch=2, sequence=16, evaluation_steps=1), budget=Budget("steps", 2))
    return Study("own", "Does it run?", (run,))
"""


def own_launcher() -> str:
    """The one of docs/adding.md."""
    (found,) = (block.text for block in all_blocks() if block.page == "adding.md" and "class Logged" in block.text)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["local", "logged"])
def test_what_an_experiment_registers_is_known_to_the_command_its_workers_and_the_report(launch, tmp_path):
    file = tmp_path / "my_experiment.py"
    file.write_text(own_launcher() + OWN_MECHANISM + OWN_STUDY)
    done = spawned(["study", str(file), "--launch", launch, "--jobs", "1", "--results", str(tmp_path)])
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(tmp_path / "own" / "results.parquet")
    assert row.mechanism == "mine"
    assert (tmp_path / "own" / "worker-0.log").exists() == (launch == "logged")
    again = spawned(["study", str(tmp_path / "own"), "--launch", launch])  # by the folder alone
    assert again.returncode == 0, again.stderr
    assert "report: " in again.stdout


def test_a_launcher_registered_at_run_time_is_a_choice(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(LAUNCHERS, "logged", None)  # gone behind the test
    exec(own_launcher(), {})
    save_study(STUDY, tmp_path)
    main(["study", str(tmp_path), "--launch", "logged", "--dry-run"])
    assert f"1 processes for 2 runs, logs in {tmp_path}" in capsys.readouterr().out


def test_an_unknown_launcher_is_told_once_the_experiment_is_loaded(tmp_path, capsys):
    command = ["study", "gates", "--scale", "smoke", "--results", str(tmp_path), "--launch"]
    assert told(capsys, [*command, "slrum"], 2) == "launch: 'slrum' is not known; did you mean 'slurm'?"
    assert told(capsys, [*command, "logged"], 2) == "launch: 'logged' is not known; choose one of local, sky, slurm, xpk"
    assert not list(tmp_path.iterdir())


def test_the_help_offers_the_launchers_that_are_there(capsys):
    with pytest.raises(SystemExit):
        main(["study", "--help"])
    assert f"{{{','.join(LAUNCHERS)}}}" in capsys.readouterr().out
