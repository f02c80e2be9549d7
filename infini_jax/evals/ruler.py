"""RULER's thirteen tasks by length (arXiv 2404.06654), by its scores: the share of references said, for qa any of them."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from infini_jax.data.ruler import QUESTIONS, TASKS, Ruler
from infini_jax.evals.suites import SuiteEvaluation
from infini_jax.records.measures import Label


@dataclasses.dataclass(frozen=True)
class RulerEvaluation(SuiteEvaluation):
    """RULER by task and length.

    Attributes:
      lengths: numbers of tokens of prompt and answer together; none is the length that the run was trained at.
      examples: number of examples per task and length.
      seed: seed of the examples.
      rows: number of examples that are read side by side.
      data: prepared corpus, or file or folder of texts, that stands for the essays, in place of the run's own documents.
      kinds: tasks by RULER's names; none is all that need no file, and those whose file is given.
      squad: JSON file of SQuAD 2.0, the questions of qa_1.
      hotpot: JSON file of HotpotQA, the questions of qa_2.
    """

    name: ClassVar[str] = "ruler"
    Config: ClassVar[type[Ruler]] = Ruler
    kinds: tuple[str, ...] = ()
    squad: str = ""
    hotpot: str = ""

    def asked(self) -> Sequence[tuple[Ruler, dict[str, Label]]]:
        """The tasks that are asked, by their names."""
        files = zip(QUESTIONS, (self.squad, self.hotpot), strict=True)
        kinds = self.kinds or (*TASKS, *(kind for kind, file in files if file))
        return [(Ruler(kind, self.squad, self.hotpot), {"kind": kind}) for kind in kinds]
