"""Steps whose gradient is not finite: they are skipped and counted, and a run that does nothing else is stopped."""

import jax
import numpy as np

from infini_jax.devices.queue import keep_close

MOST = 3  # skipped steps one after the other that stop a run: one is chance, these are parameters that cannot be mended


class Skips:
    """Counts the skipped steps of a run over all restarts.

    Attributes:
      total: skipped steps so far.
      in_row: number of the newest of these that came one after the other.
    """

    def __init__(self, total: int, in_row: int):
        self.total, self.in_row, self._waiting, self._steps = total, in_row, [], list[int]()

    def add(self, skipped: jax.Array, steps: int = 1) -> None:
        """Takes what a call of so many steps measured, a boolean of each; waits for an earlier call.

        So no more than a few are under way.
        """
        self._waiting.append(skipped)
        self._steps.append(steps)
        keep_close(self._waiting)

    def count(self) -> None:
        """Counts the steps that were added; waits for the device."""
        for found, steps in zip(jax.device_get(self._waiting), self._steps, strict=True):
            for skipped in np.ravel(found)[:steps]:
                self.in_row = self.in_row + 1 if skipped else 0
                self.total += int(skipped)
        self._waiting.clear()
        self._steps.clear()

    @property
    def are_all(self) -> bool:
        """Whether the newest `MOST` of the counted steps were skipped."""
        return self.in_row >= MOST
