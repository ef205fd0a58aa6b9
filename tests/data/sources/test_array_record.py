"""array_record: and tfds: data sets in TFDS's format, and damaged ones."""

import dataclasses
import json
import tracemalloc
import types

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from tests.helpers import (
  TFDS_IMAGES,
  TFDS_LABELS,
  read_example,
  read_labels,
  write_images,
  write_tfds,
)
from vit_jax.data.loading.reader import ReadConfig, make_reader
from vit_jax.data.sources import array_record, open_source, tf_example
from vit_jax.data.sources.splitting.permutation import permute
from vit_jax.errors import BadExampleError, UserError
from vit_jax.prepare import pipeline
from vit_jax.prepare.shard_plan import Preparation


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


def test_an_index_that_stays_in_the_file_gives_the_same_examples(tmp_path, monkeypatch):
  root = tmp_path / 'pets' / '1.0.0'
  write_tfds(root, 'label')
  in_memory = open_source(f'array_record:{root}', 'train')
  monkeypatch.setattr(array_record, '_MAX_INDEX_BYTES', 0)
  opened, module = [], array_record.import_array_record()

  def open_reader(file: str, options: str):
    opened.append(options)
    return module.ArrayRecordReader(file, options=options)

  recorded = types.SimpleNamespace(ArrayRecordReader=open_reader)
  monkeypatch.setattr(array_record, 'import_array_record', lambda: recorded)
  source = open_source(f'array_record:{root}', 'train')
  for i in (4, 0, 1, 2, 3, 4):
    assert source.read(i) == in_memory.read(i)
  assert set(opened) == {array_record._OPTIONS + array_record._OFFLOADED}


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


def test_splits_have_the_usual_names(tmp_path):
  write_tfds(tmp_path / 'x', 'label')
  file = tmp_path / 'x' / 'dataset_info.json'
  info = json.loads(file.read_text())
  train = info['splits'][0]
  template = train.get('filepathTemplate', array_record._TEMPLATE).replace('{SPLIT}', 'train')
  info['splits'].append(train | {'name': 'validation', 'filepathTemplate': template})
  file.write_text(json.dumps(info))
  for split in ('validation', 'val', 'test', 'Test'):
    assert open_source(f'array_record:{tmp_path}/x', split).name.endswith(' (validation)')
  assert open_source(f'array_record:{tmp_path}/x', 'training').name.endswith(' (train)')


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
  write_images(tmp_path / 'in', {f'all/{c}/{i}.png': (30, 30) for c in 'ab' for i in range(20)})
  (tmp_path / 'in' / 'all').rename(tmp_path / 'in' / 'train')
  pipeline.prepare(Preparation(str(tmp_path / 'in'), tmp_path / 'out', shards=1), workers=1)
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


def write_record(root, features: dict) -> None:
  """A data set of one record, with three classes."""
  write_tfds(root, 'labels' if 'labels' in features else 'label')
  info = json.loads((root / 'dataset_info.json').read_text())
  info['splits'][0] |= {'shardLengths': ['1']}
  (root / 'dataset_info.json').write_text(json.dumps(info))
  write_shard(root / 'pets-train.array_record-00000-of-00001', [tf_example.encode(features)])


def write_shard(path, records: list[bytes]) -> None:
  writer = ArrayRecordWriter(str(path), 'group_size:1')
  for record in records:
    writer.write(record)
  writer.close()


@pytest.mark.parametrize('label', [3, -1, 500, 2**31, 2**40, -(2**63)])
@pytest.mark.parametrize('key', ['label', 'labels'])
def test_a_label_outside_the_classes_is_a_bad_example(label, key, tmp_path):
  write_record(tmp_path / 'x', {'image': [b'png'], key: [label]})
  source = open_source(f'array_record:{tmp_path}/x', 'train')
  expected = f'record 0 cannot be read: its label is {label}, but the 3 classes are 0 to 2'
  with pytest.raises(BadExampleError, match=expected):
    source.read(0)
  mixture = open_source(f'array_record:{tmp_path}/x + array_record:{tmp_path}/x', 'train')
  with pytest.raises(BadExampleError, match=expected):
    mixture.read(1)


@pytest.mark.parametrize(
  'features',
  [
    {'image': [b'png'], 'label': []},
    {'image': [b'png'], 'label': [1, 2]},
    {'image': [b'png'], 'label': [b'1']},
    {'image': [7], 'label': [1]},
    {'image': [b'a', b'b'], 'label': [1]},
    {'label': [1]},
  ],
)
def test_a_record_without_one_image_and_one_label_is_a_bad_example(features, tmp_path):
  write_record(tmp_path / 'x', features)
  source = open_source(f'array_record:{tmp_path}/x', 'train')
  with pytest.raises(BadExampleError, match='record 0 cannot be read: '):
    source.read(0)


def test_a_record_that_declares_gigabytes_takes_no_memory(tmp_path):
  declared = b'\xf0\xff\xff\xff\x07'  # 2 GB, less 16 bytes
  record = b'\n' + declared + b'\n' + declared + b'\n\5image\x12'
  write_record(tmp_path / 'x', {'image': [b'png'], 'label': [0]})
  write_shard(tmp_path / 'x' / 'pets-train.array_record-00000-of-00001', [record])
  source = open_source(f'array_record:{tmp_path}/x', 'train')
  tracemalloc.start()
  with pytest.raises(BadExampleError, match='record 0 cannot be read: '):
    source.read(0)
  assert tracemalloc.get_traced_memory()[1] < 2**22
  tracemalloc.stop()


def test_a_test_split_without_labels_is_not_scored(tmp_path):
  write_record(tmp_path / 'x', {'image': [b'png'], 'label': [-1]})
  config = ReadConfig(f'array_record:{tmp_path}/x', 'train', (8, 8))
  out = {name: np.zeros(s, t) for name, (s, t) in make_reader(config).shapes.items()}
  with pytest.raises(BadExampleError, match='its label is -1'):
    make_reader(config).read(0, 0, out)
  config = dataclasses.replace(config, on_bad_example='skip')
  assert make_reader(config).read(0, 0, out) and not out['mask']


def test_labels_are_those_of_the_file_beside_the_shards_or_of_the_records(tmp_path):
  write_images(tmp_path / 'x', {f'{c}/{i}.png': (6, 8) for c in 'abc' for i in range(30)})
  pipeline.prepare(Preparation(str(tmp_path / 'x'), tmp_path / 'out', name='x'), workers=1)
  file = tmp_path / 'out' / 'x-train.labels.npy'
  labels = np.load(file)
  expected = read_labels(open_source(f'array_record:{tmp_path}/out', 'train'))
  assert labels.tolist() == expected and len(set(expected)) == 3
  for stale in (np.roll(labels, 7), labels[1:], labels + 1, labels.astype(float)):
    np.save(file, stale)
    assert read_labels(open_source(f'array_record:{tmp_path}/out', 'train')) == expected
  file.write_bytes(b'no array')
  assert read_labels(open_source(f'array_record:{tmp_path}/out', 'train')) == expected
