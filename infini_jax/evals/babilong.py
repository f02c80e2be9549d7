"""BABILong's first ten tasks by length (arXiv 2406.10149), scored by its exact match in the text."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from infini_jax.data.babi import TASKS, Babilong
from infini_jax.evals.suites import SuiteEvaluation
from infini_jax.records.measures import Label


@dataclasses.dataclass(frozen=True)
class BabilongEvaluation(SuiteEvaluation):
    """BABILong by task and length.

    Attributes:
      lengths: numbers of tokens of prompt and answer together; none is the length that the run was trained at.
      examples: number of examples per task and length.
      seed: seed of the examples.
      rows: number of examples that are read side by side.
      data: prepared corpus, or file or folder of texts, among whose sentences the facts stand, in place of the run's own.
      kinds: tasks by bAbI's numbers, qa1 to qa10; none is all.
    """

    name: ClassVar[str] = "babilong"
    Config: ClassVar[type[Babilong]] = Babilong
    kinds: tuple[str, ...] = ()

    def asked(self) -> Sequence[tuple[Babilong, dict[str, Label]]]:
        """The tasks that are asked, by their numbers."""
        return [(Babilong(kind), {"kind": kind}) for kind in self.kinds or TASKS]
