"""`infini-jax train`: one run, whose settings are all options."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro

from infini_jax.cli import tables
from infini_jax.cli.model_options import Shape, made, sized
from infini_jax.cli.output import REQUEUE, terminal
from infini_jax.cli.progress import train_progress
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.config.attach import Attachment, attached
from infini_jax.config.evaluation import EvaluationConfig
from infini_jax.data import SOURCES
from infini_jax.devices.processes import ended_with_the_job, is_first, join_job
from infini_jax.devices.sharding import Sharding, use_cores
from infini_jax.errors import require, required
from infini_jax.memory import MECHANISMS
from infini_jax.memory.base import MemoryConfig
from infini_jax.model.parts import parts_of
from infini_jax.records.folder import MODELS, RunFolder
from infini_jax.training.checkpoint import Saving, Which
from infini_jax.training.execute import execute
from infini_jax.training.mirrors import Mirroring
from infini_jax.training.origin import begun_from, inheritance_of
from infini_jax.training.trained import saved_config

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
    memory_bytes: int = 0,
    memory_axis: str = "",
    origin: Annotated[Path | None, tyro.conf.arg(name="from")] = None,
    origin_step: Annotated[Which, tyro.conf.arg(name="from-step")] = None,
    attach: Attachment | None = None,
    window: int = 0,
    resume: int | None = None,
    processes: Literal["alone", "job"] = "alone",
    results: Path = Path("results/runs"),
) -> None:
    """Trains one model and scores it; a run that was stopped or killed goes on from its last checkpoint. Example:
    `infini-jax train infini mqar --memory.update delta --model.segment 16 --model.key-taps 2 --train.sequence 96`

    Args:
      memory: settings of the mechanism.
      data: settings of the task.
      model: sizes of the transformer.
      train: settings of training.
      budget: limit of the run.
      saving: times at which the run is saved; its end always is.
      evaluation: settings of reading the held-out documents.
      mirrors: trackers that get a copy of the metrics.
      sharding: how the devices share the work.
      name: name of the run, and of its folder.
      seed: seed of the parameters and of the order of the data.
      memory_bytes: most bytes of memory per sequence, all layers together, to which the memory is grown; 0 keeps the settings.
      memory_axis: axis along which the memory grows, such as key_dim or heads; the mechanism's first where none is named.
      origin: folder of another run, or name of an imported model, at whose learned parameters (their moving average where it
        has one) this one begins. Optimizer and schedule begin anew. Memory, data, budget and segments may differ; sizes and
        tokenizer may not.
      origin_step: step of the other run's checkpoint, or best for that of its lowest validation loss; by default the newest.
      attach: how the memory is given to the model of that run, whose sizes and tokenizer stay: add leaves its function as it
        is before training, replace puts the memory in the place of attention. memory.layers are the layers that get it.
      window: tokens that the attention of that model sees where it stays; by default as many as it was trained to see.
      resume: step of the checkpoint to go on from, where the newest should not be used; newer ones are deleted.
      processes: job is one process of several, which SLURM, a TPU slice or Open MPI started; all share the run.
      results: folder that gets <name>/config.json, metrics.jsonl, checkpoints and row.parquet.
    """
    if attach is None:
        require(window == 0, "window", "no memory is attached", "give --attach, too")
        sizes = made(memory, model)
    else:
        origin = required(origin, "attach", "no model is named that gets the memory", "give --from, too")
        sizes = attached_to(found_run(origin), results / name, memory, attach, window, model)
    sizes = sized(sizes, memory_bytes, memory_axis)
    given = {"data": data, "train": train, "budget": budget, "evaluation": evaluation}
    run = RunConfig(name=name, variant=attach or "", seed=seed, model=sizes, **given)
    if origin is None:
        require(origin_step is None, "from-step", "no run is named", "give --from, too")
    else:
        run = begun_from(run, found_run(origin), origin_step, results / name)
    if processes == "job":
        join_job()
    else:
        use_cores(train.batch // train.accumulate)
    console = terminal(quiet=not is_first())
    if run.origin and (found := inheritance_of(run)):
        console.print(f"{name} begins at the parameters of {run.origin.said}: {found.said}", highlight=False, soft_wrap=True)
    if run.train.trains != "all":
        trained, frozen = parts_of(run).counts
        console.print(
            f"{name} trains {trained:,} parameters, and leaves {frozen:,} as they are", highlight=False, soft_wrap=True
        )
    with ended_with_the_job(REQUEUE), train_progress(run, results / name, console) as watch:
        row = execute(
            run, results / name, study="", watch=watch, saving=saving, resume=resume, mirroring=mirrors, sharding=sharding
        )
    console.print(tables.key_values(row))


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
