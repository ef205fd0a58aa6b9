"""The scaling of pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.pixels import scale_pixels


@pytest.mark.parametrize(('module', 'array_type'), [(jnp, jax.Array), (np, np.ndarray)])
def test_pixels_are_scaled_to_minus_one_and_one(module, array_type):
  scaled = scale_pixels(module.asarray([0, 51, 255], np.uint8))
  np.testing.assert_allclose(scaled, [-1, -0.6, 1], rtol=1e-6)
  assert scaled.dtype == np.float32 and isinstance(scaled, array_type)
