"""What readings of held-out documents have said of a run so far: which was best, and whether the run should stop early."""

import dataclasses

from infini_jax.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Standing:
    """The standing of a run after some readings of its validation documents.

    Attributes:
      best_step: step of the lowest validation loss, 0 before the first reading.
      best_loss: lowest validation loss, nats per token; None before the first reading.
      bar: loss of the last reading that counted as an improvement.
      waited: number of readings since then.
    """

    best_step: int = 0
    best_loss: float | None = None
    bar: float | None = None
    waited: int = 0

    def after(self, step: int, loss: float | None, improvement: float) -> "Standing":
        """The standing after another reading; one that failed, None, counts for nothing, and a loss that is NaN is no fall."""
        if loss is None:
            return self
        best = (step, loss) if self.best_loss is None or loss < self.best_loss else (self.best_step, self.best_loss)
        is_lower = self.bar is None or loss < self.bar - improvement
        return Standing(*best, loss if is_lower else self.bar, 0 if is_lower else self.waited + 1)

    def why_stopped(self, train: TrainConfig) -> str | None:
        """The reason to stop early in words, None to go on."""
        if not train.patience or self.waited < train.patience:
            return None
        by = f" by more than {train.improvement:g}" if train.improvement else ""
        return (
            f"validation loss did not fall{by} in {self.waited} readings; lowest {self.best_loss:.4g} at step {self.best_step}"
        )
