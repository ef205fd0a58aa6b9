"""Batches are divided until the compiled train step fits the devices of this machine."""

import jax
import pytest

from tests.helpers import TINY
from vit_jax.config import load_config
from vit_jax.errors import DeviceMemoryError
from vit_jax.planning.local_devices import fit_local_devices
from vit_jax.planning.planner import Labels

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason='written for eight devices')

SETTINGS = ('--config.model.depth=1', '--config.data.image_size=32')


def test_batches_are_divided_into_as_few_parts_as_fit():
  config = load_config('configs/quickstart.py', [*TINY, *SETTINGS])
  whole = fit_local_devices(config, Labels(10))
  assert (whole.config, whole.micro_batch, whole.limit) == (config, 2, None)
  assert 'a device computes with 2 at once, in 0.0 GiB' in str(whole)
  halves = fit_local_devices(config, Labels(10), whole.needed - 1)
  assert (halves.config.accumulation_steps, halves.micro_batch) == (2, 1)
  assert halves.needed < whole.needed
  assert 'of 0.0 GiB' in str(halves)
  with pytest.raises(DeviceMemoryError, match='does not hold 1 image of a batch; choose a smaller'):
    fit_local_devices(halves.config, Labels(10), 1000)
