"""All kinds of position embeddings in files: round trips, and images of another size."""

import dataclasses

import jax
import numpy as np
import pytest

import vit_jax
from tests.helpers import assert_same_tree, random_params
from vit_jax.config import ModelConfig
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.model_fields import model_fields
from vit_jax.weights.adapt import load_params
from vit_jax.weights.layouts.released import flatten
from vit_jax.weights.position_tables import resize_position_embedding, resize_table

SIZE = (8, 12)
OPTIONS = {
  '1d layers': dict(position_embedding='1d', position_entry='layers'),
  '1d shared': dict(position_embedding='1d', position_entry='layers_shared'),
  '2d': dict(position_embedding='2d'),
  '2d layers': dict(position_embedding='2d', position_entry='layers'),
  'relative': dict(position_embedding='relative'),
  'relative shared': dict(position_embedding='relative', position_entry='layers_shared'),
  'none': dict(position_embedding='none'),
  'axial': dict(axial=True, pool='gap'),
  'axial 2d': dict(axial=True, pool='map', position_embedding='2d', position_entry='layers'),
  'axial relative': dict(axial=True, pool='gap', position_embedding='relative'),
}


def make(name: str) -> vit_jax.Classifier:
  config = ModelConfig(patch_size=4, width=8, depth=2, mlp_dim=8, num_heads=2, **OPTIONS[name])
  model = build.model_from_config(config, 3)
  return vit_jax.Classifier(model, random_params(model, SIZE), SIZE)


def is_table(name: str) -> bool:
  return name.endswith('_embedding')


@pytest.mark.parametrize('name', OPTIONS)
@pytest.mark.parametrize('target', ['x.npz', 'x/'])
def test_models_are_saved_and_loaded_at_another_size(name, target, tmp_path):
  vit = make(name)
  vit.save(f'{tmp_path}/{target}')
  again = vit_jax.load(f'{tmp_path}/{target}')
  assert_same_tree(again.params, vit.params)
  assert build.architecture(again.model) == build.architecture(vit.model)
  assert again.image_size == SIZE and '_embedding' not in str(again.report)
  config = ModelConfig(**model_fields(again.model))
  assert build.architecture(build.model_from_config(config, 3)) == build.architecture(vit.model)
  other = vit_jax.load(f'{tmp_path}/{target}', image_size=(16, 8))
  shapes = {n: x.shape for n, x in flatten(build.abstract_params(vit.model, (16, 8))).items()}
  assert {n: x.shape for n, x in flatten(other.params).items()} == shapes
  assert_same_tree(other.params, vit.at_size((16, 8)).params)
  params, report = load_params(f'{tmp_path}/{target}', vit.model, (16, 8, 3))
  assert len(report.resized) == sum(map(is_table, shapes))
  params['head'] = other.params['head']
  assert_same_tree(params, other.params)


@pytest.mark.parametrize('name', OPTIONS)
def test_other_layouts_refuse_in_one_sentence(name, tmp_path):
  vit = make(name)
  targets = {'timm': 'x.safetensors', 'huggingface': 'x/'}
  if name == 'none':
    del targets['timm']  # has an argument for it
  for layout, target in targets.items():
    with pytest.raises(UserError, match='does not support; .*--layout=model') as caught:
      vit.save(f'{tmp_path}/{target}', layout)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['2d', 'relative', 'axial'])
def test_a_portable_program_computes_the_same(name):
  vit = make(name)
  images = np.random.default_rng(0).uniform(-1, 1, (2, *SIZE, 3)).astype(np.float32)
  program = jax.export.deserialize(bytearray(vit.to_stablehlo()))
  np.testing.assert_allclose(program.call(images), vit(images), atol=1e-5)
  assert vit(images[:0]).shape == (0, 3)


def test_a_square_relative_model_is_read_without_metadata(tmp_path):
  vit = make('relative').at_size((12, 12))
  np.savez(tmp_path / 'x.npz', **flatten(vit.params))
  assert vit_jax.load(tmp_path / 'x.npz').image_size == (12, 12)


@pytest.mark.parametrize('method', ['corners', 'half_pixel'])
def test_resizing_to_the_same_grid_and_back_from_a_finer_one(method):
  rng = np.random.default_rng(0)
  table = rng.normal(size=(2 * 12 - 1, 2, 4)).astype(np.float32)
  same = resize_table('x/relative_embedding', table, (3, 4), (3, 4), method)
  np.testing.assert_allclose(same, table, atol=1e-6)
  rows = rng.normal(size=(1, 3, 4)).astype(np.float32)
  finer = resize_table('x/y_embedding', rows, (3, 4), (5, 4), 'corners')
  np.testing.assert_allclose(finer[:, ::2], rows, atol=1e-6)


# Columns of `torch.nn.functional.interpolate` (2.13) of four equal columns [0, 1, 4, 2]; with an
# offset, of a scale_factor of (new + 0.1) / 4.
OF_PYTORCH = {
  ('bicubic', 6): [-0.0868056, 0.21875, 1.55208, 3.76042, 3.28125, 1.82639],
  ('bicubic_antialias', 6): [-0.0657893, 0.294118, 1.44213, 3.7662, 3.11765, 1.86842],
  ('bicubic', 3): [0.091435, 2.78125, 2.33912],
  ('bicubic_antialias', 3): [0.0755149, 2.6056, 2.6659],
  ('bicubic_offset', 6): [-0.0884798, 0.209823, 1.45563, 3.67671, 3.41646, 1.87241],
  ('bicubic_offset', 3): [0.0826163, 2.54733, 2.62623],
  ('bilinear_antialias', 6): [0, 0.5, 1.5, 3.5, 3, 2],
  ('bilinear_antialias', 3): [0.3, 2.5, 2.6],
}


@pytest.mark.parametrize(('method', 'new'), OF_PYTORCH)
def test_interpolations_are_those_of_pytorch(method, new):
  table = np.array([0, 1, 4, 2], np.float32).reshape(1, 4, 1)
  for old_grid, new_grid in (((4, 1), (new, 1)), ((1, 4), (1, new))):
    resized = resize_position_embedding(table, old_grid, new_grid, method)
    np.testing.assert_allclose(resized[0, :, 0], OF_PYTORCH[method, new], atol=1e-5)


@pytest.mark.parametrize(('name', 'side'), [('row', 1), ('column', 0)])
def test_offsets_of_rows_and_columns_are_interpolated_along_them(name, side):
  table = np.arange(-2, 3, dtype=np.float32)[:, None, None] * np.ones((1, 2, 4), np.float32)
  old, new = [7, 7], [9, 9]
  old[side], new[side] = 3, 5
  resized = resize_table(f'b/{name}/relative_embedding', table, tuple(old), tuple(new), 'corners')
  np.testing.assert_allclose(resized[:, 0, 0], np.arange(-4, 5) / 2)


def test_offsets_in_a_grid_are_those_of_rows_and_columns():
  old, new = (5, 5), (9, 9)  # every second patch of the new grid is one of the old grid
  offsets = np.arange(-24, 25)
  rows = np.rint(offsets / 5)
  table = np.stack([rows, offsets - rows * 5], -1).reshape(49, 1, 2).astype(np.float32)
  resized = resize_table('x/relative_embedding', table, old, new, 'corners')[:, 0]
  for row in range(-6, 7, 2):
    for column in (-4, -2, 0, 2, 4):
      np.testing.assert_allclose(resized[row * 9 + column + 80], [row / 2, column / 2], atol=1e-6)


def test_a_table_of_one_side_is_refused(tmp_path):
  vit = make('2d')
  tensors = flatten(vit.params)
  tensors.pop('Transformer/posembed_input/y_embedding')
  np.savez(tmp_path / 'x.npz', **tensors)
  with pytest.raises(UserError, match='only one side'):
    vit_jax.load(tmp_path / 'x.npz')


def test_another_kind_than_that_of_the_run_is_refused(tmp_path):
  vit = make('2d')
  vit.save(tmp_path / 'x.npz')
  model = dataclasses.replace(vit, model=vit.model.clone(position_embedding='1d')).model
  with pytest.raises(UserError, match='position_embedding is 2d in the file, 1d in the config'):
    load_params(tmp_path / 'x.npz', model, (*SIZE, 3))
