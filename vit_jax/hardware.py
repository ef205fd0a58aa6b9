"""Chips by name: peak FLOP/s, memory, bandwidth and clock; and the CPU cores of this machine."""

import dataclasses
import os
from collections.abc import Mapping


def num_cores() -> int:
  """The number of CPU cores that this process may use."""
  affinity = getattr(os, 'sched_getaffinity', None)  # not on every system
  return len(affinity(0)) if affinity else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """A TPU chip or a GPU; None stands for a figure without a source.

  Attributes:
    device_kinds: the names that JAX gives its devices.
    peak_flops: bfloat16 FLOP/s of a chip, without sparsity.
    memory_gb: HBM of a chip, as its vendor counts GB.
    bandwidth: bytes per second between a chip and its HBM.
    clock_hz: of the matrix units.
    num_devices: JAX devices of a chip.
  """

  device_kinds: tuple[str, ...]
  peak_flops: float
  memory_gb: int
  bandwidth: float | None = None
  clock_hz: float | None = None
  num_devices: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuChip(Chip):
  """A TPU chip, and the slices it comes in.

  Attributes:
    usable_gib: GiB of HBM that the compiler gives to one device's program.
    tensor_cores: of a chip; where there are two, the names of slices count them.
    dimensions: of a slice's topology, 2 or 3.
    max_chips: of the largest slice.
    compiler_options: further arguments of `get_topology_desc`.
  """

  usable_gib: float
  tensor_cores: int
  dimensions: int
  max_chips: int
  compiler_options: Mapping[str, str] = dataclasses.field(default_factory=dict)


# Peak, memory, bandwidth, cores and slices: the section "System architecture" of
# docs.cloud.google.com/tpu/docs/{v2,v3,v4,v5e,v5p,v6e,tpu7x}; v2's peak is that of its
# announcement, 180 TFLOP/s for a board of four chips. Clock: the peak of a core divided by its
# matrix units times 2 x 128 x 128 FLOP.
# Usable HBM: measured with libtpu 0.0.42.1, as "available HBM" in the refusal to compile a
# function that needs 360 GiB; on v2, v3 and tpu7x it is that of one of the two devices of a chip.
TPUS = {
  'v2': TpuChip(
    device_kinds=('TPU v2',),
    peak_flops=45e12,
    memory_gb=16,
    num_devices=2,
    usable_gib=7.48,
    tensor_cores=2,
    dimensions=2,
    max_chips=256,
  ),
  'v3': TpuChip(
    device_kinds=('TPU v3',),
    peak_flops=123e12,
    memory_gb=32,
    bandwidth=900e9,
    clock_hz=0.94e9,
    num_devices=2,
    usable_gib=15.48,
    tensor_cores=2,
    dimensions=2,
    max_chips=1024,
  ),
  'v4': TpuChip(
    device_kinds=('TPU v4',),
    peak_flops=275e12,
    memory_gb=32,
    bandwidth=1200e9,
    usable_gib=30.75,
    tensor_cores=2,
    dimensions=3,
    max_chips=4096,
    # Both cores are one device, as on Cloud TPU VMs.
    compiler_options={'chip_config_name': 'megacore'},
  ),
  'v5e': TpuChip(
    device_kinds=('TPU v5 lite',),
    peak_flops=197e12,
    memory_gb=16,
    bandwidth=819e9,
    clock_hz=1.5e9,
    usable_gib=15.75,
    tensor_cores=1,
    dimensions=2,
    max_chips=256,
  ),
  'v5p': TpuChip(
    device_kinds=('TPU v5',),
    peak_flops=459e12,
    memory_gb=95,
    bandwidth=2765e9,
    usable_gib=95.74,
    tensor_cores=2,
    dimensions=3,
    max_chips=6144,
  ),
  'v6e': TpuChip(
    device_kinds=('TPU v6 lite',),
    peak_flops=918e12,
    memory_gb=32,
    bandwidth=1638e9,
    usable_gib=31.25,
    tensor_cores=1,
    dimensions=2,
    max_chips=256,
  ),
  'tpu7x': TpuChip(
    device_kinds=('TPU7x',),
    peak_flops=2307e12,
    memory_gb=192,
    num_devices=2,
    usable_gib=94.75,
    tensor_cores=2,
    dimensions=3,
    max_chips=9216,
  ),
}

# NVIDIA's data sheets of A100, H100 (SXM) and H200 (SXM).
GPUS = {
  'A100 40GB': Chip(
    device_kinds=('NVIDIA A100-SXM4-40GB', 'NVIDIA A100-PCIE-40GB'),
    peak_flops=312e12,
    memory_gb=40,
    bandwidth=1555e9,
  ),
  'A100 80GB SXM': Chip(
    device_kinds=('NVIDIA A100-SXM4-80GB',), peak_flops=312e12, memory_gb=80, bandwidth=2039e9
  ),
  'A100 80GB PCIe': Chip(
    device_kinds=('NVIDIA A100 80GB PCIe',), peak_flops=312e12, memory_gb=80, bandwidth=1935e9
  ),
  'H100 SXM': Chip(
    device_kinds=('NVIDIA H100 80GB HBM3',), peak_flops=989e12, memory_gb=80, bandwidth=3350e9
  ),
  'H200 SXM': Chip(
    device_kinds=('NVIDIA H200',), peak_flops=989e12, memory_gb=141, bandwidth=4800e9
  ),
}

CHIPS: dict[str, Chip] = {**TPUS, **GPUS}


def peak_flops(device_kind: str, num_devices: int) -> float | None:
  """bfloat16 FLOP/s of `num_devices` devices; None for an unknown kind.

  Args:
    device_kind: as JAX names it, such as 'TPU v4'.
    num_devices: JAX devices.
  """
  for chip in CHIPS.values():
    if device_kind in chip.device_kinds:
      return num_devices * chip.peak_flops / chip.num_devices
  return None
