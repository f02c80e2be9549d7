"""The queue of programs that wait for the devices: how far the host may be ahead of them."""

from collections.abc import Sequence
from typing import Any

import jax

# jax 0.10 lets 32 programs wait for a device of a CPU, and two devices that reach this wait for each other for good, in an
# all-reduce: loops of such programs hung without a bound and with one of 32, and ended with 30 and fewer. 8 hide the host's
# work.
MOST_AHEAD = 8


def keep_close(results: Sequence[Any]) -> None:
    """Waits for what a program made `MOST_AHEAD` before the newest of `results`: one pytree from each turn of a loop."""
    if len(results) > MOST_AHEAD:
        jax.block_until_ready(results[-1 - MOST_AHEAD])
