"""Signals that end a run after it is saved."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from infini_jax.errors import Interrupted, Stopped


@contextlib.contextmanager
def terminated() -> Iterator[Callable[[], bool]]:
    """A context in which SIGTERM and Ctrl-C end nothing; its value tells whether one came. A second Ctrl-C ends the process.

    A scheduler sends SIGTERM some time before it takes the machine away. `Stopped` raised inside after Ctrl-C leaves the
    context as `Interrupted`.
    """
    came, pressed = threading.Event(), threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set  # handlers can only be set in the main thread
        return

    def press(*_) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        print("stopping behind the step under way; Ctrl-C again stops at once", file=sys.stderr, flush=True)
        pressed.set()
        came.set()

    handlers = {signal.SIGTERM: lambda *_: came.set()}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # workers of a study leave it to their parent
        handlers[signal.SIGINT] = press
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield came.is_set
    except Stopped as stopped:
        if pressed.is_set():
            raise Interrupted(f"{stopped} and saved") from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
