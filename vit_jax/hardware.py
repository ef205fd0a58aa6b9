"""Chips by name: peak FLOP/s, memory, bandwidth and clock; and the CPU cores of this machine."""

import dataclasses
import math
import os
import pathlib
import re
from typing import Any

_CGROUP = pathlib.Path('/sys/fs/cgroup')


def num_cores() -> int:
  """The number of CPU cores that this process may use, by its affinity and its CPU quota."""
  affinity = getattr(os, 'sched_getaffinity', None)  # not on every system
  cores = len(affinity(0)) if affinity else os.cpu_count() or 1
  return max(1, math.ceil(min(cores, _cpu_quota(_CGROUP))))


def _cpu_quota(cgroup: pathlib.Path) -> float:
  """The cores that a container (cgroup version 2 or 1) is limited to; infinity without a limit."""
  try:
    if (file := cgroup / 'cpu.max').exists():
      quota, period = file.read_text().split()
    else:
      quota, period = ((cgroup / f'cpu/cpu.cfs_{x}_us').read_text() for x in ('quota', 'period'))
    return int(quota) / int(period) if int(quota) > 0 else math.inf
  except (OSError, ValueError, ZeroDivisionError):  # ValueError: 'max'
    return math.inf


@dataclasses.dataclass(frozen=True)
class Chip:
  """A TPU chip or a GPU; None stands for a figure without a source.

  Attributes:
    device_kinds: the names that JAX gives its devices.
    peak_flops: bfloat16 FLOP/s of a chip, without sparsity.
    memory_gb: HBM of a chip, as its vendor counts GB.
    bandwidth: bytes per second between a chip and its HBM.
    clock_hz: of the matrix units.
    num_devices: JAX devices of a chip.
    vector_memory_mib: of a device, from which its vector and matrix units read; None where kernels
      of our own cannot multiply bfloat16 matrices (v2, v3).
    interconnect: bytes per second that a chip can receive from other chips, over all its links.
  """

  device_kinds: tuple[str, ...]
  peak_flops: float
  memory_gb: int
  bandwidth: float | None = None
  clock_hz: float | None = None
  num_devices: int = 1
  interconnect: float | None = None
  vector_memory_mib: int | None = None


# TPUs: the section "System architecture" of docs.cloud.google.com/tpu/docs/{v2,…,tpu7x}; v2's peak
# is that of its announcement, 180 TFLOP/s for a board of four chips. Clock: the peak of a core
# divided by its matrix units (v2 1, v3 2, v4, v5e and v5p 4) times 2 x 128 x 128 FLOP; for v6e and
# tpu7x the published units do not give the published peak. Interconnect: half of what is published
# as bidirectional; v2 arXiv 1909.09756 (four links of 496 Gbit/s each way), v3 and v4 Table 4 of
# arXiv 2304.01433 (4 links of 70 GB/s, 6 of 50 GB/s). A v4 chip is one device ("megacore"), as on
# Cloud TPU VMs. Vector memory: jax/_src/tpu_info.py of JAX 0.12. GPUs: NVIDIA's data sheets of
# A100, H100 (SXM) and H200 (SXM).
_A100_40GB = ('NVIDIA A100-SXM4-40GB', 'NVIDIA A100-PCIE-40GB')
CHIPS = {
  'v2': Chip(('TPU v2',), 45e12, 16, None, 0.7e9, 2, 248e9),
  'v3': Chip(('TPU v3',), 123e12, 32, 900e9, 0.94e9, 2, 280e9),
  'v4': Chip(('TPU v4',), 275e12, 32, 1200e9, 1.05e9, 1, 300e9, vector_memory_mib=16),
  'v5e': Chip(('TPU v5 lite',), 197e12, 16, 819e9, 1.5e9, 1, 200e9, vector_memory_mib=128),
  'v5p': Chip(('TPU v5',), 459e12, 95, 2765e9, 1.75e9, 1, 600e9, vector_memory_mib=64),
  'v6e': Chip(('TPU v6 lite',), 918e12, 32, 1638e9, None, 1, 400e9, vector_memory_mib=128),
  'tpu7x': Chip(('TPU7x',), 2307e12, 192, None, None, 2, 600e9, vector_memory_mib=64),
  'A100 40GB': Chip(_A100_40GB, 312e12, 40, 1555e9),
  'A100 80GB SXM': Chip(('NVIDIA A100-SXM4-80GB',), 312e12, 80, 2039e9),
  'A100 80GB PCIe': Chip(('NVIDIA A100 80GB PCIe',), 312e12, 80, 1935e9),
  'H100 SXM': Chip(('NVIDIA H100 80GB HBM3',), 989e12, 80, 3350e9),
  'H200 SXM': Chip(('NVIDIA H200',), 989e12, 141, 4800e9),
}


def peak_flops(device_kind: str, num_devices: int) -> float | None:
  """bfloat16 FLOP/s of that many devices of a kind as JAX names it; None for an unknown kind."""
  for chip in CHIPS.values():
    if device_kind in chip.device_kinds:
      return num_devices * chip.peak_flops / chip.num_devices
  return None


def vector_memory(device_kind: str) -> int:
  """Bytes of vector memory that a kernel of our own may use: 7/8 of it; 0 where it cannot run."""
  sizes = (x.vector_memory_mib for x in CHIPS.values() if device_kind in x.device_kinds)
  return (next(sizes, None) or 0) * 7 * 2**17


def device_memory(device: Any) -> int | None:
  """Bytes that programs can use on a JAX device; None on a CPU, which has no limit of its own."""
  return (device.memory_stats() or {}).get('bytes_limit')


def has_flash_attention(device: Any) -> bool:
  """Whether cuDNN's flash attention runs on a JAX device: on NVIDIA's from Ampere on."""
  capability = getattr(device, 'compute_capability', '')  # '9.0'; AMD's are no numbers
  return re.fullmatch(r'\d+\.\d+', capability) is not None and float(capability) >= 8
