"""The cores that a process may use."""

import os

import pytest

from vit_jax import hardware


@pytest.mark.parametrize(
  ('files', 'limit'),
  [
    ({'cpu.max': '150000 100000'}, 2),
    ({'cpu.max': '5000 100000'}, 1),
    ({'cpu.max': 'max 100000'}, 64),
    ({'cpu.max': 'what?'}, 64),
    ({'cpu/cpu.cfs_quota_us': '300000', 'cpu/cpu.cfs_period_us': '100000'}, 3),
    ({'cpu/cpu.cfs_quota_us': '-1', 'cpu/cpu.cfs_period_us': '100000'}, 64),
    ({}, 64),
  ],
)
def test_cores_are_limited_by_the_quota_of_a_container(files, limit, tmp_path, monkeypatch):
  for name, text in files.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(f'{text}\n')
  monkeypatch.setattr(hardware, '_CGROUP', tmp_path)
  monkeypatch.setattr(os, 'sched_getaffinity', lambda process: set(range(64)), raising=False)
  assert hardware.num_cores() == limit


def test_the_memory_of_a_device_is_the_limit_of_its_allocator():
  class Device:
    def __init__(self, stats):
      self.memory_stats = lambda: stats

  assert hardware.device_memory(Device({'bytes_limit': 123, 'bytes_in_use': 4})) == 123
  assert hardware.device_memory(Device(None)) is None  # a CPU
