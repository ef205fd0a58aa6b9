"""Scoring a model on data sets whose classes have other names, or none."""

import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.helpers import GOLDEN
from vit_jax.config import EvalConfig
from vit_jax.errors import UserError
from vit_jax.evaluation import suite
from vit_jax.evaluation.probes import frozen_features
from vit_jax.evaluation.score import score


def write_images(folder, names) -> str:
  for name in names:
    (folder / 'test' / name).mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / 'test' / name / '1.png')
  return f'folder:{folder}'


def test_data_with_numbered_classes_takes_the_names_of_the_model(tmp_path):
  vit = vit_jax.load(GOLDEN / 'vit_gap.npz').with_head(3, ['ant', 'bee', 'cat'])
  numbered = write_images(tmp_path / 'numbered', ['0', '1', '2'])

  def score_all(data: str) -> dict:
    config = EvalConfig(source=data, split='test', batch_size=64)
    return score(vit, {'classification': config}).to_json()

  assert score_all(numbered)['examples'] == 3
  others = write_images(tmp_path / 'others', ['ant', 'bee', 'cow'])
  with pytest.raises(UserError, match='missing: cat'):
    score_all(others)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'kind': 'knn', 'neighbors': (5, 1500)}, 'has 1,437 examples, fewer than the 1500 neighbors'),
    ({'kind': 'fewshot', 'shots': (500,)}, 'Class 8 of digits .train. has 139 examples, fewer'),
  ],
)
def test_too_few_examples_are_an_error_before_anything_is_read(fields, message, monkeypatch):
  monkeypatch.setattr('vit_jax.evaluation.score.DataLoader', None)
  vit = vit_jax.load(GOLDEN / 'vit_gap.npz')
  digits = {'source': 'digits', 'train_source': 'digits', 'split': 'test', 'batch_size': 64}
  with pytest.raises(UserError, match=message):
    score(vit, {'probe': EvalConfig(**digits, **fields)})


def test_few_shots_extract_only_the_examples_that_are_drawn(monkeypatch):
  vit = vit_jax.load(GOLDEN / 'vit_gap.npz')
  digits = {'source': 'digits', 'train_source': 'digits', 'split': 'test', 'batch_size': 64}
  config = EvalConfig(**digits, kind='fewshot', shots=(1, 3))
  sizes, gather = [], frozen_features.gather

  def count(rows, size, dim):
    sizes.append(size)
    return gather(rows, size, dim)

  monkeypatch.setattr(suite.feature_cache, 'load', lambda *unused: None)
  monkeypatch.setattr(suite.feature_cache, 'write', lambda *unused: None)
  monkeypatch.setattr(suite.frozen_features, 'gather', count)
  few = score(vit, {'few': config}).to_json()
  monkeypatch.setattr(suite, '_draw', lambda *unused: None)
  assert score(vit, {'few': config}).to_json() == few
  assert 30 < sizes[0] <= 90
  assert sizes[1:] == [360, 1437, 360]
