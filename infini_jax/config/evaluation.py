"""Settings of an evaluation on held-out documents: how much of them is read, and with which memory."""

import dataclasses
from typing import Literal, get_args

from infini_jax.errors import check_fields, require

Condition = Literal["carried", "reset", "another"]
CARRIED, RESET, ANOTHER = CONDITIONS = get_args(Condition)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Settings of reading held-out documents, see `infini_jax.evals.perplexity`.

    Attributes:
      documents: number of documents, spread evenly over the split; 0 is all of them.
      tokens: number of tokens per document, from the first; 0 is all of them.
      rows: number of documents read side by side.
      conditions: memory conditions: carried, and for comparison reset and another (document's). Each one costs the same again.
    """

    documents: int = 8
    tokens: int = 8192
    rows: int = 8
    conditions: tuple[Condition, ...] = CONDITIONS

    def __post_init__(self):
        check_fields("evaluation", self)
        require(self.documents >= 0, "evaluation.documents", f"{self.documents} is negative", "give 0 for all of them")
        require(
            self.tokens == 0 or self.tokens >= 2,
            "evaluation.tokens",
            f"{self.tokens} tokens of a document leave none to predict",
            "give at least 2, or 0 for all of them",
        )
        require(self.rows >= 1, "evaluation.rows", f"{self.rows} is not above zero", "give at least 1")
        require(CARRIED in self.conditions, "evaluation.conditions", "carried is missing", "name it too")
        require(
            self.rows >= 2 or ANOTHER not in self.conditions,
            "evaluation.rows",
            "one row has no other document's memory to read",
            "give at least 2, or leave 'another' out of the conditions",
        )
