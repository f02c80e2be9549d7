"""Answers to what a run asks for, where no seat gives them."""

from collections.abc import Callable

from infini_jax.devices.side_by_side import OneModel, read_alone
from infini_jax.training.asking import Asks, Result
from infini_jax.training.loop import Examine


def answered(asks: Asks[Result], learned: OneModel) -> Result:
    """The result of what asks for readings, made with one model's parameters."""
    try:
        asked = next(asks)
        while True:
            asked = asks.send(read_alone(learned, asked.read))
    except StopIteration as end:
        return end.value


def noted_by(note: Callable[[int], float | None]) -> Examine:
    """The `Examine` that asks for nothing and returns what `note` says of a step."""

    def examine(step: int) -> Asks[float | None]:
        yield from ()
        return note(step)

    return examine
