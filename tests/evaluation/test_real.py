"""ReaL accuracy equals a direct count, on folders and records with the original names."""

import pathlib

import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.helpers import GOLDEN, write_images
from vit_jax.classifier import Classifier
from vit_jax.config import EvalConfig
from vit_jax.data import imagenet
from vit_jax.data.sources import Source, digits, open_source
from vit_jax.data.sources.real_labels import with_real_labels
from vit_jax.errors import UserError
from vit_jax.evaluation.score import score
from vit_jax.prepare import pipeline
from vit_jax.prepare.shard_plan import Preparation

NUMBERS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 49_999)  # number 0 has no ReaL label


def name_of(number: int) -> str:
  return f'ILSVRC2012_val_{number + 1:08}.JPEG'


def labels_of(source: Source, i: int) -> tuple[int, ...]:
  number = imagenet.val_number(source.describe(i))
  assert number is not None
  return imagenet.real_labels()[number]


def top_class(vit: Classifier, source: Source, i: int) -> int:
  return int(np.argmax(vit(vit.preprocess([source.describe(i)]))))


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  """Ten validation images in two class folders; the names tell what they are."""
  root, rng = tmp_path_factory.mktemp('real') / 'val', np.random.default_rng(0)
  for number in NUMBERS:
    path = root / imagenet.synsets()[number % 2] / name_of(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (12, 9, 3), dtype=np.uint8)).save(path, 'JPEG')
  return root


@pytest.fixture(scope='module')
def vit(folder) -> Classifier:
  """A model that is right for some of the images: its random outputs are exchanged."""
  model = vit_jax.load(GOLDEN / 'vit_gap.npz').with_head(1000)
  shape, order = np.shape(model.params['head']['kernel']), np.arange(1000)
  kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  model.params['head']['kernel'] = kernel
  source = open_source(f'folder:{folder}', 'all')
  for i in range(source.size):
    if (labels := labels_of(source, i)) and i % 2:
      output = list(order).index(top_class(model, source, i))
      order[[output, labels[-1]]] = order[[labels[-1], output]]
  model.params['head']['kernel'] = kernel[:, order]
  return model


def run(vit: Classifier, data: str, split: str = 'all', **fields) -> dict:
  config = EvalConfig(kind='real', source=data, split=split, batch_size=8)
  return score(vit, {'real': config}, **fields).to_json()['real']


def test_it_equals_a_direct_count(vit, folder):
  source = open_source(f'folder:{folder}', 'all')
  labels = [labels_of(source, i) for i in range(source.size)]
  correct = sum(top_class(vit, source, i) in each for i, each in enumerate(labels))
  with_label = sum(map(bool, labels))
  assert 0 < correct < with_label < source.size
  expected = {
    'data': f'folder:{folder} (all), ReaL labels',
    'accuracy': correct / with_label,
    'examples': with_label,
    'examples_without_label': source.size - with_label,
  }
  assert run(vit, f'folder:{folder}') == expected
  assert run(vit, f'folder:{folder}', workers=1) == expected


def test_prepared_records_have_the_names(vit, folder, tmp_path):
  root = tmp_path / 'data' / 'test'
  root.parent.mkdir()
  root.symlink_to(folder)
  pipeline.prepare(Preparation(f'{tmp_path}/data', tmp_path / 'prepared', shards=1), workers=1)
  result = run(vit, f'array_record:{tmp_path}/prepared', 'test')
  assert result.pop('data') == f'array_record:{tmp_path}/prepared (test), ReaL labels'
  expected = run(vit, f'folder:{folder}')
  del expected['data']
  assert result == expected


def test_other_images_are_refused_before_any_is_read(vit, tmp_path, folder):
  with pytest.raises(UserError, match='example 0 is not called ILSVRC2012_val'):
    with_real_labels(digits.open_split('', 'test'))
  names = [f'{c}/{name_of(i)}' for i in range(2) for c in 'ab'] + ['a/x.jpg']
  write_images(tmp_path, dict.fromkeys(names, (8, 8)))
  with pytest.raises(UserError, match=r'a/x\.jpg is not called'):
    run(vit, f'folder:{tmp_path}')
  small = vit.with_head(3, ['ant', 'bee', 'cat'])
  with pytest.raises(UserError, match='missing: ant, cat'):
    run(small, f'folder:{folder}')


def test_images_without_any_label_cannot_be_scored(vit, tmp_path):
  numbers = [i for i, labels in enumerate(imagenet.real_labels()[:99]) if not labels][:2]
  write_images(tmp_path, {f'{i}/{name_of(i)}': (8, 8) for i in numbers})
  with pytest.raises(UserError, match='None of the images has a ReaL label'):
    run(vit, f'folder:{tmp_path}')
