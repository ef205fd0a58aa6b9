"""Principal components of the filters, similarities of the position embeddings."""

import dataclasses

import numpy as np
import pytest
from sklearn.decomposition import PCA

from tests.analysis.models import golden, tiny
from vit_jax.analysis import filters, position_similarity
from vit_jax.errors import UserError


def align(components: np.ndarray, like: np.ndarray) -> np.ndarray:
  return components * np.sign((components * like).sum(1, keepdims=True))


@pytest.mark.parametrize(
  ('name', 'kernel'), [('vit_gap', 'embedding'), ('mixer', 'stem'), ('hybrid_stem', None)]
)
def test_filters_are_principal_components(name, kernel):
  vit = golden(name)
  tree = vit.params[kernel] if kernel else vit.params['conv_root']
  weights = np.asarray(tree['kernel'], np.float64)
  matrix = weights.reshape(-1, weights.shape[-1]).T
  if not kernel:  # the ResNet's convolutions are standardized
    matrix = (matrix - matrix.mean(1, keepdims=True)) / matrix.std(1, keepdims=True)
  found = filters(vit, 3)
  assert found.shape == (3, *weights.shape[:3]) and found.dtype == np.float32
  flat = found.reshape(3, -1)
  expected = PCA(3, svd_solver='full').fit(matrix).components_
  np.testing.assert_allclose(align(expected, flat), flat, atol=2e-3)
  np.testing.assert_allclose(np.linalg.norm(flat, axis=1), 1, rtol=1e-5)
  assert (flat.max(1) >= -flat.min(1)).all()


def test_there_are_not_more_filters_than_features():
  assert len(filters(tiny(), 100)) == 16
  with pytest.raises(ValueError, match='n is 0'):
    filters(tiny(), 0)


def replace_positions(vit, *names, **tables):
  params = dict(vit.params)
  inner = params['Transformer'] = dict(params['Transformer'])
  for name in names[:-1]:
    inner[name] = dict(inner[name])
    inner = inner[name]
  inner[names[-1]] = tables
  return dataclasses.replace(vit, params=params)


@pytest.mark.parametrize('pool', ['token', 'gap'])
@pytest.mark.parametrize('entry', ['stem', 'layers', 'layers_shared'])
def test_similarities_of_1d_embeddings(pool, entry):
  names = {
    'stem': ['posembed_input'],
    'layers': ['encoderblock_0', 'posembed_input'],
    'layers_shared': ['posembed_layers'],
  }[entry]
  vit = tiny((8, 12), pool=pool, position_entry=entry)
  table = np.random.default_rng(0).normal(size=(6, 16))
  whole = np.concatenate([np.full((int(pool == 'token'), 16), 9.0), table])
  vit = replace_positions(vit, *names, pos_embedding=np.float32(whole[None]))
  similarity = position_similarity(vit)
  assert similarity.shape == (2, 3, 2, 3) and similarity.dtype == np.float32
  for i, j, k, m in np.ndindex(similarity.shape):
    one, two = table[3 * i + j], table[3 * k + m]
    cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
    assert similarity[i, j, k, m] == pytest.approx(cosine, abs=1e-5)


def test_registers_have_no_positions():
  vit = tiny((8, 12), registers=2)
  assert position_similarity(vit).shape == (2, 3, 2, 3)


def test_orthogonal_2d_embeddings_are_similar_in_a_row_or_a_column():
  vit = tiny((8, 12), position_embedding='2d')
  tables = {'x_embedding': np.eye(3, 8), 'y_embedding': np.eye(2, 8)}
  tables = {name: np.float32(table[None]) for name, table in tables.items()}
  similarity = position_similarity(replace_positions(vit, 'posembed_input', **tables))
  same_row, same_column = np.eye(2)[:, None, :, None], np.eye(3)[None, :, None, :]
  np.testing.assert_allclose(similarity, (same_row + same_column) / 2, atol=1e-6)


@pytest.mark.parametrize('kind', ['relative', 'none'])
def test_models_without_added_positions_are_refused(kind):
  with pytest.raises(UserError, match='no position embeddings'):
    position_similarity(tiny(position_embedding=kind))
  with pytest.raises(UserError, match='no position embeddings'):
    position_similarity(golden('mixer'))
