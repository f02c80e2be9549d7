"""The platform that programs are made for: that of the devices at hand, or another that is compiled for ahead of time."""

import jax
from jax.extend.backend import get_backend

target = jax.make_user_context("")  # `with target("tpu"):`; a part of jit's cache key


def platform() -> str:
    """Name of the platform that programs are made for: cpu, tpu, cuda, or gpu for another vendor's."""
    if target.value:
        return target.value
    backend = get_backend()
    return "cuda" if "cuda" in backend.platform_version else backend.platform
