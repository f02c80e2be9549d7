"""Every mechanism with every neighborhood that is carried beside its memory, each as a mechanism of the registry."""

import contextlib
import dataclasses
import functools
from typing import ClassVar

from infini_jax.memory import MECHANISMS
from infini_jax.memory.base import Memory, Neighborhood, Promise
from tests.support.registering import in_the_registry, losses_spread

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


def registered() -> contextlib.AbstractContextManager[None]:
    """All are in the registry for as long as this is open."""
    return in_the_registry({name: varied(*choice) for name, choice in CHOICES.items()})


def losses(name: str) -> dict[str, list[float]]:
    """Losses of three training steps on one device and on four, by layout."""
    with registered():
        return losses_spread(name, "fsdp+tensor", "fsdp+slots")
