"""Position embeddings, by kind and by where they enter: their properties, names and shapes."""

import jax
import numpy as np
import pytest

from tests.helpers import jit, random_params
from vit_jax.config import ModelConfig
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.dot_product_attention import choose_attention
from vit_jax.models.flops import forward_flops
from vit_jax.models.from_tensors import model_from_tensors
from vit_jax.models.positions import ADDED, relative_logits
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.layouts.released import flatten

TINY = dict(patch_size=4, width=16, depth=2, mlp_dim=24, num_heads=2, num_classes=0)
SIZE = (8, 12)  # 2 x 3 patches
OPTIONS = [
  *((kind, entry) for kind in ADDED for entry in ('stem', 'layers', 'layers_shared')),
  ('relative', 'stem'),
  ('relative', 'layers_shared'),
  ('none', 'stem'),
]
TABLES = {
  '1d': {'pos_embedding': (1, 7, 16)},
  '2d': {'x_embedding': (1, 3, 8), 'y_embedding': (1, 2, 8)},
  'relative': {'relative_embedding': (11, 2, 8)},
  'none': {},
}
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, *SIZE, 3)).astype(np.float32)


def make(kind: str, entry: str = 'stem', **fields) -> VisionTransformer:
  return VisionTransformer(**TINY | fields, position_embedding=kind, position_entry=entry)


def apply(model, params, images=IMAGES, **kwargs):
  return np.asarray(jit(lambda p, x: model.apply({'params': p}, x, **kwargs))(params, images))


@pytest.mark.parametrize(('kind', 'entry'), OPTIONS)
def test_names_and_shapes_tell_the_option(kind, entry):
  model = make(kind, entry)
  shapes = {name: x.shape for name, x in flatten(build.abstract_params(model, SIZE)).items()}
  if entry == 'layers_shared':
    modules = ['Transformer/posembed_layers']
  elif entry == 'stem' and kind != 'relative':
    modules = ['Transformer/posembed_input']
  else:
    modules = [f'Transformer/encoderblock_{i}/posembed_input' for i in range(2)]
  tables = {f'{module}/{name}': x for module in modules for name, x in TABLES[kind].items()}
  assert {name: x for name, x in shapes.items() if 'posembed' in name} == tables
  params = flatten(build.abstract_params(model, SIZE))
  assert build.architecture(model_from_tensors(params, 'x')) == build.architecture(model)


def test_2d_is_1d_with_rows_and_columns_composed():
  model, size = make('2d', pool='gap'), SIZE
  params = random_params(model, size)
  tables = params['Transformer'].pop('posembed_input')
  grid = np.zeros((2, 3, 16), np.float32)
  for row in range(2):
    for column in range(3):
      grid[row, column, :8] = tables['x_embedding'][0, column]
      grid[row, column, 8:] = tables['y_embedding'][0, row]
  composed = {**params['Transformer'], 'posembed_input': {'pos_embedding': grid.reshape(1, 6, 16)}}
  params['Transformer']['posembed_input'] = tables
  expected = apply(make('1d', pool='gap'), {**params, 'Transformer': composed})
  np.testing.assert_allclose(apply(model, params), expected, atol=1e-5)


def test_without_positions_the_order_of_patches_does_not_matter():
  model = make('none', pool='gap')
  params = random_params(model, SIZE)
  patches = IMAGES.reshape(2, 2, 4, 3, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 6, 4, 4, 3)
  patches = patches[:, np.random.default_rng(1).permutation(6)].reshape(2, 2, 3, 4, 4, 3)
  permuted = patches.transpose(0, 1, 3, 2, 4, 5).reshape(IMAGES.shape)
  assert np.abs(permuted - IMAGES).max() > 1
  np.testing.assert_allclose(apply(model, params, permuted), apply(model, params), atol=1e-5)


@pytest.mark.parametrize('class_token', [0, 1])
def test_relative_logits_depend_on_the_offset_of_patches_alone(class_token):
  rng = np.random.default_rng(0)
  query = np.broadcast_to(rng.normal(size=(1, 1, 3, 4)), (2, 5 + class_token, 3, 4))
  table = rng.normal(size=(9, 3, 4)).astype(np.float32)
  logits = np.asarray(relative_logits(np.float32(query), table))[..., class_token:, class_token:]
  for q in range(5):
    for k in range(5):
      expected = np.einsum('bhd,hd->bh', query[:, 0], table[q - k + 4])
      np.testing.assert_allclose(logits[:, :, q, k], expected, rtol=1e-5, atol=1e-5)
  everything = np.asarray(relative_logits(np.float32(query), table))
  assert not everything[..., :class_token, :].any() and not everything[..., :class_token].any()


@pytest.mark.parametrize('pool', ['token', 'gap'])
def test_attention_is_that_of_jax_with_relative_positions_too(pool):
  model = make('relative', pool=pool)
  params = random_params(model, SIZE)
  other = apply(model.clone(attention=choose_attention('xla', 'cpu')), params)
  np.testing.assert_allclose(other, apply(model, params), atol=1e-5)
  params['Transformer']['encoderblock_0']['posembed_input']['relative_embedding'] *= 0
  assert np.abs(apply(model, params) - other).max() > 1e-3


@pytest.mark.parametrize('kind', ['1d', '2d', 'relative'])
def test_a_shared_table_is_that_of_each_layer(kind):
  shared = make(kind, 'layers_shared')
  own = make(kind, 'stem' if kind == 'relative' else 'layers')
  params = random_params(shared, SIZE)
  copied = {**params, 'Transformer': dict(params['Transformer'])}
  table = copied['Transformer'].pop('posembed_layers')
  for i in range(2):
    block = copied['Transformer'][f'encoderblock_{i}']
    copied['Transformer'][f'encoderblock_{i}'] = {**block, 'posembed_input': table}
  np.testing.assert_allclose(apply(own, copied), apply(shared, params), atol=1e-5)


@pytest.mark.parametrize(
  ('kind', 'entry'),
  [('1d', 'layers'), ('2d', 'layers_shared'), ('relative', 'stem'), ('relative', 'layers_shared')],
)
def test_scanning_and_rematerializing_change_nothing(kind, entry):
  model = make(kind, entry, pool='gap', dropout_rate=0.2)
  params = random_params(model, SIZE)

  def gradient(model):
    def loss(params):
      rngs = {'dropout': jax.random.key(0)}
      return model.apply({'params': params}, IMAGES, deterministic=False, rngs=rngs).sum()

    return flatten(jit(jax.grad(loss))(params))

  expected = gradient(model)
  for name, x in gradient(model.clone(scan_blocks=True, remat='full')).items():
    np.testing.assert_allclose(x, expected[name], rtol=2e-3, atol=2e-3, err_msg=name)
    assert np.abs(x).max() > 0 or name.endswith('key/bias'), name


@pytest.mark.parametrize(('kind', 'entry'), [('2d', 'stem'), ('relative', 'layers_shared')])
def test_a_hybrid_has_the_positions_of_its_patches(kind, entry):
  model = make(kind, entry, resnet_width=32, resnet_blocks=(1,), patch_size=8)
  params = random_params(model, (16, 24))
  tables = {n.rpartition('/')[2]: x.shape for n, x in flatten(params).items() if 'posembed' in n}
  assert tables == TABLES[kind]
  images = np.zeros((1, 16, 24, 3), np.float32)
  assert np.isfinite(apply(model, params, images)).all()


def test_relative_positions_are_a_third_product_of_the_attention():
  plain, relative = (make(kind, width=256, pool='gap') for kind in ('none', 'relative'))
  assert forward_flops(relative, SIZE) - forward_flops(plain, SIZE) == 2 * 2 * 6 * 11 * 256


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'position_embedding': '3d'}, 'choose one of 1d, 2d, relative, none'),
    ({'position_entry': 'head'}, 'choose one of stem, layers, layers_shared'),
    ({'position_embedding': '2d', 'width': 21, 'num_heads': 3}, 'needs an even one'),
    ({'position_embedding': 'none', 'position_entry': 'layers'}, 'position_embedding is none'),
    ({'position_embedding': 'relative', 'position_entry': 'layers'}, 'set it to stem or'),
    ({'axial': True}, 'axial=True needs pool gap or map'),
    (
      {
        'axial': True,
        'pool': 'gap',
        'position_embedding': 'relative',
        'position_entry': 'layers_shared',
      },
      'rows and of columns',
    ),
  ],
)
def test_options_that_do_not_fit_are_refused_in_one_sentence(fields, message):
  with pytest.raises(UserError, match=message) as caught:
    build.model_from_config(ModelConfig(**fields), num_classes=10)
  assert '\n' not in str(caught.value)
