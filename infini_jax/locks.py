"""One writer for a folder: a lock that the system releases when its process dies, however it dies, and who holds it.

A lock is a file in what it guards or beside it, never removed; while it is held, its text names the process. On a file system
that several machines share it holds between them, where that file system has locks.
"""

import contextlib
import dataclasses
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from infini_jax.errors import ConfigError, one_line
from infini_jax.files import make_folder

_held: dict[Path, int] = {}  # locks of this process -> the thread that took them


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that holds a lock.

    Attributes:
      pid: its id.
      host: the machine that it runs on.
    """

    pid: int
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @staticmethod
    def here(pid: int) -> "Holder":
        """A process of this machine."""
        return Holder(pid, socket.gethostname())


def holder(file: Path) -> Holder | None:
    """The process that holds a lock, or held it last; None where nobody ever did, or has not said so yet."""
    said = file.read_bytes().decode(errors="replace") if file.exists() else ""
    pid, _, host = said.strip().partition(" ")
    return Holder(int(pid), host) if pid.isdecimal() and host else None


@contextlib.contextmanager
def claimed(file: Path) -> Iterator[bool]:
    """A context that holds the lock `file` where nobody else does; its value tells whether that is so.

    The folder of `file` is made. Raises `ConfigError` where the file system has no locks.
    """
    with _opened(file) as lock:
        if not _taken(lock, file, wait=False):
            yield False
            return
        with _noted(lock, file):
            yield True


@contextlib.contextmanager
def only_writer(file: Path, field: str, what: str, mend: str) -> Iterator[None]:
    """A context that holds the lock `file`; a thread that holds it may enter again.

    Raises `ConfigError` for `field`, with `mend`, where another process writes `what`; the error says who.
    """
    if _held.get(file.resolve()) == threading.get_ident():
        yield
        return
    with claimed(file) as ours:
        if not ours:
            raise ConfigError(field, f"{what} is being written by {_somebody(file)}", mend)
        yield


@contextlib.contextmanager
def awaited(file: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """A context that holds the lock `file`, waited for; `tell` gets a line about who holds it where somebody does.

    Raises `ConfigError` where the file system has no locks.
    """
    with _opened(file) as lock:
        if not _taken(lock, file, wait=False):
            tell(f"waiting for {_somebody(file)}")
            _taken(lock, file, wait=True)
        with _noted(lock, file):
            yield


def _opened(file: Path) -> TextIO:
    """The file, whose text stays until the lock is ours."""
    make_folder(file.parent)
    return file.open("a+")


def _taken(lock: TextIO, file: Path, wait: bool) -> bool:
    """Whether the lock is ours now."""
    import fcntl  # no part of Python on Windows, where this is said when a lock is needed

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        mend = "mount it with locks (Lustre: -o flock), or give another folder"
        raise ConfigError("folder", f"the file system of {file} has no locks ({one_line(error)})", mend) from error
    return True


@contextlib.contextmanager
def _noted(lock: TextIO, file: Path) -> Iterator[None]:
    """A context in which the lock that was taken names this process."""
    ours, place = Holder.here(os.getpid()), file.resolve()
    lock.truncate(0)
    lock.write(f"{ours.pid} {ours.host}\n")
    lock.flush()
    _held[place] = threading.get_ident()
    try:
        yield
    finally:
        del _held[place]


def _somebody(file: Path) -> str:
    return str(holder(file) or "another process")
