"""Reads that are divided among the devices: all of them take part, and the arrays are the same."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.checkpoints.divided_reads import divide, gather
from vit_jax.config import MeshConfig
from vit_jax.distributed import sharding

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason='written for eight devices')


@pytest.mark.parametrize('axes', [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8)])
def test_arrays_are_divided_among_all_devices_and_gathered(axes):
  mesh = sharding.make_mesh(MeshConfig(*axes))
  shapes = {
    'params/MlpBlock_0/Dense_0/kernel': (64, 512),
    'params/MlpBlock_0/Dense_0/bias': (512,),  # too small to divide
    'params/odd': (197, 129),  # nothing divides it
    'opt_state/mu/kernel': (512, 64),
    'step': (),
  }
  abstract = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
  abstract = sharding.with_shardings(abstract, sharding.state_shardings(abstract, mesh))
  divided = divide(abstract)
  for name, array in divided.items():
    shard = math.prod(array.sharding.shard_shape(array.shape))
    assert shard * (8 if 'kernel' in name else 1) <= math.prod(array.shape), name
  values = {name: np.random.default_rng(0).normal(size=shape) for name, shape in shapes.items()}
  read = {name: jax.device_put(values[name], divided[name].sharding) for name in shapes}
  for name, array in gather(read, abstract).items():
    assert array.sharding.is_equivalent_to(abstract[name].sharding, array.ndim)
    np.testing.assert_array_equal(array, values[name].astype(np.float32))
