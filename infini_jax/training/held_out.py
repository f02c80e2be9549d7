"""Scores of a run on held-out data, while it is trained and at its end."""

import dataclasses
from collections.abc import Callable

from infini_jax.config import RunConfig
from infini_jax.config.evaluation import CARRIED
from infini_jax.devices.sharding import Sharding
from infini_jax.evals.perplexity import Reader, has_something
from infini_jax.model.cost import budget_steps
from infini_jax.training.scoring import make_evaluate


@dataclasses.dataclass(frozen=True)
class HeldOutScores:
    """Scores of a run on held-out data.

    Attributes:
      loss: nats per scored token of the validation split.
      accuracy: share of right predictions on the validation split.
      test_loss: nats per scored token of the test split, None without one.
      test_accuracy: share of right predictions on the test split, None without one.
    """

    loss: float
    accuracy: float
    test_loss: float | None
    test_accuracy: float | None


class HeldOut:
    """The scoring of a run on held-out data: whole documents while it is trained, or batches at its end without documents.

    The test split is read once, at the end, if it has something to score, and only the row hears of it.

    Raises:
      ConfigError: there is no data to validate on; raised when this is made, not at the end of training.
    """

    def __init__(self, run: RunConfig, log: Callable[[dict[str, float]], None], sharding: Sharding):
        documents = run.data.whole("validation")
        self.run, self.log, self.sharding, self.newest = run, log, sharding, None
        self.reader = documents and Reader(run.model, *documents, run.evaluation)
        carried = dataclasses.replace(run.evaluation, conditions=(CARRIED,))
        tested = run.data.whole("test") if run.data.has("test") else None
        self.test_reader = Reader(run.model, *tested, carried) if tested and has_something(tested[0].lengths) else None

    def examine(self, step: int, params: dict) -> None:
        """Reads the held-out documents and logs their figures; does nothing for tasks without documents."""
        if self.reader:
            self.newest = self.reader.read(params)
            self.log({"step": step, "tokens": step * self.run.tokens_per_step, **self.newest.metrics()})

    def scores(self, params: dict) -> HeldOutScores:
        """The scores at the end of training."""
        if not self.newest:
            evaluate = make_evaluate(self.run.program(budget_steps(self.run)), self.sharding)
            return HeldOutScores(*evaluate(params, "validation"), *evaluate(params, "test"))
        tested = self.test_reader and self.test_reader.read(params)
        found = (tested.loss(), tested.accuracy) if tested else (None, None)
        return HeldOutScores(self.newest.loss(), self.newest.accuracy, *found)
