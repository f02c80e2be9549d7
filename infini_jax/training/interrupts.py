"""Signals that announce the end of a process: a run is saved first, and who has nothing to save ends in order.

SIGTERM comes from schedulers and from whoever ends a process, SIGHUP from a terminal or a connection that is closed, SIGINT
from Ctrl-C, and SIGUSR1 or SIGUSR2 from SLURM some time before a job's limit (`sbatch --signal=USR1@120`; submitit asks for
SIGUSR2). A signal that this process was started to ignore, as by nohup, stays ignored.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from infini_jax.errors import Announced, Interrupted, Stopped

Handler = Callable[[int, FrameType | None], None]
ANNOUNCING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)  # Windows has the first one only


@contextlib.contextmanager
def terminated() -> Iterator[Callable[[], bool]]:
    """A context in which signals end nothing; its value tells whether one came. A second Ctrl-C ends the process.

    `Stopped` raised inside gets the signal that came first; after Ctrl-C it leaves the context as `Interrupted`.
    """
    came: list[int] = []
    pressed = threading.Event()

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)

    def press(number: int, _: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        came.append(number)
        pressed.set()
        with contextlib.suppress(OSError):  # of a terminal that is gone
            print("finishing this step, then saving; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)

    handlers: dict[int, Handler] = dict.fromkeys(ANNOUNCING, note)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # workers of a study leave it to their parent
        handlers[signal.SIGINT] = press
    with handled(handlers):
        try:
            yield lambda: bool(came)
        except Stopped as stopped:
            if pressed.is_set():
                raise Interrupted(f"{stopped} and saved") from None
            stopped.signal = came[0] if came else None
            raise


@contextlib.contextmanager
def announced() -> Iterator[None]:
    """A context in which the first signal but Ctrl-C raises `Announced`, for processes that have nothing to save themselves.

    Further ones are not heard: they must not cut short what the first one began.
    """
    came: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:
            raise Announced(signal.Signals(number).name)

    with handled(dict.fromkeys(ANNOUNCING, end)):
        yield


@contextlib.contextmanager
def handled(handlers: dict[int, Handler]) -> Iterator[None]:
    """A context with handlers of signals, but for those that are ignored; outside the main thread nothing can be set."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = {number: handler for number, handler in handlers.items() if signal.getsignal(number) is not signal.SIG_IGN}
    before = {number: signal.signal(number, handler) for number, handler in heard.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
