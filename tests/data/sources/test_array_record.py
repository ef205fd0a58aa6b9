"""array_record: and tfds: data sets in TFDS's format, and damaged ones."""

import json

import numpy as np
import pytest

from tests.helpers import (
  TFDS_IMAGES,
  TFDS_LABELS,
  read_example,
  read_labels,
  write_images,
  write_tfds,
)
from vit_jax.data.sources import open_source
from vit_jax.data.sources.permutation import permute
from vit_jax.errors import BadExampleError, UserError


@pytest.mark.parametrize('key', ['label', 'labels'])
def test_array_record_reads_images_and_labels(key, tmp_path):
  write_tfds(tmp_path / 'pets' / '1.0.0', key)
  source = open_source(f'array_record:{tmp_path}/pets/1.0.0', 'train')
  assert (source.size, source.class_names) == (5, ('cat', 'dog', 'owl'))
  for i in (4, 0, 1, 2, 3):
    image, label = read_example(source, i)
    np.testing.assert_array_equal(image, TFDS_IMAGES[i])
    if key == 'label':
      assert (label, label.dtype, label.shape) == (TFDS_LABELS[key][i], np.int32, ())
    else:
      assert (label.dtype, label.shape) == (np.uint8, (3,))
      assert list(np.nonzero(label)[0]) == TFDS_LABELS[key][i]


def test_array_record_slices_splits(tmp_path):
  write_tfds(tmp_path / 'x', 'label')
  source = open_source(f'array_record:{tmp_path}/x', 'train[20%:80%]')
  assert read_labels(source) == [1, 2, 0]  # TFDS has shuffled it
  info = json.loads((tmp_path / 'x' / 'dataset_info.json').read_text()) | {'disableShuffling': True}
  (tmp_path / 'x' / 'dataset_info.json').write_text(json.dumps(info))
  whole, part = (
    open_source(f'array_record:{tmp_path}/x', split) for split in ('train', 'train[:80%]')
  )
  assert read_labels(part) == [read_labels(whole)[permute(i, 5)] for i in range(4)]


def without_label(root):
  features = json.loads((root / 'features.json').read_text())
  del features['featuresDict']['features']['label']
  (root / 'features.json').write_text(json.dumps(features))


def with_text_as_label(root):
  text = (root / 'features.json').read_text()
  features = json.loads(text)['featuresDict']['features']
  features['label'] = {
    'pythonClassName': 'tensorflow_datasets.core.features.text_feature.Text',
    'text': {},
  }
  content = json.loads(text) | {'featuresDict': {'features': features}}
  (root / 'features.json').write_text(json.dumps(content))


def with_another_file_format(root):
  info = json.loads((root / 'dataset_info.json').read_text())
  (root / 'dataset_info.json').write_text(json.dumps(info | {'fileFormat': 'tfrecord'}))


@pytest.mark.parametrize(
  ('damage', 'split', 'message'),
  [
    (lambda root: None, 'test', "has the splits train, not 'test'"),
    (lambda root: (root / 'features.json').unlink(), 'train', 'no features.json'),
    (lambda root: (root / 'features.json').write_text('{"a'), 'train', 'pets'),
    (lambda root: (root / 'dataset_info.json').unlink(), 'train', 'dataset_info.json'),
    (lambda root: (root / 'dataset_info.json').write_text('{'), 'train', 'pets'),
    (without_label, 'train', 'image and label are needed'),
    (with_text_as_label, 'train', 'its feature label is Text; a ClassLabel is needed'),
    (with_another_file_format, 'train', 'file format tfrecord, not array_record'),
  ],
)
def test_damaged_tfds_data_ends_in_one_sentence(damage, split, message, tmp_path):
  root = tmp_path / 'pets'
  write_tfds(root, 'label')
  damage(root)
  with pytest.raises(UserError, match=message) as caught:
    open_source(f'array_record:{root}', split)
  assert '\n' not in str(caught.value)


def test_a_missing_shard_is_named(tmp_path):
  write_tfds(tmp_path / 'pets', 'label')
  (tmp_path / 'pets' / 'pets-train.array_record-00001-of-00002').unlink()
  with pytest.raises(UserError, match='pets-train.array_record-00001-of-00002'):
    open_source(f'array_record:{tmp_path}/pets', 'train').read(4)


@pytest.mark.parametrize('order', [range(40), reversed(range(40))], ids=['up', 'down'])
def test_a_damaged_record_does_not_affect_others(order, tmp_path):
  from vit_jax.prepare import pipeline

  write_images(tmp_path / 'in', {f'all/{c}/{i}.png': (30, 30) for c in 'ab' for i in range(20)})
  (tmp_path / 'in' / 'all').rename(tmp_path / 'in' / 'train')
  pipeline.prepare(str(tmp_path / 'in'), tmp_path / 'out', shards=1, workers=1)
  (shard,) = (tmp_path / 'out').glob('*-train.array_record*')
  healthy = open_source(f'array_record:{tmp_path}/out', 'train')
  expected = [healthy.read(i)[0] for i in range(healthy.size)]
  data = bytearray(shard.read_bytes())
  data[data.index(expected[5][200:260])] ^= 0x55
  shard.write_bytes(data)
  source, bad = open_source(f'array_record:{tmp_path}/out', 'train'), []
  for i in (i for i in order if i < source.size):
    try:
      assert source.read(i)[0] == expected[i]
    except BadExampleError:
      bad.append(i)
  assert bad == [5]


@pytest.mark.parametrize('name', ['no_such_data_set', 'mnist/no_config', 'mnist:99.0.0', '../x'])
def test_an_unknown_tfds_name_is_an_error_of_one_sentence(name):
  with pytest.raises(UserError, match='TFDS') as caught:
    open_source(f'tfds:{name}', 'train')
  assert '\n' not in str(caught.value)


def test_a_tfds_data_set_that_is_not_prepared_comes_with_the_command():
  with pytest.raises(UserError, match=r"not prepared .*tfds.builder\('binary_alpha_digits'"):
    open_source('tfds:binary_alpha_digits', 'train')
