"""Versions and device of this process, for rows and records. JAX is imported only where its devices are asked for."""

import os
import platform
from pathlib import Path

from infini_jax import __version__


def environment() -> dict[str, str]:
    """Columns of a row by name: versions of Python, JAX, Flax and this package, and the device."""
    import flax
    import jax

    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "package": __version__,
        "device": processor() if device.platform == "cpu" else device.device_kind,
    }


def processor() -> str:
    """The processor's own name where the system tells it, and the number of its cores that this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.machine()}, {cores} core{'s' if cores != 1 else ''}"
