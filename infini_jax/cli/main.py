"""The command line: `infini-jax COMMAND`; every command says with --help what it does."""

import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro
from rich.console import Console

from infini_jax.cli import tables
from infini_jax.cli.compare import compare
from infini_jax.cli.corpus import ListCorpora, PrepareCorpus, corpora_plain, corpora_table, counts_table, prepared_table
from infini_jax.cli.doctor import doctor
from infini_jax.cli.output import AsJson, print_json
from infini_jax.cli.plan import plan
from infini_jax.cli.progress import corpus_progress, evaluation_progress, study_progress, train_progress
from infini_jax.cli.read_run import evaluate, generate
from infini_jax.cli.watch import watch
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.config.evaluation import EvaluationConfig
from infini_jax.data import SOURCES
from infini_jax.devices.processes import ended_with_the_job, is_first, join_job
from infini_jax.devices.sharding import Sharding, use_cores
from infini_jax.errors import CheckpointError, ConfigError, Stopped, TrainingDiverged, disk_fault, require, suggestion
from infini_jax.memory import MECHANISMS
from infini_jax.records.folder import StudyFolder
from infini_jax.study.experiment import load_experiment
from infini_jax.study.launch import LAUNCHERS, Resources
from infini_jax.study.spending import spending_plain, spending_table
from infini_jax.study.study import cut_short, save_study, saved_study, write_tables
from infini_jax.training.checkpoint import Saving
from infini_jax.training.execute import execute
from infini_jax.training.mirrors import Mirroring
from infini_jax.training.timed_budget import with_steps

app = tyro.extras.SubcommandApp()

REQUEUE = 75  # EX_TEMPFAIL: try again later; what a scheduler can requeue on
INTERRUPTED = 130  # the shell's code for Ctrl-C
GOES_ON = ("study", "train")  # given again, they do what is missing
WHAT_NEXT = """infini-jax: what models recall, by the bytes that they may remember in. Next:

  infini-jax doctor                      what is here, and what to install
  infini-jax study quick                 every mechanism, some minutes, a report
  infini-jax train infini python_stdlib  one run, into results/runs/run
  infini-jax watch results/runs          how far runs are, while they go on
  infini-jax evaluate results/runs/run   what its memory is worth to it

`infini-jax --help` lists all commands; every one has examples in its --help."""


def one_of(settings: dict[str, type]) -> Any:
    """A type whose value is one of the settings classes, chosen on the command line by its registry name."""
    return Union[tuple(Annotated[kind, tyro.conf.subcommand(name, prefix_name=False)] for name, kind in settings.items())]  # noqa: UP007


if TYPE_CHECKING:  # what follows is made from the registries, of which a type checker knows the bases
    from infini_jax.config import ModelConfig as Shape
    from infini_jax.data.base import DataConfig as Task
    from infini_jax.memory.base import MemoryConfig as Mechanism
else:
    Mechanism = one_of({name: mechanism.Config for name, mechanism in MECHANISMS.items()})
    Task = one_of(SOURCES)
    Shape = dataclasses.make_dataclass(
        "Shape",
        [(field.name, field.type, field) for field in dataclasses.fields(ModelConfig) if field.name != "memory"],
        frozen=True,
    )
    Shape.__doc__ = ModelConfig.__doc__


@app.command
def study(
    experiment: tyro.conf.Positional[str],
    scale: str = "",
    results: Path = Path("results"),
    jobs: int = 0,
    launch: Literal["local", "slurm", "sky", "xpk"] = "local",
    resources: Resources = Resources(),
    dry_run: bool = False,
    cancel: bool = False,
    as_json: AsJson = False,
) -> None:
    """Does the runs of an experiment that are not done yet, side by side, and writes the report.

    Finished runs are kept and never run again: stop it when you like and call it again to go on. Examples:
    `infini-jax study quick`, `infini-jax study capacity_law --scale smoke --dry-run`

    Args:
      experiment: a name in experiments/ (such as quick), the path of a Python file with a function `study()`, or the folder of
        a study that was begun.
      scale: smoke (seconds, to see that it runs), cpu or accelerator, where the experiment has them.
      results: folder that gets <study>/ or <study>-<scale>/ with report.html, results.parquet, measures.parquet and the runs.
      jobs: workers at the same time; 0 is one for each of at most 4 CPU cores, and one where JAX finds an accelerator.
      launch: where the workers run: on this machine, queued by SLURM, or on machines of a cloud, for which a file is written
        and the command said.
      resources: of each worker that is not on this machine.
      dry_run: prints what would be done, with its tokens, bytes and FLOPs, and what would be submitted, and stops.
      cancel: ends the workers that a scheduler has of this study, and stops.
      as_json: with --dry-run, prints one JSON object instead of tables.
    """
    require(dry_run or not as_json, "json", "only a dry run is printed for scripts", "add --dry-run")
    console = Console()
    launcher = LAUNCHERS[launch](jobs, resources)
    if StudyFolder(Path(experiment)).study.exists():
        require(not scale, "scale", f"the study in {experiment} has its own", "leave --scale out")
        found, folder = saved_study(Path(experiment))[0], Path(experiment)
    else:
        found = load_experiment(experiment, scale)
        folder = results / found.label
    if cancel:
        console.print(launcher.cancel(folder), markup=False, soft_wrap=True)
        return
    if as_json:
        print_json({"study": found.label, "runs": spending_plain(found), "workers": launcher.described(found, folder)})
        return
    if dry_run:
        console.print(spending_table(found))
        console.print(launcher.described(found, folder), markup=False, soft_wrap=True)
        return
    save_study(found, folder)
    for file in cut_short(found, folder):
        console.print(f"{file} was cut short and is made again", style="yellow", markup=False, soft_wrap=True)
    with study_progress(found, console) as watch:
        left = launcher.run(found, folder, watch)
    if left:
        console.print(left, markup=False, soft_wrap=True)
        return
    report((folder,))


@app.command
def report(folders: tyro.conf.Positional[tuple[Path, ...]], output: Path | None = None) -> None:
    """Writes the report of one study, or of several head to head, from their results and prints the table.

    Example: `infini-jax report results/quick`

    Args:
      folders: where the studies' results lie.
      output: folder that gets report.html and report-figures/; by default the study's, of several the one that holds them all.
    """
    from infini_jax.report import StudySource, terminal_table, write_report  # matplotlib takes a second to load

    require(bool(folders), "folders", "there is none", "name the folder of a study, such as results/quick")
    console, sources, rows, failures = Console(), [], [], []
    for folder in folders:
        asked, finished, failed = saved_study(folder)
        write_tables(asked, asked.desk(folder))  # a study that was stopped has finished rows and no table yet
        sources.append(StudySource(folder, asked.question, dict(asked.held_equal), asked.command, asked.runs))
        rows.append(finished)
        failures.extend(failed)
    with evaluation_progress("report", console) as watch:
        page = write_report(sources, output or Path(os.path.commonpath(folders)), watch)
    for finished in rows:
        console.print(terminal_table(finished))
    for failure in failures:
        console.print(f"failed: {failure.run}: {failure.error}", style="red", markup=False)
    console.print(f"report: {page}", soft_wrap=True)


@app.command
def train(
    memory: Mechanism,
    data: Task,
    model: Shape = Shape(),
    train: TrainConfig = TrainConfig(),
    budget: Budget = Budget(),
    saving: Saving = Saving(),
    evaluation: EvaluationConfig = EvaluationConfig(),
    mirrors: Mirroring = Mirroring(),
    sharding: Sharding = Sharding(),
    name: str = "run",
    seed: int = 0,
    memory_bytes: int = 0,
    memory_axis: str = "",
    resume: int | None = None,
    processes: Literal["alone", "job"] = "alone",
    results: Path = Path("results/runs"),
) -> None:
    """Trains one model and scores it; a run that was stopped or killed goes on where it was saved. Example:
    `infini-jax train infini mqar --memory.update delta --model.segment 16 --model.key-taps 2 --train.sequence 96`

    Args:
      memory: settings of the mechanism.
      data: settings of the task.
      model: sizes of the transformer.
      train: how it is trained.
      budget: what it may spend.
      saving: when it is saved; its end always is.
      evaluation: what is read of the held-out documents.
      mirrors: trackers that get a copy of the metrics.
      sharding: how the devices share the work.
      name: of the run, and of its folder.
      seed: of the parameters and of the order of the data.
      memory_bytes: the largest memory of at most so many bytes a sequence, all layers together; 0 keeps the settings.
      memory_axis: what grows to fill them, such as key_dim or heads; the mechanism's first axis where none is named.
      resume: step of the checkpoint to go on from, where the newest should not be used; newer ones are deleted.
      processes: job is one process of several, which SLURM, a TPU slice or Open MPI started; all share the run.
      results: folder that gets <name>/config.json, metrics.jsonl, checkpoints and row.parquet.
    """
    sizes = sized(ModelConfig(memory=memory, **dataclasses.asdict(model)), memory_bytes, memory_axis)
    run = RunConfig(name=name, seed=seed, model=sizes, data=data, train=train, budget=budget, evaluation=evaluation)
    if processes == "job":
        join_job()
    else:
        use_cores(train.batch // train.accumulate)
    console = Console(quiet=not is_first())
    with ended_with_the_job(REQUEUE):
        run = with_steps(run, results / name, sharding)
        with train_progress(run, console) as watch:
            row = execute(
                run, results / name, study="", watch=watch, saving=saving, resume=resume, mirroring=mirrors, sharding=sharding
            )
    console.print(tables.key_values(row))


app.command(evaluate)
app.command(generate)
app.command(plan)
app.command(watch)
app.command(compare)
app.command(doctor)


@app.command
def corpus(
    action: tyro.conf.OmitArgPrefixes[
        Annotated[PrepareCorpus, tyro.conf.subcommand("prepare")] | Annotated[ListCorpora, tyro.conf.subcommand("list")]
    ],
) -> None:
    """Lists and prepares corpora. Examples: `infini-jax corpus list`,
    `infini-jax corpus prepare python_stdlib --tokenizer sentencepiece`

    Args:
      action: what to do.
    """
    console = Console()
    if isinstance(action, ListCorpora):
        if action.as_json:
            print_json(corpora_plain())
            return
        console.print(corpora_table(), prepared_table())
        return
    with corpus_progress(action.corpus, console) as watch:
        prepared, is_new = action.run(watch)
    console.print(counts_table(prepared))
    if not is_new:
        console.print("was prepared already: nothing to do")
    console.print(f"train on it: infini-jax train infini corpus --data.name {prepared.folder.name} ...", soft_wrap=True)


@app.command
def mechanisms(model: Shape = Shape(), memory_bytes: int = 0, memory_axis: str = "", context: int = 32_768) -> None:
    """Prints what each mechanism carries and costs, and its compression against a cache of every token.

    Example: `infini-jax mechanisms --memory-bytes 65536 --model.segment 128`

    Args:
      model: sizes of the transformer.
      memory_bytes: size every memory to at most so many bytes a sequence; 0 keeps each one's default.
      memory_axis: list only mechanisms whose memory grows along it, such as heads, and grow them so.
      context: tokens that the full cache of the comparison holds.
    """
    configs = [ModelConfig(memory=mechanism.Config(), **dataclasses.asdict(model)) for mechanism in MECHANISMS.values()]
    if memory_axis:
        configs = [config for config in configs if memory_axis in MECHANISMS[config.mechanism].axes]
        known = {axis for mechanism in MECHANISMS.values() for axis in mechanism.axes}
        require(bool(configs), "memory axis", f"no mechanism grows along '{memory_axis}'", suggestion(memory_axis, known))
    Console().print(tables.mechanism_table([sized(config, memory_bytes, memory_axis) for config in configs], context))


def sized(model: ModelConfig, memory_bytes: int, memory_axis: str) -> ModelConfig:
    """The model with its memory grown along an axis to so many bytes, or as it is where neither is named."""
    require(not memory_axis or memory_bytes != 0, "memory axis", "nothing says how far to grow", "give --memory-bytes, too")
    return model.at_bytes(memory_bytes, memory_axis) if memory_bytes else model


def main(arguments: list[str] | None = None) -> None:
    """Runs a command, or says what to do next without one; a mistake in the settings ends with one line and code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        print(WHAT_NEXT)
        return
    try:
        app.cli(prog="infini-jax", args=arguments, config=(tyro.conf.CascadeSubcommandArgs,))
    except (ConfigError, TrainingDiverged, CheckpointError) as error:
        print(f"infini-jax: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except Stopped as error:
        print(f"infini-jax: {error} and saved{how_to_go_on(arguments)}", file=sys.stderr)
        sys.exit(REQUEUE)
    except BrokenPipeError:  # who read the output, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more is written at the end
        sys.exit(1)
    except (OSError, RuntimeError) as error:
        if (line := disk_fault(error)) is None:
            raise
        print(f"infini-jax: {line}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as error:
        what = str(error) or "stopped; what was finished or saved is kept"
        print(f"infini-jax: {what}{how_to_go_on(arguments)}", file=sys.stderr)
        sys.exit(INTERRUPTED)


def how_to_go_on(arguments: list[str]) -> str:
    """The command that does what is missing, where there is one, as the end of a line."""
    return f"; go on with: infini-jax {shlex.join(arguments)}" if arguments[0] in GOES_ON else ""
