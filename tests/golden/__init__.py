"""Float64 arrays with their equations beside them."""

import functools
from pathlib import Path

import numpy as np


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of tests/golden/<name>.npz."""
    with np.load(Path(__file__).parent / f"{name}.npz") as file:
        return dict(file)
