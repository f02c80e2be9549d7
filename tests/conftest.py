"""Every test runs on the CPU, as one device with one thread, whatever the machine has.

Tests compile far more than they run: without LLVM's optimisation XLA compiles in half the time.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
quickly = "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0"
os.environ.setdefault("XLA_FLAGS", f"{quickly} --xla_force_host_platform_device_count=1")
