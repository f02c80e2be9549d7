"""Steps whose gradient is not finite: they are skipped and counted, and a run that does nothing else is stopped."""

import jax

MOST = 10  # skipped steps one after the other, behind which a run is stopped


class Skips:
    """Counts the skipped steps of a run over all restarts; `total` is the number before the first step at hand."""

    def __init__(self, total: int):
        self.total, self._in_row, self._waiting = total, 0, []

    def add(self, skipped: jax.Array) -> None:
        """Takes what a step measured, a boolean; waits for nothing."""
        self._waiting.append(skipped)

    def count(self) -> int:
        """The skipped steps so far; waits for the device."""
        for skipped in jax.device_get(self._waiting):
            self._in_row = self._in_row + 1 if skipped else 0
            self.total += int(skipped)
        self._waiting.clear()
        return self.total

    @property
    def are_all(self) -> bool:
        """Whether the newest `MOST` of the counted steps were skipped."""
        return self._in_row >= MOST
