"""Every test runs on the CPU, on one thread, whatever the machine has.

Tests compile far more than they run: without LLVM's optimisation XLA compiles in half the time.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0")
