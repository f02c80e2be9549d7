"""Every mechanism beside native attention, each as a mechanism of the registry."""

import contextlib
import dataclasses
import functools
from typing import ClassVar

from infini_jax.memory import MECHANISMS
from infini_jax.memory.base import Memory
from infini_jax.memory.beside import Beside, BesideConfig
from infini_jax.memory.local import LocalConfig
from tests.support.registering import in_the_registry, losses_spread, without_stream

PARTS = ("inputs", "keys", "values")
NATIVE = ("local", "full")
CHOICES = {f"{name}_beside": name for name in without_stream() if name not in NATIVE}


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
        keeps_bfloat16 = kind.keeps_bfloat16

        @classmethod
        def resized(cls, config, dims, size, axis=""):
            main, dims = kind.resized(config.added, dims, size, axis or kind.axes[0])
            return config.with_main(main), dims

    return Both


def registered() -> contextlib.AbstractContextManager[None]:
    """All are in the registry for as long as this is open."""
    return in_the_registry({name: beside(of) for name, of in CHOICES.items()})


def losses(name: str) -> dict[str, list[float]]:
    """Losses of three training steps on one device and on four, by layout."""
    with registered():
        return losses_spread(name, "fsdp+tensor")
