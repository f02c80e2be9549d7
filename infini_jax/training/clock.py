"""The clock of training: seconds that pass while steps are taken, but for pauses, such as reading held-out documents."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Seconds since this was made, but for pauses; runs that take their steps together share one."""

    def __init__(self):
        self._began, self._pauses, self._paused_at = time.perf_counter(), 0, 0.0

    def __call__(self) -> float:
        """Seconds that have passed; they stand still in a pause."""
        return (self._paused_at if self._pauses else time.perf_counter()) - self._began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which the clock stands still; a pause may be inside another one."""
        if not self._pauses:
            self._paused_at = time.perf_counter()
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            if not self._pauses:
                self._began += time.perf_counter() - self._paused_at
