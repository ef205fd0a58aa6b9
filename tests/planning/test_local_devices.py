"""Batches are divided until the compiled train step fits the devices of this machine."""

import jax
import pytest

from tests.helpers import TINY
from vit_jax.config import load_config
from vit_jax.errors import DeviceMemoryError
from vit_jax.planning.local_devices import fit_local_devices
from vit_jax.planning.planner import Labels

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason='written for eight devices')


@pytest.fixture(scope='module')
def config():
  # Images of 32 x 32 pixels, so that the activations need more memory than the parameters.
  changes = ('--config.batch_size=64', '--config.data.image_size=32')
  return load_config('configs/quickstart.py', [*TINY, *changes])


def test_batches_are_divided_into_as_few_parts_as_fit(config):
  whole = fit_local_devices(config, Labels(10))
  assert (whole.config, whole.micro_batch, whole.limit) == (config, 8, None)
  assert 'a device computes with 8 at once, in 0.0 GiB' in str(whole)
  halves = fit_local_devices(config, Labels(10), whole.needed - 1)
  assert (halves.config.accumulation_steps, halves.micro_batch) == (2, 4)
  assert halves.needed < whole.needed
  assert fit_local_devices(config, Labels(10), halves.needed).config == halves.config
  assert 'of 0.0 GiB' in str(halves)


def test_what_cannot_be_divided_further_is_refused(config):
  with pytest.raises(DeviceMemoryError, match='does not hold 1 image of a batch; choose a smaller'):
    fit_local_devices(config, Labels(10), 1000)
