"""The platform that programs are made for: that of the devices at hand, or another that is compiled for ahead of time."""

import jax
from jax.extend.backend import get_backend

GPUS = ("cuda", "gpu")
MOST_TURNS = 16  # that are unrolled; a program of more takes too long to compile

target = jax.make_user_context("")  # `with target("tpu"):`; a part of jit's cache key


def platform() -> str:
    """Name of the platform that programs are made for: cpu, tpu, cuda, or gpu for another vendor's."""
    if target.value:
        return target.value
    backend = get_backend()
    return "cuda" if "cuda" in backend.platform_version else backend.platform


def unrolled(turns: int) -> int:
    """Number of a loop's turns to lay side by side, the `unroll` of `lax.scan`: all of a few on a GPU, else one.

    There a turn is launches: of its operations, of its part of each array, of its count. Side by side, turns share the latter.
    """
    return turns if platform() in GPUS and turns <= MOST_TURNS else 1
