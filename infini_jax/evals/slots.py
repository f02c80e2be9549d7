"""Slots that a conversation overwrites: whether the newest value is said, and how often an older one (`stale`)."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import ClassVar

from infini_jax.data.slots import Slots
from infini_jax.evals.suites import SuiteEvaluation
from infini_jax.records.measures import Label


@dataclasses.dataclass(frozen=True)
class SlotsEvaluation(SuiteEvaluation):
    """Overwritten slots by number, overwrites and length.

    Attributes:
      lengths: numbers of tokens of prompt and answer together; none is the length that the run was trained at.
      examples: number of examples per cell of the grid.
      seed: seed of the examples.
      rows: number of examples that are read side by side.
      data: prepared corpus, or file or folder of texts, of whose sentences other turns are, in place of the run's own.
      slots: numbers of slots.
      overwrites: numbers of times that each slot gets another value.
    """

    name: ClassVar[str] = "slots"
    Config: ClassVar[type[Slots]] = Slots
    grid, grid_metric = ("slots", "overwrites", "length"), "score"
    slots: tuple[int, ...] = (4,)
    overwrites: tuple[int, ...] = (0, 1, 4, 16)

    def asked(self) -> Sequence[tuple[Slots, dict[str, Label]]]:
        """A task for each number of slots and overwrites."""
        pairs = itertools.product(self.slots, self.overwrites)
        return [(Slots(slots=slots, overwrites=again), {"slots": slots, "overwrites": again}) for slots, again in pairs]
