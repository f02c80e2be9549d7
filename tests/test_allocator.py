"""A process keeps the pages that its arrays had."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from infini_jax.devices.allocator import keep_pages

if sys.argv[1] == "kept":
    keep_pages()
np.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")
def test_an_array_of_64_mib_is_written_into_pages_that_the_process_has():
    faults = {}
    for name in ("kept", "default"):
        done = subprocess.run([sys.executable, "-c", FAULTS, name], capture_output=True, text=True, check=True)
        faults[name] = int(done.stdout)
    if faults["default"] < 4 * 32:  # pages of 2 MiB at least
        pytest.skip("this system's allocator keeps pages by itself")
    assert faults["kept"] < faults["default"] / 10
