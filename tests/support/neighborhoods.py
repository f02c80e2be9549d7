"""Every mechanism with every neighborhood that is carried beside its memory, each as a mechanism of the registry."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import ClassVar

from infini_jax.config import Budget, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.devices.sharding import Sharding, layout_of
from infini_jax.memory import MECHANISMS
from infini_jax.memory.base import Memory, Neighborhood, Promise
from tests.support.streams import losses_of, tiny

PARTS = ("inputs", "keys", "values")


def learned(name: str, local: Neighborhood) -> tuple[str, ...]:
    """What a segment's loss trains of the one before.

    A window has a gradient, whatever the memory has; landmark's cache has none, and holds its blocks back for a segment.
    """
    if (name, local) == ("landmark", "cache"):
        return ()
    of_window = ("keys", "values") if local == "window" else ()
    return tuple(part for part in PARTS if part in (*MECHANISMS[name].learns, *of_window))


def copied(name: str, local: Neighborhood) -> dict[Promise, str]:
    """Where keys grow with the memory, those of the neighborhood are no longer small, and are read in one array."""
    grows = MECHANISMS[name].holds == "matrix" and local == "cache"
    return {"reads_without_a_copy": "the neighborhood and the open segment are one array of keys"} if grows else {}


@functools.cache  # models that tests share have the class of its settings
def varied(name: str, local: Neighborhood) -> type[Memory]:
    """The mechanism whose settings have this neighborhood by default."""
    kind = MECHANISMS[name]
    settings = kind.Config().with_local(local)
    changed = [field for field in dataclasses.fields(settings) if getattr(settings, field.name) != field.default]
    fields = [
        (field.name, field.type, dataclasses.field(default=getattr(settings, field.name), metadata=field.metadata))
        for field in changed
    ]
    config = dataclasses.make_dataclass(f"{kind.__name__}{local.title()}Config", fields, bases=(kind.Config,), frozen=True)

    class Varied(kind):
        """A mechanism and its neighborhood."""

        Config = config
        learns = learned(name, local)
        exempt: ClassVar = {**kind.exempt, **copied(name, local)}

    return Varied


CHOICES = {
    f"{name}_{local}": (name, local)
    for name, mechanism in MECHANISMS.items()
    for local in mechanism.neighborhoods
    if local != "segment" or name == "compressive"
}


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """All are in the registry for as long as this is open: other tests count its rows."""
    MECHANISMS.update({name: varied(*choice) for name, choice in CHOICES.items()})
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
        kinds = {"data": Sharding(), "fsdp+tensor": Sharding("fsdp+tensor", 2), "fsdp+slots": Sharding("fsdp+slots", 2)}
        return {"one": losses_of(run)} | {key: losses_of(run, layout_of(run, kind)) for key, kind in kinds.items()}
