"""Adapters: where they are, that they change nothing at first, and how they are merged."""

import jax
import numpy as np
import pytest

from tests.helpers import assert_same_tree, random_params
from vit_jax.config import LoraConfig, MeshConfig
from vit_jax.distributed import sharding
from vit_jax.errors import UserError
from vit_jax.models.lora import ADAPTER, add_adapters, has_adapters, merge_adapters
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.resnet import BiTResNet
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.layouts.released import flatten, unflatten

VIT = VisionTransformer(4, 16, 2, 24, 2, num_classes=3, pool='map', mlp='swiglu')
ALL = ('query', 'key', 'value', 'out', 'mlp')
BLOCK = 'Transformer/encoderblock_0'


def adapted(**fields):
  params = random_params(VIT, (8, 8))
  return params, add_adapters(params, LoraConfig(**{'rank': 4, **fields}), jax.random.key(0))


def test_adapters_are_beside_the_chosen_kernels_of_blocks():
  base, params = adapted(projections=ALL)
  shapes = {name: x.shape for name, x in flatten(params).items() if name.endswith(ADAPTER)}
  attention, mlp = f'{BLOCK}/MultiHeadDotProductAttention_0', f'{BLOCK}/MlpBlock_0'
  first = {name: shape for name, shape in shapes.items() if name.startswith(BLOCK)}
  assert first == {
    **{f'{attention}/{name}/lora_a': (16, 4) for name in ('query', 'key', 'value')},
    **{f'{attention}/{name}/lora_b': (4, 2, 8) for name in ('query', 'key', 'value')},
    f'{attention}/out/lora_a': (2, 8, 4),
    f'{attention}/out/lora_b': (4, 16),
    **{f'{mlp}/{name}/lora_a': (16, 4) for name in ('Dense_0', 'gate')},
    **{f'{mlp}/{name}/lora_b': (4, 24) for name in ('Dense_0', 'gate')},
    f'{mlp}/Dense_1/lora_a': (24, 4),
    f'{mlp}/Dense_1/lora_b': (4, 16),
  }
  assert len(shapes) == 2 * len(first)  # of two blocks, and none of the pooling
  assert has_adapters(params) and not has_adapters(base)
  _, few = adapted()  # as in the paper
  assert {name.split('/')[-2] for name in flatten(few) if name.endswith(ADAPTER)} == {
    'query',
    'value',
  }


def test_new_adapters_change_no_bit():
  base, params = adapted(projections=ALL)
  assert_same_tree(merge_adapters(params, 2.0), base)
  firsts = [x for name, x in flatten(params).items() if name.endswith('lora_a')]
  assert len({np.asarray(x).tobytes() for x in firsts}) == len(firsts)  # each has draws of its own
  for x in firsts:  # uniform within 1 / sqrt(inputs)
    inputs = x.size // 4
    assert 0.8 < np.abs(x).max() * inputs**0.5 <= 1


def test_merged_kernels_are_those_of_the_formula():
  rng = np.random.default_rng(0)
  base, params = adapted(projections=ALL)
  tensors = flatten(params)
  for name, x in tensors.items():
    if name.endswith('lora_b'):
      tensors[name] = rng.normal(size=x.shape).astype(np.float32)
  merged = flatten(merge_adapters(unflatten(tensors), 0.5))
  assert merged.keys() == flatten(base).keys()
  for name, kernel in flatten(base).items():
    expected, module = np.float64(kernel), name.removesuffix('/kernel')
    if f'{module}/lora_a' in tensors:
      a, b = (np.float64(tensors[f'{module}/{each}']) for each in ADAPTER)
      expected += 0.5 * (a.reshape(-1, 4) @ b.reshape(4, -1)).reshape(kernel.shape)
    np.testing.assert_allclose(merged[name], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('model', 'fields', 'message'),
  [
    (VIT, {'rank': 16}, 'lora.rank is 16; it must be less than 16, the rank of Transformer/enc'),
    (
      MlpMixer(4, 16, 1, 24, 24, num_classes=3),
      {'rank': 1},
      r'projections is .*; the model has no query in its blocks, but mlp',
    ),
    (BiTResNet(32, (1, 1, 1, 1), num_classes=3), {'rank': 1}, 'has no query in its blocks, but no'),
  ],
)
def test_what_cannot_be_adapted_is_one_sentence(model, fields, message):
  with pytest.raises(UserError, match=message):
    add_adapters(random_params(model, (8, 8)), LoraConfig(**fields), jax.random.key(0))


def test_a_projection_is_one_of_those_that_exist():
  with pytest.raises(UserError, match=r'lora.projections is .* at least one of query, key, value'):
    LoraConfig(projections=('queries',))


@pytest.mark.skipif(jax.device_count() != 8, reason='written for eight devices')
def test_adapters_are_sharded_as_their_kernels():
  _, params = adapted(projections=ALL)
  mesh = sharding.make_mesh(MeshConfig(data=4, tensor=2))
  specs = {
    name: tuple(x.spec) for name, x in flatten(sharding.state_shardings(params, mesh)).items()
  }
  attention, mlp = f'{BLOCK}/MultiHeadDotProductAttention_0', f'{BLOCK}/MlpBlock_0'
  assert specs[f'{attention}/query/lora_b'] == (None, 'tensor', None)
  assert specs[f'{attention}/out/lora_a'] == ('tensor', None, None)
  assert specs[f'{mlp}/gate/lora_b'] == specs[f'{mlp}/gate/kernel'] == (None, 'tensor')
  assert specs[f'{mlp}/Dense_1/lora_a'] == ('tensor', None)
  for name in (f'{attention}/query/lora_a', f'{attention}/out/lora_b', f'{mlp}/Dense_0/lora_a'):
    assert not any(specs[name])
