"""Every mechanism beside native attention, each as a mechanism of the registry."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import ClassVar

from infini_jax.config import Budget, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.devices.sharding import Sharding, layout_of
from infini_jax.memory import MECHANISMS
from infini_jax.memory.base import Memory
from infini_jax.memory.beside import Beside, BesideConfig
from infini_jax.memory.local import LocalConfig
from tests.support.streams import losses_of, tiny

PARTS = ("inputs", "keys", "values")
NATIVE = ("local", "full")
CHOICES = {f"{name}_beside": name for name in MECHANISMS if name not in NATIVE}


@functools.cache  # models that tests share have the class of its settings
def beside(name: str) -> type[Memory]:
    """The mechanism beside attention to a window."""
    kind = MECHANISMS[name]
    parts = {"native": LocalConfig(window=6), "added": kind.Config()}
    fields = [(part, type(settings), dataclasses.field(default=settings)) for part, settings in parts.items()]
    config = dataclasses.make_dataclass(f"{kind.__name__}BesideConfig", fields, bases=(BesideConfig,), frozen=True)

    class Both(Beside):
        """Native attention and a mechanism."""

        Config = config
        summary, paper, axes, holds = kind.summary, kind.paper, kind.axes, kind.holds
        gates = tuple(("added", *path) for path in kind.gates)
        no_decay = tuple(("added", *path) for path in kind.no_decay)
        parameter_axes: ClassVar = {("added", *path): axes for path, axes in kind.parameter_axes.items()}
        learns = tuple(part for part in PARTS if part in (*kind.learns, "keys", "values"))
        exempt: ClassVar = kind.exempt
        honors = kind.honors

        @classmethod
        def resized(cls, config, dims, size, axis=""):
            main, dims = kind.resized(config.added, dims, size, axis or kind.axes[0])
            return config.with_main(main), dims

    return Both


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """All are in the registry for as long as this is open: other tests count its rows."""
    MECHANISMS.update({name: beside(of) for name, of in CHOICES.items()})
    try:
        yield
    finally:
        for name in CHOICES:
            del MECHANISMS[name]


def losses(name: str) -> dict[str, list[float]]:
    """Losses of three training steps on one device and on four, by layout."""
    with registered():
        model = tiny(name)
        train = TrainConfig(batch=4, sequence=2 * model.segment, learning_rate=1e-2)
        run = RunConfig(model=model, data=MqarConfig(pairs=4, symbols=32), train=train, budget=Budget("steps", 3))
        kinds = {"data": Sharding(), "fsdp+tensor": Sharding("fsdp+tensor", 2)}
        return {"one": losses_of(run)} | {key: losses_of(run, layout_of(run, kind)) for key, kind in kinds.items()}
