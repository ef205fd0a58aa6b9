"""Models without biases of queries, keys or values: their files, and models that have them."""

import jax
import numpy as np
import pytest

import vit_jax
from tests.helpers import random_params
from vit_jax.errors import UserError
from vit_jax.models.vit import Numerics, VisionTransformer
from vit_jax.weights.adapt import load_params

SIZE = (8, 8)
SMALL = VisionTransformer(
  patch_size=4,
  width=8,
  depth=2,
  mlp_dim=8,
  num_heads=2,
  num_classes=3,
  numerics=Numerics(gelu='exact'),  # timm's class without biases of keys has no other
)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, *SIZE, 3)).astype(np.float32)


def make(qkv_bias: str) -> vit_jax.Classifier:
  model = SMALL.clone(qkv_bias=qkv_bias)
  return vit_jax.Classifier(model, random_params(model, SIZE), SIZE)


@pytest.mark.parametrize('qkv_bias', ['query_value', 'none'])
@pytest.mark.parametrize('target', ['model/', 'x.safetensors', 'timm/', 'huggingface/', 'x.npz'])
def test_files_give_the_same_outputs(target, qkv_bias, tmp_path):
  vit = make(qkv_bias)
  layout = target[:-1] if target.endswith('/') else None
  vit.save(f'{tmp_path}/{target}', layout)
  loaded = vit_jax.load(f'{tmp_path}/{target}')
  with_zeros = target == 'x.npz' or (target == 'huggingface/' and qkv_bias == 'query_value')
  assert loaded.model.qkv_bias == ('all' if with_zeros else qkv_bias)
  np.testing.assert_allclose(loaded(IMAGES), vit(IMAGES), rtol=0, atol=1e-5)


def test_a_model_with_more_biases_begins_with_zeros(tmp_path):
  vit = make('none')
  vit.save(tmp_path / 'm', 'model')
  for qkv_bias, count in (('query_value', 4), ('all', 6)):
    params, _ = load_params(tmp_path / 'm', SMALL.clone(qkv_bias=qkv_bias), (*SIZE, 3))
    paths = {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(params)}
    biases = [
      x
      for name, x in paths.items()
      if 'MultiHead' in name and "'bias'" in name and "'out'" not in name
    ]
    assert len(biases) == count and not any(np.any(x) for x in biases)


def test_biases_are_not_lost(tmp_path):
  make('all').save(tmp_path / 'm', 'model')
  with pytest.raises(UserError, match='qkv_bias is all in the file, none in the config'):
    load_params(tmp_path / 'm', SMALL.clone(qkv_bias='none'), (*SIZE, 3))
