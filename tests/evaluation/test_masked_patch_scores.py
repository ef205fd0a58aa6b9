"""Images are scored one by one, in whatever batches, padded or not."""

import jax
import numpy as np
import pytest

from tests.helpers import IMAGES, jit, make_model, random_params
from vit_jax.errors import UserError
from vit_jax.evaluation.masked_patch_scores import evaluate_masked_patches, make_masked_eval_step
from vit_jax.models.masked_patches import with_prediction_head


def batches(size: int, readable=range(8)):
  """The eight images, the last batch padded with others that are not scored."""
  rows = np.arange(-(-8 // size) * size)
  mask = np.isin(rows, readable)
  for start in range(0, len(rows), size):
    part = slice(start, start + size)
    yield {'image': IMAGES[rows[part] % 8], 'label': rows[part], 'mask': mask[part]}


@pytest.mark.parametrize('target', ['mean_color', 'pixels'])
def test_batches_change_nothing(target):
  model = with_prediction_head(make_model(dropout_rate=0.5), target, (8, 8, 3))
  step, params = jit(make_masked_eval_step(model)), random_params(model, (8, 8))
  whole, parts = (evaluate_masked_patches(step, params, batches(size)) for size in (8, 3))
  scores = jax.device_get(step(params, next(batches(8))))
  assert whole.examples == parts.examples == 8
  for result in (whole, parts):
    assert result.loss == pytest.approx(scores['loss'].mean(), rel=1e-6)
    assert result.score == -result.loss
  names = {'loss', 'examples'} | ({'masked_patch_accuracy'} if target == 'mean_color' else set())
  assert whole.metrics.keys() == names
  if target == 'mean_color':
    assert parts.accuracy == pytest.approx(scores['accuracy'].mean(), rel=1e-6)
  some = evaluate_masked_patches(step, params, batches(3, readable=[1, 6]))
  assert some.examples == 2
  assert some.loss == pytest.approx(scores['loss'][[1, 6]].mean(), rel=1e-6)
  with pytest.raises(UserError, match='None of the test examples can be read'):
    evaluate_masked_patches(step, params, batches(8, readable=[]))
