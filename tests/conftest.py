"""Every test runs on the CPU, as one device with one thread, whatever the machine has; TESTS_ON=cuda takes a GPU instead.

Tests compile far more than they run: without LLVM's optimization XLA compiles in half the time, and without its emitters of
fusions, which JAX 0.11 no longer lets one choose, in a third of that.
"""

import gc
import importlib.metadata
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.marks import SLOW_ROWS

ACCELERATOR = os.environ.get("TESTS_ON", "")
os.environ["JAX_PLATFORMS"] = ACCELERATOR or "cpu"
if ACCELERATOR:
    os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"  # the references are compared in float32, not in TF32
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # workers share the device
quickly = "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # an unknown flag ends the process
    quickly += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    quickly += " --xla_cpu_enable_concurrency_optimized_scheduler=false"
os.environ.setdefault("XLA_FLAGS", f"{quickly} --xla_force_host_platform_device_count=1")

# Programs that were compiled once are read from here by other workers, by processes that tests start and by later runs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # processes that tests start would read the whole package's source, each anew


@pytest.hookimpl(tryfirst=True)  # before those that the marks leave out are left out
def pytest_collection_modifyitems(items):
    """Rows of the registry that are slow in every test that takes all of them."""
    for item in items:
        if hasattr(item, "callspec") and SLOW_ROWS & {item.callspec.params.get(of) for of in ("name", "mechanism")}:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish(session):
    """Tracing makes objects by the million, among which Python looks for circles again and again: a tenth of all time."""
    gc.set_threshold(50_000, 20, 20)


MAPPINGS = Path("/proc/self/maps")  # Linux gives a process 65 530, and each compiled program takes some


@pytest.fixture(autouse=True)
def no_process_outlives_its_test(monkeypatch):
    """A run that a failed test leaves behind would train on beside all later tests."""
    started = []

    class Noted(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    yield
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(autouse=True, scope="module")
def programs_are_forgotten_where_they_are_many():
    """A worker that keeps the programs of a whole suite runs out of mappings, and dies while it reads another program."""
    yield
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > 40_000:
        import jax  # after the settings above

        gc.collect()
        jax.clear_caches()
