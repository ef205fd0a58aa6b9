"""Loading weights into a model without some of their tokens."""

import numpy as np
import pytest

import vit_jax
from tests.helpers import random_params
from vit_jax.errors import UserError
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.adapt import load_params

SIZE = (8, 8)
SMALL = VisionTransformer(patch_size=4, width=8, depth=1, mlp_dim=8, num_heads=2, num_classes=3)


@pytest.mark.parametrize(
  ('old', 'new', 'dropped'),
  [
    (dict(registers=2), dict(), {'registers (1, 2, 8)'}),
    (dict(registers=2), dict(pool='gap'), {'cls (1, 1, 8)', 'registers (1, 2, 8)'}),
    (dict(pool='token_gap'), dict(pool='gap'), {'cls (1, 1, 8)'}),
    (dict(pool='map', class_token=True), dict(pool='map'), {'cls (1, 1, 8)'}),
    (
      dict(pool='distilled'),
      dict(pool='token'),
      {'distillation (1, 1, 8)', 'head_distillation/kernel (8, 3)', 'head_distillation/bias (3,)'},
    ),
  ],
)
def test_the_rest_is_loaded(old, new, dropped, tmp_path):
  old, new = SMALL.clone(**old), SMALL.clone(**new)
  params = random_params(old, SIZE)
  vit_jax.Classifier(old, params, SIZE).save(tmp_path / 'm', 'model')
  loaded, report = load_params(tmp_path / 'm', new, (*SIZE, 3))
  assert dropped <= {*report.ignored}
  encoder, of_file = loaded['Transformer'], params['Transformer']
  positions = of_file['posembed_input']['pos_embedding']
  expected = np.concatenate([positions[:, : len(new.prefix_names)], positions[:, -4:]], axis=1)
  np.testing.assert_array_equal(encoder['posembed_input']['pos_embedding'], expected)
  np.testing.assert_array_equal(loaded['embedding']['kernel'], params['embedding']['kernel'])
  images = np.random.default_rng(0).uniform(-1, 1, (2, *SIZE, 3)).astype(np.float32)
  assert new.apply({'params': loaded}, images).shape == (2, 3)


@pytest.mark.parametrize(
  ('old', 'new', 'words'),
  [
    (dict(registers=3), dict(registers=2), 'registers is 3 in the file, 2 in the config'),
    (dict(pool='gap'), dict(), 'pool is gap in the file, token in the config'),
    (dict(), dict(registers=2), 'registers is 0 in the file, 2 in the config'),
    (dict(), dict(pool='map', class_token=True), 'pool is token in the file, map in the config'),
  ],
)
def test_others_are_another_architecture(old, new, words, tmp_path):
  old = SMALL.clone(**old)
  vit_jax.Classifier(old, random_params(old, SIZE), SIZE).save(tmp_path / 'm', 'model')
  with pytest.raises(UserError, match=words):
    load_params(tmp_path / 'm', SMALL.clone(**new), (*SIZE, 3))
