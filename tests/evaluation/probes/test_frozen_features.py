"""Features are those of a plain forward pass, extracted once, and read again only if unchanged."""

import dataclasses
import os

import numpy as np
import pytest

import vit_jax
from tests.helpers import GOLDEN, write_images
from vit_jax.config import EvalConfig
from vit_jax.evaluation import suite
from vit_jax.evaluation.probes import feature_cache
from vit_jax.evaluation.score import score


@pytest.fixture
def data(tmp_path, monkeypatch) -> str:
  """16 readable images and a damaged one."""
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  files = {f'{s}/{c}/{i}.png': (9, 12) for s in ('train', 'test') for c in 'ab' for i in range(4)}
  write_images(tmp_path / 'x', files)
  (tmp_path / 'x' / 'test' / 'a' / '9.png').write_bytes(b'nothing')
  return f'folder:{tmp_path}/x'


@pytest.fixture
def probed(monkeypatch) -> list[suite.Features]:
  """The features that evaluations get, in order."""
  features = []

  def keep(config, train, test):
    del config
    features.extend((train, test))
    return {'accuracy': 0.5}

  monkeypatch.setitem(suite._PROBES, 'knn', keep)
  return features


def run(vit, data: str, **fields) -> dict:
  config = EvalConfig(
    kind='knn',
    source=data,
    split='test',
    train_source=data,
    neighbors=(1,),
    batch_size=fields.pop('batch_size', 8),
  )
  return score(vit, {'knn': config}, on_bad_example='skip', **fields).to_json()


@pytest.mark.parametrize('cache', [False, True])
def test_features_equal_a_plain_forward_pass(data, probed, cache, tmp_path):
  vit = vit_jax.load(GOLDEN / 'vit_token_prelogits.npz')
  report = run(vit, data, cache=cache)
  assert report['knn'] == {'data': f'{data} (test), trained on {data} (train)', 'accuracy': 0.5}
  for split, features in zip(('train', 'test'), probed, strict=True):
    paths = [tmp_path / 'x' / split / c / f'{i}.png' for c in 'ab' for i in range(4)]
    expected = vit.features(vit.preprocess(paths))
    np.testing.assert_allclose(features.values, expected, rtol=1e-5, atol=1e-5)
    assert features.labels.tolist() == [0] * 4 + [1] * 4
    assert isinstance(features.values, np.memmap) == cache


def test_a_cache_is_used_until_anything_changes(data, probed, monkeypatch, tmp_path):
  extracted = []
  extract = suite.frozen_features.extract

  def count(*arguments):
    extracted.append(1)
    yield from extract(*arguments)

  monkeypatch.setattr(suite.frozen_features, 'extract', count)
  vit = vit_jax.load(GOLDEN / 'vit_token_prelogits.npz')

  def num_extracted(model, **fields) -> int:
    extracted.clear()
    run(model, data, cache=True, **fields)
    return len(extracted)

  assert num_extracted(vit) == 2
  assert num_extracted(vit) == 0
  assert num_extracted(vit, batch_size=16) == 0  # changes nothing
  np.testing.assert_array_equal(probed[0].values, probed[2].values)
  squashed = dataclasses.replace(vit.preprocessing, resize='squash')
  assert num_extracted(dataclasses.replace(vit, preprocessing=squashed)) == 2
  other = vit_jax.load(GOLDEN / 'vit_token_prelogits.npz')
  other.params['cls'] = other.params['cls'] + 1e-3
  assert num_extracted(other) == 2
  image = tmp_path / 'x' / 'train' / 'a' / '0.png'
  status = image.stat()
  os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
  assert num_extracted(vit) == 1  # of the split with the changed file
  for file in (tmp_path / 'cache' / 'features').glob('*.f32'):
    file.write_bytes(file.read_bytes()[:-8])
  assert num_extracted(vit) == 2  # a truncated cache


def test_without_a_cache_folder_features_are_computed(data, probed, monkeypatch, tmp_path, capsys):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'file'))
  run(vit_jax.load(GOLDEN / 'vit_token_prelogits.npz'), data, cache=True)
  assert len(probed) == 2 and 'note: features are not kept in' in capsys.readouterr().err


def test_a_full_disk_is_noticed_before(monkeypatch, tmp_path, capsys):
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path))
  rows = iter([(np.zeros((1, 2), np.float32), np.zeros(1, np.int32))])
  assert feature_cache.write('x', rows, 2**60, 2) is None
  assert 'are free' in capsys.readouterr().err and next(rows)
