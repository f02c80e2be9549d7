"""`infini-jax train`: one run, whose settings are all options."""

import contextlib
import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro

from infini_jax.cli import tables
from infini_jax.cli.model_options import Shape, made, sized
from infini_jax.cli.output import REQUEUE, terminal
from infini_jax.cli.progress import train_progress
from infini_jax.cli.run_file import run_file_text, without_options
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.config.attach import Attachment, attached
from infini_jax.config.evaluation import EvaluationConfig
from infini_jax.config.pattern import Pattern, patterned
from infini_jax.data import SOURCES
from infini_jax.devices.processes import ended_with_the_job, is_first, join_job
from infini_jax.devices.sharding import Sharding, use_cores
from infini_jax.errors import ConfigError, require, required
from infini_jax.evals.language import LanguageEvaluation
from infini_jax.evals.registry import EVALUATIONS
from infini_jax.memory import MECHANISMS
from infini_jax.memory.base import MemoryConfig
from infini_jax.model.parts import parts_of
from infini_jax.records.folder import MODELS, RunFolder
from infini_jax.training.checkpoint import Saving, Which
from infini_jax.training.execute import execute
from infini_jax.training.mirrors import Mirroring
from infini_jax.training.origin import begun_from, inheritance_of
from infini_jax.training.trained import saved_config

COMMON = (  # what --help shows; --help-all shows all
    "name",
    "results",
    "seed",
    "config",
    "print_config",
    "memory_bytes",
    "model.layers",
    "model.d_model",
    "model.segment",
    "train.batch",
    "train.sequence",
    "train.learning_rate",
    "budget.unit",
    "budget.amount",
)
CHOSEN = ("segment", "compute")  # of a model that gets a memory; all else is its own


def one_of(settings: dict[str, type]) -> Any:
    """A type whose value is one of the settings classes, chosen on the command line by its registry name."""
    return Union[tuple(Annotated[kind, tyro.conf.subcommand(name, prefix_name=False)] for name, kind in settings.items())]  # noqa: UP007


if TYPE_CHECKING:  # what follows is made from the registries, of which a type checker knows the bases
    from infini_jax.data.base import DataConfig as Task
    from infini_jax.memory.base import MemoryConfig as Mechanism
else:
    Mechanism = one_of(MECHANISMS.configs())
    Task = one_of(SOURCES)


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
    config: Path | None = None,
    print_config: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    memory_bytes: int = 0,
    memory_axis: str = "",
    pattern: str = "",
    origin: Annotated[Path | None, tyro.conf.arg(name="from")] = None,
    origin_step: Annotated[Which, tyro.conf.arg(name="from-step")] = None,
    attach: Attachment | None = None,
    window: int = 0,
    resume: int | None = None,
    processes: Literal["alone", "job"] = "alone",
    results: Path = Path("results/runs"),
) -> None:
    """Train one model and score it. A stopped or killed run continues from its last checkpoint.

    Examples:
    `infini-jax train infini mqar --memory.update delta --model.segment 16 --model.key-taps 2 --train.sequence 96`,
    `infini-jax train infini python_stdlib --budget.amount 200 --print-config`

    Args:
      memory: memory mechanism.
      data: task or corpus.
      model: sizes of the transformer.
      train: optimization and batches.
      budget: when training ends.
      saving: when checkpoints are saved; the end of a run always is.
      evaluation: reading of held-out documents.
      mirrors: trackers that get a copy of the metrics.
      sharding: how devices share the work.
      name: name of the run and of its folder.
      seed: seed of the parameters and of the data order.
      config: YAML or JSON file with the settings of a run. Another run's config.json is one. Options take precedence.
        MEMORY and DATA may be left out.
      print_config: print the settings as YAML, and exit. --config reads them.
      memory_bytes: largest memory that fits in this many bytes per sequence. All layers together; 0 keeps the settings.
      memory_axis: axis along which the memory grows, such as key_dim or heads. Default: the mechanism's first axis.
      pattern: layers of two mechanisms, MEMORY and another one with its default settings, as a pattern that repeats, such as
        "3 gated_delta : 1 memorizing". --config may have other settings of the second one, in model.elsewhere.
      origin: run, or name of an imported model, whose learned parameters (the moving average, if there is one) initialize this
        run. Optimizer and schedule start anew. Memory, data, budget and segments may differ; sizes and tokenizer may not.
      origin_step: checkpoint of that run, by step, or best for its lowest validation loss. Default: the newest.
      attach: how the memory is attached to the model of that run. add leaves the model's function unchanged before training;
        replace puts the memory in the place of attention. memory.layers selects the layers.
      window: attention window of that model in tokens, where its attention stays. Default: its context in training.
      resume: checkpoint to resume from, by step, instead of the newest; newer ones are deleted.
      processes: alone, or job for one of several processes started by SLURM, a TPU slice or Open MPI.
      results: parent of the run's folder. The run's folder gets config.json, metrics.jsonl, checkpoints and row.parquet.
    """
    given = without_options(config)
    mixed = Pattern.of(pattern) if pattern else None
    if attach is None:
        require(window == 0, "window", "no memory is attached", "give --attach, too")
        sizes, more = made(memory, model, data.vocab), given.model
        if mixed:
            sizes = patterned(sizes, mixed, more.get("elsewhere"))
            more = {**more, "elsewhere": sizes.elsewhere}
        sizes = dataclasses.replace(sizes, **more)
    else:
        require(mixed is None, "pattern", "a memory is attached to the layers of a model", "name them in memory.layers")
        origin = required(origin, "attach", "no model is named that gets the memory", "give --from, too")
        sizes = attached_to(found_run(origin), results / name, memory, attach, window, model)
    sizes = sized(sizes, memory_bytes, memory_axis)
    run = RunConfig(
        name=name, seed=seed, model=sizes, data=data, train=train, budget=budget, evaluation=evaluation, **given.run
    )
    if variant := attach or (mixed and mixed.said(run.mechanism)):
        run = dataclasses.replace(run, variant=variant)
    if origin is None:
        require(origin_step is None, "from-step", "no run is named", "give --from, too")
    else:
        run = begun_from(run, found_run(origin), origin_step, results / name)
    if print_config:
        print(run_file_text(run.to_dict()), end="")
        return
    if processes == "job":
        join_job()
    else:
        use_cores(train.batch // train.accumulate)
    console = terminal(quiet=not is_first())
    for line in begins(run):
        console.print(line, highlight=False, soft_wrap=True)
    with ended_with_the_job(REQUEUE), train_progress(run, results / name, console) as watch:
        row = execute(
            run, results / name, study="", watch=watch, saving=saving, resume=resume, mirroring=mirrors, sharding=sharding
        )
    console.print(tables.result(row, results / name))
    console.print(f"next: {next_step(run, results / name)}", highlight=False, soft_wrap=True)


def begins(run: RunConfig) -> Iterator[str]:
    """Lines about where a run starts, and which parameters it trains, where that is not all of them from scratch."""
    if run.origin and (found := inheritance_of(run)):
        yield f"{run.name} starts from the parameters of {run.origin.said}: {found.said}"
    if run.train.trains != "all":
        trained, frozen = parts_of(run).counts
        yield f"{run.name} trains {trained:,} parameters; {frozen:,} stay frozen"


def next_step(run: RunConfig, folder: Path) -> str:
    """The command that evaluates a run on what it was trained for: held-out documents, or its own task."""
    place = shlex.quote(str(folder))
    for name in (LanguageEvaluation.name, run.task):
        with contextlib.suppress(ConfigError, LookupError):
            EVALUATIONS[name]().check(run)
            return f"infini-jax evaluate {place}" + (f" --task {name}" if name != LanguageEvaluation.name else "")
    return f"infini-jax evaluate {place} --help"


def found_run(path: Path) -> Path:
    """The folder of a run; of an imported model its name alone will do, also where its files lie here under that name."""
    is_name = len(path.parts) == 1 and not RunFolder(path).checkpoints.is_dir()
    return MODELS / path if is_name and ((MODELS / path).is_dir() or not path.exists()) else path


def attached_to(origin: Path, own: Path, memory: MemoryConfig, how: Attachment, window: int, shape: Shape) -> ModelConfig:
    """The model of a run with a memory attached to it.

    Args:
      origin: folder of the run.
      own: folder of the run that begins there, whose settings do where it was begun and the other one is gone.
      memory, how, window: as `infini_jax.config.attach.attached` takes them.
      shape: sizes that were given, of which segment and compute are chosen.

    Raises `ConfigError` where the folder is no run's, another size was given, or the memory cannot be attached.
    """
    is_there = RunFolder(origin).config.is_file() or not RunFolder(own).config.is_file()
    model, default = saved_config(origin if is_there else own, "from").model, ModelConfig()
    for name, value in vars(shape).items():
        theirs = getattr(model, name)
        is_theirs = name in CHOSEN or value in (None, getattr(default, name), theirs)
        require(is_theirs, f"model.{name}", f"{value} is not {theirs}, as {origin} has it", "leave it out")
    compute = model.compute if shape.compute == default.compute else shape.compute
    return dataclasses.replace(attached(model, memory, how, window, shape.segment or model.segment), compute=compute)
