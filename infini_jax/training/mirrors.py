"""Copies of a run's metrics for trackers, beside metrics.jsonl, which is always written and always whole.

A tracker is never waited for: each has a thread of its own behind a queue that drops its oldest lines when it is full. What a
tracker raises is said in one line and changes nothing in the run; what was not copied is counted and said at the end. Only a
tracker that is not installed is refused, before anything compiles.
"""

import collections
import dataclasses
import importlib.util
import logging
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from infini_jax.config import RunConfig
from infini_jax.errors import check_fields, installs, require, require_file_name
from infini_jax.files import object_or_none, write_json
from infini_jax.training.trackers import TRACKERS, Mirror, Origin

IDENTITY_FILE = "mirrors.json"
QUEUE = 1000  # lines that wait for a tracker at most
CLOSE_SECONDS = 20.0  # that all of them together get at the end of a run

if TYPE_CHECKING:
    Tracker = str
else:  # what the command line offers
    Tracker = Literal[tuple(TRACKERS)]
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Mirroring:
    """Settings of the copies of metrics for trackers. They do not change the run and are no part of its identity.

    Attributes:
      to: trackers, none by default; each needs the extra of its name, such as `pip install 'infini_jax[wandb]'`.
      project: project name in the trackers.
    """

    to: tuple[Tracker, ...] = ()
    project: str = "infini_jax"

    def __post_init__(self):
        check_fields("mirrors", self, to=TRACKERS)
        require_file_name("mirrors.project", self.project)

    def check(self) -> None:
        """Checks the settings: raises `ConfigError` for a tracker that is not installed."""
        for name in self.to:
            missing = [module for module in TRACKERS[name].needs if importlib.util.find_spec(module) is None]
            require(not missing, "mirrors.to", f"{name} is not installed", installs(name))


class Mirrors:
    """The trackers of one run, a context that closes them. Raises `ConfigError` when made, where one is not installed."""

    def __init__(self, mirroring: Mirroring):
        mirroring.check()
        self.mirroring, self._relays = mirroring, []

    def begin(self, run: RunConfig, folder: Path, after: int) -> None:
        """Opens the trackers, each in its own thread, for lines of the steps after `after`."""
        if self.mirroring.to:
            source = Origin(identity(folder, run), run.name, self.mirroring.project, folder.absolute(), run.to_dict(), after)
            self._relays = [Relay(name, TRACKERS[name](), source) for name in dict.fromkeys(self.mirroring.to)]

    def log(self, line: dict[str, float]) -> None:
        """Hands a metric line to all trackers; returns at once."""
        for relay in self._relays:
            relay.log(line)

    def __enter__(self) -> "Mirrors":
        return self

    def __exit__(self, *_: object) -> None:
        for relay in self._relays:
            relay.end()
        until = time.monotonic() + CLOSE_SECONDS
        for relay in self._relays:
            relay.join(until)


def identity(folder: Path, run: RunConfig) -> str:
    """The id of a run in all trackers, made once and kept in its folder, so that a run that goes on keeps it.

    A damaged file is made again, with a new id.
    """
    file = folder / IDENTITY_FILE
    found = (object_or_none(file) or {}).get("id")
    if isinstance(found, str):
        return found
    made = f"{run.name[:64]}-{uuid.uuid4().hex[:8]}"
    write_json({"id": made}, file, indent=None)
    return made


class Relay:
    """The thread that talks to one tracker, and the lines that wait for it."""

    def __init__(self, name: str, mirror: Mirror, source: Origin):
        self.name, self.mirror, self.source = name, mirror, source
        self._lines: collections.deque[dict[str, float]] = collections.deque()
        self._changed = threading.Condition()
        self._ended = self._warned = False
        self._given = self._copied = 0
        self._thread = threading.Thread(target=self._work, name=f"mirror {name}", daemon=True)
        self._thread.start()

    def log(self, line: dict[str, float]) -> None:
        """Puts a line into the queue; where the queue is full, its oldest line is dropped."""
        with self._changed:
            self._given += 1
            if len(self._lines) == QUEUE:
                self._lines.popleft()
            self._lines.append(line)
            self._changed.notify()

    def end(self) -> None:
        """Tells the thread that no line follows."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def join(self, until: float) -> None:
        """Waits for the tracker until a moment of `time.monotonic`, and logs a warning about lines that it did not get."""
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._warn("does not answer")
        lost = self._given - self._copied
        if lost:
            logger.warning("mirror %s: %d of %d lines were not copied; metrics.jsonl has them", self.name, lost, self._given)

    def _work(self) -> None:
        """The thread's body: opens the tracker, copies lines until the end, closes it."""
        if not self._tried(lambda: self.mirror.open(self.source)):
            return
        while (line := self._next()) is not None:
            values: dict[str, float] = {
                name: value for name, value in line.items() if name != "step" and isinstance(value, int | float)
            }
            self._copied += self._tried(lambda step=int(line["step"]), values=values: self.mirror.log(step, values))
        self._tried(self.mirror.close)

    def _next(self) -> dict[str, float] | None:
        """The next line of the queue, waited for; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._ended)
            return self._lines.popleft() if self._lines else None

    def _tried(self, call: Callable[[], None]) -> bool:
        """Whether a call of the tracker succeeded.

        A library may raise anything, `SystemExit` and `KeyboardInterrupt` included.
        """
        try:
            call()
        except BaseException as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            self._warn(f"{first} ({type(error).__name__})")
            return False
        return True

    def _warn(self, problem: str) -> None:
        """Logs the tracker's first problem; later ones are not logged."""
        if not self._warned:
            self._warned = True
            logger.warning("mirror %s: %s; the run goes on, metrics.jsonl has every line", self.name, problem)
