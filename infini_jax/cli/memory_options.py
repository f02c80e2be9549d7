"""Options of the command line that read a run with other settings of its memory than it was trained with."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infini_jax.cli.evaluation_options import given_settings, text_fields
from infini_jax.cli.output import terminal
from infini_jax.config import ModelConfig, RunConfig
from infini_jax.memory import MECHANISMS
from infini_jax.memory.base import MemoryConfig
from infini_jax.memory.full import FullConfig
from infini_jax.records.measures import OTHER_MEMORY
from infini_jax.training.checkpoint import Which
from infini_jax.training.trained import Trained
from infini_jax.units import human_bytes

if TYPE_CHECKING:  # its fields are made from the registry, which a type checker does not know

    class MemoryOptions: ...
else:
    MemoryOptions = dataclasses.make_dataclass("MemoryOptions", text_fields(MECHANISMS.configs()), frozen=True)
MemoryOptions.__doc__ = "Settings of the memory with which the run is read; what is left out stays as it was trained."
AS_TRAINED = MemoryOptions()


def chosen_memory(run: RunConfig, options: Any) -> MemoryConfig:
    """The memory of a run with the settings that were given.

    Raises `ConfigError` for a setting that its mechanism does not have, and a value that it cannot have.
    """
    memory, main = run.model.memory, run.model.memory.main
    return memory.with_main(dataclasses.replace(main, **given_settings(options, run.mechanism, type(main), "memory.")))


def changes(trained: ModelConfig, used: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """(trained, used) values of the memory's settings that differ, by name."""
    before, after = trained.memory.main, used.memory.main
    pairs = {field.name: (getattr(before, field.name), getattr(after, field.name)) for field in dataclasses.fields(before)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def said(trained: ModelConfig, used: ModelConfig) -> str:
    """One line that says with which memory a run was trained, and with which it is read."""
    before, after = ([f"{name} {pair[side]}" for name, pair in changes(trained, used).items()] for side in (0, 1))
    return (
        f"memory: trained with {', '.join(before)} ({human_bytes(trained.memory_bytes)} per sequence), "
        f"used with {', '.join(after)} ({human_bytes(used.memory_bytes)})"
    )


def opened_run(folder: Path, step: Which, config: RunConfig) -> Trained:
    """A trained run, to be read with the memory in `config`; one line says where that is another than it was trained with."""
    trained = Trained.open(folder, step)
    if trained.run == config:
        return trained
    terminal(stderr=True).print(said(trained.run.model, config.model), highlight=False, soft_wrap=True)
    return trained.with_memory(config.model.memory)


def suffix(trained: ModelConfig, used: ModelConfig) -> str:
    """What tells the files of a run read with another memory from its own, such as -slots-64; "" for the memory trained."""

    def text(value: Any) -> str:
        return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return "".join(f"-{name}-{text(after)}" for name, (_, after) in changes(trained, used).items())


def labels(trained: ModelConfig, used: ModelConfig) -> dict[str, float | str]:
    """The labels of figures of a run that was read with another memory; none for the memory trained."""
    changed = {f"memory.{name}": str(after) for name, (_, after) in changes(trained, used).items()}
    return {**changed, OTHER_MEMORY: float(used.memory_bytes)} if changed else {}


def tell_window(model: ModelConfig, tokens: int) -> None:
    """Says in one line what full attention sees of so many tokens, where they are more than it holds."""
    memory = model.memory
    if isinstance(memory, FullConfig) and tokens > memory.slots + model.segment:
        past = model.block.learned_positions
        told = f"memory: of {tokens:,} tokens each sees the last {memory.slots:,}; --memory.slots sets another window"
        told += f"; places past the model's {past:,} are all taken for the last one" if past else ""
        terminal(stderr=True).print(told, highlight=False, soft_wrap=True)
