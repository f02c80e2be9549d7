"""Scores of a run on held-out data, while it is trained and at its end."""

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from infini_jax.config import RunConfig
from infini_jax.config.evaluation import CARRIED
from infini_jax.data.batch import Split
from infini_jax.data.documents import has_something
from infini_jax.devices.sharding import Sharding
from infini_jax.devices.side_by_side import Learned
from infini_jax.errors import named_line, require
from infini_jax.evals.perplexity import Perplexity, Reader
from infini_jax.model.cost import budget_steps
from infini_jax.training.asking import Asked, Asks
from infini_jax.training.scoring import score_batches

Found = TypeVar("Found")
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class HeldOutScores:
    """Scores of a run on held-out data.

    Attributes:
      loss: nats per scored token of the validation split, NaN where it could not be read.
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

    The test split is read once, at the end, if it has something to score, and only the row hears of it. An evaluation that
    fails costs its figures and nothing else: it is told in one line, and training and the other evaluations go on.

    What is read is asked for (`infini_jax.training.asking`): runs that ask alike are read side by side.

    Attributes:
      failed: split -> error of its last evaluation, for splits whose last evaluation failed.

    Raises:
      ConfigError: there is no data to validate on, or there are no documents by which `keep_best` chooses; raised when this is
        made, not at the end of training.
    """

    def __init__(self, run: RunConfig, log: Callable[[dict[str, float]], None], sharding: Sharding, keep_best: bool = False):
        documents = run.data.whole("validation")
        problem = f"{run.task} has no documents that are read while it is trained"
        require(documents is not None or not run.train.patience, "train.patience", problem, "give 0, or choose a corpus")
        require(documents is not None or not keep_best, "saving.keep_best", problem, "leave it out, or choose a corpus")
        self.run, self.log, self.sharding = run, log, sharding
        self.newest: Perplexity | None = None
        self.failed: dict[Split, Exception] = {}
        self.reader = Reader(run.model, *documents, run.evaluation) if documents else None
        carried = dataclasses.replace(run.evaluation, conditions=(CARRIED,))
        tested = run.data.whole("test") if run.data.has("test") else None
        self.test_reader = Reader(run.model, *tested, carried) if tested and has_something(tested[0].lengths) else None

    def examine(self, step: int) -> Asks[float | None]:
        """Reads the held-out documents and logs their figures; does nothing for tasks without documents.

        Returns the loss with the memory carried, in nats per token; None where nothing was read.
        """
        reader, self.newest = self.reader, None
        if reader and (found := (yield from self._tried("validation", reader.read_each, with_metrics))):
            self.newest, metrics = found
            self.log({"step": step, "tokens": step * self.run.tokens_per_step, **metrics})
        return self.newest.loss() if self.newest else None

    def scores(self) -> Asks[HeldOutScores]:
        """The scores at the end of training."""
        if not self.reader:
            found = yield from self._of_batches("validation")
            tested = yield from self._of_batches("test")
        else:
            found = self.newest and means_of(self.newest)
            reader = self.test_reader
            tested = (yield from self._tried("test", reader.read_each, means_of)) if reader else None
        return HeldOutScores(*(found or (math.nan, math.nan)), *(tested or (None, None)))

    def _of_batches(self, split: Split) -> Asks[tuple[float, float] | None]:
        def read(learned: Learned) -> list[tuple[float, float]]:
            return score_batches(self._alike, learned, split, self.sharding)

        return (yield from self._tried(split, read, lambda found: found))

    @property
    def _alike(self) -> RunConfig:
        """What runs have in common whose held-out data are read alike."""
        return self.run.program(budget_steps(self.run))

    def _tried(self, split: Split, read: Callable[[Learned], Any], figures_of: Callable[[Any], Found]) -> Asks[Found | None]:
        """The figures of what is read of a split, None where reading fails, or making figures of it.

        With several processes the error is raised: one that went on alone would meet the others in the wrong computation.
        """
        self.failed.pop(split, None)
        try:
            return figures_of((yield Asked(read, (split, self._alike))))
        except Exception as error:  # whatever went wrong, what was trained is worth more
            if jax.process_count() > 1:
                raise
            self.failed[split] = error
            logger.warning("evaluation %s: %s; the run goes on without its figures", split, named_line(error))
            return None


def means_of(found: Perplexity) -> tuple[float, float]:
    """(nats per token, accuracy) of documents that were read."""
    return found.loss(), found.accuracy


def with_metrics(found: Perplexity) -> tuple[Perplexity, dict[str, float]]:
    """What was read and its metric line, which is derived from it and may fail as reading may."""
    return found, found.metrics()
