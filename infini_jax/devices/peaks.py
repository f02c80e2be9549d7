"""Peak of devices: dense bf16 FLOPs per second by JAX's `device_kind`, for model FLOPs utilization (MFU).

The figures are from the makers' sheets, for one JAX device (a chip), in TFLOPS. NVIDIA's sheets print twice the dense figure
and say "with sparsity", except the A100's, which prints both; the printed figure is in brackets.
  TPU v4 275, v5e 197, v5p 459, v6e 918     Google, Cloud TPU system architecture, one page per version
  A100 312                                  NVIDIA A100 Tensor Core GPU datasheet; 40 and 80 GB, SXM and PCIe
  H100 SXM 989 (1979), PCIe 756 (1513), NVL 835 (1671)    NVIDIA H100 Tensor Core GPU datasheet
  H200 SXM 989 (1979), NVL 835 (1671)       NVIDIA H200 Tensor Core GPU datasheet
  L4 121 (242), L40S 362 (733)              NVIDIA L4 and L40S datasheets; the latter prints both
A part of a GPU (MIG) is another kind and has no peak here. The peak is bf16's whatever the compute type, as in the literature.
"""

from collections.abc import Iterable
from typing import Any

A100, H100_SXM, H100_PCIE, HOPPER_NVL = 312e12, 1979e12 / 2, 1513e12 / 2, 1671e12 / 2

PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": A100,
    "NVIDIA A100-SXM4-80GB": A100,
    "NVIDIA A100-PCIE-40GB": A100,
    "NVIDIA A100 80GB PCIe": A100,
    "NVIDIA H100 80GB HBM3": H100_SXM,
    "NVIDIA H100 PCIe": H100_PCIE,
    "NVIDIA H100 NVL": HOPPER_NVL,
    "NVIDIA H200": H100_SXM,
    "NVIDIA H200 NVL": HOPPER_NVL,
    "NVIDIA L4": 242e12 / 2,
    "NVIDIA L40S": 362e12,
}
"""Peak dense bf16 FLOPs per second of one device, by JAX's `device_kind`."""


def peak_flops(devices: Iterable[Any]) -> float | None:
    """Peak FLOPs per second of all `devices` together; None where one's peak is not known, such as a CPU's."""
    peaks = [PEAK_FLOPS.get(device.device_kind) for device in devices]
    known = [peak for peak in peaks if peak is not None]
    return sum(known) if len(known) == len(peaks) else None
