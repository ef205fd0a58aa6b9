"""Chips and GPUs: peak FLOP/s and memory; and the CPU cores of this machine."""

import dataclasses
import os


def num_cores() -> int:
  """The CPU cores that this process may use."""
  affinity = getattr(os, 'sched_getaffinity', None)  # not on every system
  return len(affinity(0)) if affinity else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True)
class Chip:
  """One TPU generation. Sources: the table below.

  Attributes:
    peak_flops: bfloat16 operations per second of a chip.
    hbm_gib: HBM of a chip.
    usable_gib: HBM that the compiler gives to one device's program.
    cores: TensorCores of a chip, which slice names count where there are two.
    devices: JAX devices of a chip.
    sides: of a topology.
    pod: chips of the largest slice.
    options: further arguments of `get_topology_desc`.
  """

  peak_flops: float
  hbm_gib: int
  usable_gib: float
  cores: int
  devices: int
  sides: int
  pod: int
  options: tuple[tuple[str, str], ...] = ()


# Peak, HBM, cores and pod: docs.cloud.google.com/tpu/docs/{v2,v3,v4,v5e,v5p,v6e,tpu7x}, "System
# architecture"; v2's peak is that of its announcement, 180 TFLOP/s for a board of four chips.
# Usable HBM: measured with libtpu 0.0.42.1, as "available HBM" in the refusal to compile a
# function that needs 360 GiB; on v2, v3 and tpu7x it is that of one of the two devices of a chip.
# A v4 chip is one device ("megacore") as on Cloud TPU VMs.
_MEGACORE = (('chip_config_name', 'megacore'),)
CHIPS = {
  'v2': Chip(45e12, 16, 7.48, cores=2, devices=2, sides=2, pod=256),
  'v3': Chip(123e12, 32, 15.48, cores=2, devices=2, sides=2, pod=1024),
  'v4': Chip(275e12, 32, 30.75, cores=2, devices=1, sides=3, pod=4096, options=_MEGACORE),
  'v5e': Chip(197e12, 16, 15.75, cores=1, devices=1, sides=2, pod=256),
  'v5p': Chip(459e12, 95, 95.74, cores=2, devices=1, sides=3, pod=6144),
  'v6e': Chip(918e12, 32, 31.25, cores=1, devices=1, sides=2, pod=256),
  'tpu7x': Chip(2307e12, 192, 94.75, cores=2, devices=2, sides=3, pod=9216),
}

# JAX's device kinds: the TPUs above, and the bfloat16 peak without sparsity of GPUs, from NVIDIA's
# data sheets of A100, H100 (SXM) and H200 (SXM).
_TPU_KINDS = {
  'TPU v2': 'v2',
  'TPU v3': 'v3',
  'TPU v4': 'v4',
  'TPU v5 lite': 'v5e',
  'TPU v5': 'v5p',
  'TPU v6 lite': 'v6e',
  'TPU7x': 'tpu7x',
}
_GPU_PEAK_FLOPS = {
  'NVIDIA A100-SXM4-40GB': 312e12,
  'NVIDIA A100-SXM4-80GB': 312e12,
  'NVIDIA A100-PCIE-40GB': 312e12,
  'NVIDIA A100 80GB PCIe': 312e12,
  'NVIDIA H100 80GB HBM3': 989e12,
  'NVIDIA H200': 989e12,
}


def peak_flops(device_kind: str, num_devices: int) -> float | None:
  """bfloat16 operations per second of that many devices; None for an unknown kind."""
  if device_kind in _TPU_KINDS:
    chip = CHIPS[_TPU_KINDS[device_kind]]
    return num_devices * chip.peak_flops / chip.devices
  each = _GPU_PEAK_FLOPS.get(device_kind)
  return each and num_devices * each
