"""Mechanisms of tests in the registry, and what several devices make of them."""

import contextlib
from collections.abc import Iterator, Mapping

from infini_jax.config import Budget, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.devices.sharding import Sharding, layout_of
from infini_jax.memory import MECHANISMS
from infini_jax.memory.base import Memory
from tests.support.streams import losses_of, tiny


def without_stream() -> list[str]:
    """Names of the mechanisms that leave the residual stream as it is: they can stand alone, or beside attention."""
    return [name for name, mechanism in MECHANISMS.items() if not mechanism.works_on_stream()]


@contextlib.contextmanager
def in_the_registry(made: Mapping[str, type[Memory]]) -> Iterator[None]:
    """They are in the registry for as long as this is open: other tests count its rows."""
    MECHANISMS.update(made)
    try:
        yield
    finally:
        for name in made:
            del MECHANISMS[name]


def losses_spread(name: str, *rules: str) -> dict[str, list[float]]:
    """Losses of three training steps on one device, over the data, and on four devices by each of the rules."""
    model = tiny(name)
    train = TrainConfig(batch=4, sequence=2 * model.segment, learning_rate=1e-2)
    run = RunConfig(model=model, data=MqarConfig(pairs=4, symbols=32), train=train, budget=Budget("steps", 3))
    kinds = {"data": Sharding()} | {rule: Sharding(rule, 2) for rule in rules}
    return {"one": losses_of(run)} | {key: losses_of(run, layout_of(run, kind)) for key, kind in kinds.items()}
