"""Devices that are not here: their number, memory and peak, and what XLA needs to compile for them.

Memory per chip is from the makers' sheets: Google, Cloud TPU system architecture, one page per version; NVIDIA H100 datasheet
(SXM).
"""

import dataclasses
import math
import os
from typing import Any

from infini_jax.devices.peaks import PEAK_FLOPS
from infini_jax.errors import ConfigError, installs, require, suggestion

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of accelerator.

    Attributes:
      platform: name of the platform in JAX.
      kind: name of the device in JAX.
      memory: bytes of memory per chip.
    """

    platform: str
    kind: str
    memory: int


CHIPS = {
    "v4": Chip("tpu", "TPU v4", 32 * GIB),
    "v5e": Chip("tpu", "TPU v5e", 16 * GIB),
    "v5p": Chip("tpu", "TPU v5p", 95 * GIB),
    "v6e": Chip("tpu", "TPU v6e", 32 * GIB),
    "h100": Chip("cuda", "NVIDIA H100 80GB HBM3", 80 * 10**9),
}
"""Kinds of accelerators by their name in a topology."""
# By platform, which is also the name of the extra: any of these packages compiles for it.
COMPILERS = {"tpu": ("libtpu",), "cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin")}

# What XLA must know of a GPU that is not here: NVIDIA, H100 datasheet (SXM) and CUDA programming guide, capability 9.0.
H100 = """
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3"
  cuda_compute_capability { major: 9 }
  device_address_bits: 64
  device_memory_size: 80000000000
  memory_bandwidth: 3350000000000
  clock_rate_ghz: 1.98
  core_count: 132
  fpus_per_core: 128
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  dnn_version: "9.10.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0" driver_version: "13.0.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips and how they are connected.

    Attributes:
      name: name of the topology, such as v5e:4x4.
      chip: the kind of chip.
      shape: chips along each axis; hosts and devices per host for GPUs.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, name: str) -> "Topology":
        """The topology of a name: `v5e:4x4`, `v5p:4x4x4`, `h100:8`, `h100:2x8` (two hosts of eight).

        Raises `ConfigError` for an unknown chip and for a shape that is none.
        """
        chip, _, shape = name.partition(":")
        require(chip in CHIPS, "topology", f"'{chip}' is not a known chip", suggestion(chip, CHIPS))
        numbers = shape.split("x")
        is_shape = all(number.isdecimal() and int(number) > 0 for number in numbers)
        is_shape = is_shape and (len(numbers) < 3 or CHIPS[chip].platform == "tpu")
        require(
            is_shape, "topology", f"'{shape}' is not a shape", f"give one such as {chip}:{'8' if chip == 'h100' else '4x4'}"
        )
        return cls(name, CHIPS[chip], tuple(map(int, numbers)))

    @property
    def devices(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    @property
    def peak_flops(self) -> float:
        """Peak of all chips together: dense bf16 FLOPs per second."""
        return self.devices * PEAK_FLOPS[self.chip.kind]

    def compile_devices(self) -> list[Any]:
        """The devices that XLA compiles for.

        Raises `ConfigError` where the compiler is not installed or refuses the shape.
        """
        from jax.experimental import topologies

        platform = self.chip.platform
        name, settings = self._for_gpu() if platform == "cuda" else self._for_tpu()
        try:
            found = topologies.get_topology_desc(platform=platform, topology_name=name, **settings)
        except Exception as error:  # a missing plug-in and an impossible shape are told in many ways
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError("topology", f"{self.name} cannot be compiled for here ({said})", mend_of(platform)) from error
        return list(found.devices)

    def _for_tpu(self) -> tuple[str, dict[str, Any]]:
        """Name and settings of a TPU topology.

        By default the compiler locks a file, and asks the cloud what machine it is on.
        """
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_LOG_DIR", "disabled")
        return self.name, {"chips_per_host_bounds": [1, 1, 1]} if self.devices == 1 else {}

    def _for_gpu(self) -> tuple[str, dict[str, Any]]:
        """Name and settings of a GPU topology, whose shape is slices x hosts x devices per host."""
        shape = "x".join(map(str, (1,) * (3 - len(self.shape)) + self.shape))
        return self.name.split(":")[0], {"topology": shape, "target_config": H100}


def mend_of(platform: str) -> str:
    """The mend to suggest where no compiler answers for a platform."""
    return "choose another shape" if is_installed(platform) else installs(platform)


def is_installed(platform: str) -> bool:
    """Whether a compiler for a platform is installed on this machine."""
    import importlib.util

    return any(importlib.util.find_spec(name) is not None for name in COMPILERS[platform])
