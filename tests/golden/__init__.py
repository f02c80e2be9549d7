"""Float64 arrays with their equations beside them."""

import functools
from pathlib import Path

import numpy as np
import pytest

PUBLIC = Path(__file__).resolve().parents[3] / "shared" / "golden"


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of tests/golden/<name>.npz."""
    with np.load(Path(__file__).parent / f"{name}.npz") as file:
        return dict(file)


def public_golden(name: str) -> dict[str, np.ndarray]:
    """Arrays made with public code, which are not part of the repository; skips the test where they are missing."""
    path = PUBLIC / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"{name}.npz, made with public code, is not in ../shared/golden beside the repository")
    with np.load(path) as file:
        return dict(file)
