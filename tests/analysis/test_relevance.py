"""Relevance of patches for classes: against gradients by differences, and by its meaning."""

import dataclasses

import numpy as np
import pytest

from tests.analysis import numpy_vit
from tests.analysis.models import embedded, golden, golden_images, noise, tiny
from vit_jax.analysis import relevance
from vit_jax.errors import UserError
from vit_jax.models.dot_product_attention import cudnn_attention

STEP = 1e-5


def expected_relevance(vit, patches, params) -> list[np.ndarray]:
  """Equations 5 and 6 for each class in float64, with central differences of the logits."""
  pool = vit.model.pool
  logits, weights = numpy_vit.run(params, patches, pool)
  gradients = [np.zeros((len(logits), *each.shape)) for each in weights]
  for place, gradient in enumerate(gradients):
    for at in np.ndindex(gradient.shape[1:]):
      sides = []
      for sign in (1, -1):
        offsets = [np.zeros_like(w) for w in weights]
        offsets[place][at] = sign * STEP
        sides.append(numpy_vit.run(params, patches, pool, offsets)[0])
      gradient[:, *at] = (sides[0] - sides[1]) / (2 * STEP)
  rows = []
  for of_class in zip(*gradients, strict=True):
    parts = [np.maximum(g * w, 0).mean(0) for g, w in zip(of_class, weights, strict=True)]
    matrix = np.eye(weights[0].shape[-1])
    for part in parts[: vit.model.depth]:
      matrix = matrix + part @ matrix
    rows.append(
      {'token': matrix[0, 1:], 'gap': matrix.mean(0), 'map': (parts[-1] @ matrix)[0]}[pool]
    )
  return rows


@pytest.mark.parametrize('pool', ['token', 'gap', 'map'])
def test_relevance_is_that_of_the_equations(pool):
  vit = tiny((8, 8), pool=pool)
  images = noise(vit, 2)
  params, patches = embedded(vit, images)
  classes = np.array([[2, 0], [0, 1]])
  maps = np.asarray(relevance(vit, images, classes))
  assert maps.shape == (2, 2, 2, 2) and maps.dtype == np.float32
  expected = expected_relevance(vit, patches[1], params)
  assert min(np.ptp(expected[0]), np.ptp(expected[1])) > 1e-3
  np.testing.assert_allclose(maps[1].reshape(2, 4), expected[:2], rtol=1e-3, atol=1e-6)


def test_the_attention_of_the_training_does_not_matter():
  vit = tiny((8, 8))
  other = dataclasses.replace(vit, model=vit.model.clone(attention=cudnn_attention, remat='full'))
  images = noise(vit)
  np.testing.assert_array_equal(
    relevance(other, images, [[0, 2], [1, 0]]), relevance(vit, images, [[0, 2], [1, 0]])
  )


def test_a_hybrid():
  vit, images = golden('hybrid_stem'), golden_images('hybrid_stem')
  maps = np.asarray(relevance(vit, images, [[0], [1]]))
  grid = tuple(side // vit.model.patch_size for side in vit.image_size)
  assert maps.shape == (2, 1, *grid) and maps.min() >= 0 and maps.max() > 0


def test_mistakes():
  vit = tiny()
  images = noise(vit)
  with pytest.raises(UserError, match='no class 3; the model has 3 classes'):
    relevance(vit, images, [[0], [3]])
  with pytest.raises(UserError, match='no class -1'):
    relevance(vit, images, [[0], [-1]])
  for classes in ([0, 1], [[0]], [[0.0], [1.0]]):
    with pytest.raises(ValueError, match='a row for each of the 2 images'):
      relevance(vit, images, classes)
  with pytest.raises(UserError, match='no head'):
    relevance(tiny(num_classes=0), images, [[0], [0]])
  with pytest.raises(UserError, match='MLP-Mixer'):
    relevance(golden('mixer'), np.zeros((1, 32, 32, 3), np.float32), [[0]])
