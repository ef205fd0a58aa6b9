"""Images per second, waiting for data and utilization, with a clock that the test moves."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.helpers import make_sharded_program, replace_clock
from vit_jax.hardware import peak_flops
from vit_jax.models.flops import train_flops
from vit_jax.training import phases, throughput
from vit_jax.training.phases import PhaseTimer

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason='written for eight devices')


@pytest.fixture(scope='module')
def program():
  return make_sharded_program()


@pytest.fixture
def clock(monkeypatch):
  return replace_clock(monkeypatch, phases)


@pytest.fixture
def timer(clock):
  del clock  # it is set before the timer starts
  timer = PhaseTimer()
  timer.switch('step')
  return timer


@pytest.fixture
def meter(program, timer):
  return throughput.ThroughputMeter(program, 0, timer)


def slow_batches(clock, seconds):
  for i in range(3):
    clock.now += seconds
    yield i


def test_waiting_for_data_is_measured(meter, timer, clock):
  assert list(timer.steps(slow_batches(clock, 1))) == [0, 1, 2]
  clock.now += 1
  metrics = meter.measure(2, 0)
  assert metrics['train/data_wait/mean'] == metrics['train/data_wait/max'] == 3 / 4
  assert metrics['train/data_wait/slowest_process'] == 0
  assert metrics['train/images_per_second'] == 2 * 64 / 4
  clock.now += 1
  assert meter.measure(4, 0)['train/data_wait/max'] == 0


@pytest.mark.parametrize('phase', ['evaluation', 'save', 'compile'])
def test_other_phases_count_neither_as_time_nor_as_waiting(meter, timer, clock, phase):
  with timer.phase(phase):
    clock.now += 60
  clock.now += 2
  metrics = meter.measure(1, 0)
  assert metrics['train/images_per_second'] == 64 / 2
  assert metrics['train/data_wait/max'] == 0


def test_bad_examples_are_counted(meter, clock):
  clock.now += 1
  assert 'train/bad_examples' not in meter.measure(1, 0)
  clock.now += 1
  assert meter.measure(2, 20)['train/bad_examples'] == 20


def test_utilization_is_that_of_the_models_arithmetic(meter, timer, program, clock, monkeypatch):
  clock.now += 1
  # A CPU's peak is unknown.
  assert 'train/model_flops_utilization' not in meter.measure(1, 0)
  monkeypatch.setattr(throughput, 'peak_flops', lambda device_kind, num_devices: num_devices * 1e9)
  clock.now += 1
  utilization = meter.measure(2, 0)['train/model_flops_utilization']
  np.testing.assert_allclose(utilization, 64 * train_flops(program.model, (8, 8)) / 8e9)
  sam = dataclasses.replace(program, step=dataclasses.replace(program.step, sam_rho=0.1))
  meter = throughput.ThroughputMeter(sam, 0, timer)  # two gradients a step
  clock.now += 1
  assert meter.measure(1, 0)['train/model_flops_utilization'] == pytest.approx(2 * utilization)


@pytest.mark.parametrize(
  ('device_kind', 'peak'),
  [
    ('TPU v3', 61.5e12),  # a core of two
    ('TPU v5 lite', 197e12),
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA A100-SXM4-40GB', 312e12),
    ('cpu', None),
  ],
)
def test_peaks_of_devices(device_kind, peak):
  assert peak_flops(device_kind, 4) == (peak and 4 * peak)
