"""Where the runs of a study lie and who is at which: folders, claims, failures.

A run is finished when its row.parquet is there. A claim is a lock that the system releases when its process dies, so that no
two workers, of one study or of two on the same folder, ever do the same run.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from infini_jax.config import RunConfig
from infini_jax.results import ROW_FILE

ERROR_FILE, LOCK_FILE = "error.json", "lock"


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that ended without a result. Attributes: run name; error in one line."""

    run: str
    error: str


@dataclasses.dataclass(frozen=True)
class Desk:
    """Where a study is worked on. Attributes: folder; study name; session, this call's mark on its failures."""

    folder: Path
    study: str
    session: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)

    def of(self, run: RunConfig) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / run.name

    def is_finished(self, run: RunConfig) -> bool:
        return (self.of(run) / ROW_FILE).exists()

    def error(self, run: RunConfig) -> str | None:
        """How the run failed in this call, if it did."""
        file = self.of(run) / ERROR_FILE
        if not file.exists():
            return None
        found = json.loads(file.read_text())
        return found["error"] if found["session"] == self.session else None

    def fail(self, run: RunConfig, error: str, details: str = "") -> None:
        """Notes a failure; the next call tries the run again."""
        self.of(run).mkdir(parents=True, exist_ok=True)
        note = {"session": self.session, "error": error, "details": details}
        (self.of(run) / ERROR_FILE).write_text(json.dumps(note, indent=2) + "\n")

    @contextlib.contextmanager
    def claim(self, run: RunConfig) -> Iterator[bool]:
        """Whether the run is ours to do: not finished, not failed in this call, and nobody else at it."""
        self.of(run).mkdir(parents=True, exist_ok=True)
        with (self.of(run) / LOCK_FILE).open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield not self.is_finished(run) and self.error(run) is None

    def claimed_by(self, run: RunConfig) -> int | None:
        """The process that last took the run."""
        file = self.of(run) / LOCK_FILE
        text = file.read_text() if file.exists() else ""
        return int(text) if text else None
