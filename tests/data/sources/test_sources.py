"""Where examples come from: digits, folders of images, TFDS data sets; and their errors."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.helpers import SANDBOX, TFDS_IMAGES, TFDS_LABELS, write_images, write_tfds
from vit_jax.data.decoding.images import open_image
from vit_jax.data.sources import check_same_classes, open_source, split_names
from vit_jax.errors import BadExampleError, UserError

SIZE = (6, 8)


def labels(source) -> list[int]:
  return [int(source.read(i)[1]) for i in range(source.size)]


def decoded(source, i: int):
  """(image, label) of an example, the image as its pixels."""
  stored, label = source.read(i)
  return open_image(stored, source.describe(i)).pixels(None), label


def pixels(source) -> set[bytes]:
  """The images of a source; random ones are all different."""
  return {decoded(source, i)[0].tobytes() for i in range(source.size)}


def images_in(*paths: pathlib.Path) -> set[bytes]:
  return {np.asarray(Image.open(path)).tobytes() for path in paths}


def write_classes(folder: pathlib.Path, count: int, *classes: str, seed: int = 0) -> None:
  names = [f'{name}/{i}.png' for name in classes for i in range(count)]
  write_images(folder, dict.fromkeys(names, SIZE), seed)


def test_digits():
  train, test = open_source('digits', 'train'), open_source('digits', 'test')
  assert (train.size, test.size) == (1437, 360)
  assert train.class_names == test.class_names == tuple('0123456789')
  image, label = train.read(0)
  assert (image.shape, image.dtype, label.dtype) == ((8, 8, 3), np.uint8, np.int32)
  assert max(train.read(i)[0].max() for i in range(50)) == 255


def test_digits_are_stratified_fixed_and_disjoint():
  train, test, everything = (open_source('digits', split) for split in ('train', 'test', 'all'))
  counts = [np.bincount(labels(source)) for source in (train, test, everything)]
  np.testing.assert_array_equal(counts[0] + counts[1], counts[2])
  np.testing.assert_allclose(counts[1], counts[2] * 0.2, atol=1)
  assert labels(test) == labels(open_source('digits', 'test'))
  assert labels(test)[:10] == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3]
  assert pixels(train) | pixels(test) == pixels(everything)
  assert not pixels(train) & pixels(test)


@pytest.mark.parametrize('held_out', ['test', 'val'])
def test_folder_with_two_splits(held_out, tmp_path):
  write_classes(tmp_path / 'train', 3, 'dog', 'cat')
  write_classes(tmp_path / held_out, 2, 'cat', 'dog', seed=1)
  train = open_source(f'folder:{tmp_path}', 'train')
  assert train.class_names == ('cat', 'dog')
  assert labels(train) == [0, 0, 0, 1, 1, 1]
  assert pixels(train) == images_in(*tmp_path.glob('train/*/*'))
  for split in ('test', 'val'):
    test = open_source(f'folder:{tmp_path}', split)
    assert labels(test) == [0, 0, 1, 1]
    assert pixels(test) == images_in(*tmp_path.glob(f'{held_out}/*/*'))


def test_folder_with_three_splits(tmp_path):
  for seed, split in enumerate(('train', 'val', 'test')):
    write_classes(tmp_path / split, 2, 'a', 'b', seed=seed)
  for split in ('train', 'val', 'test'):
    source = open_source(f'folder:{tmp_path}', split)
    assert pixels(source) == images_in(*tmp_path.glob(f'{split}/*/*'))


@pytest.mark.parametrize('root', ['', 'train'])
def test_folder_without_a_test_split_holds_a_fifth_out(root, tmp_path):
  write_classes(tmp_path / root, 60, 'ant', 'bee')
  train, test = (open_source(f'folder:{tmp_path}', split) for split in ('train', 'test'))
  assert pixels(train) | pixels(test) == images_in(*(tmp_path / root).glob('*/*'))
  assert not pixels(train) & pixels(test)
  assert 12 <= test.size <= 36
  assert train.class_names == test.class_names == ('ant', 'bee')
  assert pixels(open_source(f'folder:{tmp_path}', 'val')) == pixels(test)


def test_the_held_out_files_depend_on_their_names_alone(tmp_path):
  write_classes(tmp_path / 'one', 30, 'ant', 'bee')
  (tmp_path / 'one').rename(tmp_path / 'two')
  before = pixels(open_source(f'folder:{tmp_path}/two', 'test'))
  write_classes(tmp_path / 'two', 5, 'cow', seed=1)
  after = pixels(open_source(f'folder:{tmp_path}/two', 'test'))
  assert before == after - images_in(*tmp_path.glob('two/cow/*'))
  everything = open_source(f'folder:{tmp_path}/two', 'all')
  assert everything.size == 65


def test_a_class_without_held_out_images_keeps_its_label(tmp_path):
  write_classes(tmp_path, 40, 'b', 'c')
  write_classes(tmp_path, 1, 'a')
  for split in ('train', 'test'):
    source = open_source(f'folder:{tmp_path}', split)
    assert source.class_names == ('a', 'b', 'c')
    assert set(labels(source)) >= {1, 2}


def test_a_folder_of_test_images_only_can_be_evaluated(tmp_path):
  write_classes(tmp_path / 'test', 2, 'a', 'b')
  assert open_source(f'folder:{tmp_path}', 'test').size == 4
  with pytest.raises(UserError, match='test'):
    open_source(f'folder:{tmp_path}', 'train')


def test_folder_finds_all_names_of_image_files(tmp_path):
  names = [
    'A/1.PNG',
    'A/2.Jpg',
    'A/3.jpeg',
    'A/4.bmp',
    'A/5.webp',
    'A/more/inside/6.png',
    'großer Hund/schönes Bild.png',
    'großer Hund/猫.png',
    'b c/x y.z.png',
  ]
  write_images(tmp_path, dict.fromkeys(names, SIZE))
  (tmp_path / 'A' / 'notes.txt').write_text('no image')
  (tmp_path / 'A' / '._1.png').write_bytes(b'left by a file manager')
  write_images(tmp_path, {'.cache/0.png': SIZE})
  source = open_source(f'folder:{tmp_path}', 'all')
  assert source.class_names == ('A', 'b c', 'großer Hund')
  assert labels(source) == [0] * 6 + [1] + [2] * 2


def test_folder_images_may_have_any_size(tmp_path):
  write_images(tmp_path, {'a/1.png': (3, 9), 'b/1.png': (7, 2)})
  source = open_source(f'folder:{tmp_path}', 'all')
  assert [decoded(source, i)[0].shape for i in range(2)] == [(3, 9, 3), (7, 2, 3)]


def test_home_is_found(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  write_classes(tmp_path / 'my images', 2, 'a', 'b')
  assert open_source('folder:~/my images', 'all').size == 4


def bad_no_image(root):
  (root / 'cat').mkdir(parents=True)
  (root / 'cat' / 'readme.txt').write_text('soon')


def bad_one_class(root):
  write_classes(root, 3, 'cat')


def bad_no_class(root):
  write_images(root, {'1.png': SIZE, '2.png': SIZE})


def bad_classes(root):
  write_classes(root / 'train', 2, 'cat', 'dog')
  write_classes(root / 'test', 2, 'cat', 'owl')


def bad_split(root):
  write_classes(root, 1, 'cat', 'dog')


@pytest.mark.parametrize(
  ('write', 'split', 'message'),
  [
    (lambda root: None, 'train', 'There is no folder .*root'),
    (bad_no_image, 'train', 'holds no image'),
    (bad_one_class, 'train', r'1 class \(cat\)'),
    (bad_no_class, 'train', 'sub-folder'),
    (bad_classes, 'test', 'owl'),
    (bad_split, 'dev', 'train, val, test and all'),
    (bad_split, 'test', 'too few'),
  ],
)
def test_bad_folders_end_in_one_sentence(write, split, message, tmp_path):
  write(tmp_path / 'root')
  with pytest.raises(UserError, match=message) as caught:
    open_source(f'folder:{tmp_path}/root', split)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['training', 'train'])
@pytest.mark.parametrize('held_out', ['valid', 'validation', 'testing'])
def test_splits_may_be_called_otherwise(name, held_out, tmp_path):
  write_classes(tmp_path / name, 3, 'dog', 'cat')
  write_classes(tmp_path / held_out, 2, 'cat', 'dog', seed=1)
  assert open_source(f'folder:{tmp_path}', 'train').size == 6
  for split in ('test', 'val', 'validation'):
    assert open_source(f'folder:{tmp_path}', split).size == 4
  assert split_names(f'folder:{tmp_path}') == ('train', 'test' if held_out == 'testing' else 'val')
  write_classes(tmp_path / 'val', 2, 'cat', 'dog')
  if held_out != 'testing':
    with pytest.raises(UserError, match=f'has both val and {held_out}'):
      open_source(f'folder:{tmp_path}', 'train')


def test_classes_may_be_called_like_splits(tmp_path):
  write_classes(tmp_path, 8, 'val', 'oval')
  assert open_source(f'folder:{tmp_path}', 'all').class_names == ('oval', 'val')
  assert split_names(f'folder:{tmp_path}') == ('train', 'test')


def test_what_is_left_out_is_said(tmp_path):
  write_classes(tmp_path, 2, 'a', 'b')
  assert open_source(f'folder:{tmp_path}', 'all').notes == ()
  write_images(tmp_path, {'stray.png': SIZE, 'a/raw.tiff': SIZE, 'b/raw.TIFF': SIZE})
  (tmp_path / 'notes').touch()
  kinds, stray = open_source(f'folder:{tmp_path}', 'all').notes
  assert '3 files' in kinds and '.tiff 2, none 1' in kinds
  assert stray.startswith('1 image is left out: outside of the class folders')


def test_more_test_classes_than_train_classes_are_found_even_if_train_is_not_read(tmp_path):
  write_classes(tmp_path / 'train', 2, 'cat', 'dog', 'owl')
  write_classes(tmp_path / 'test', 2, 'cat', 'owl')
  assert labels(open_source(f'folder:{tmp_path}', 'test')) == [0, 0, 2, 2]


@pytest.mark.parametrize(
  'spec', ['', 'cifar10', 'folder', 'folder:', 'digits:x', 'zip:/tmp/x.zip', 'tfds:', ':']
)
def test_unknown_sources_name_the_known_ones(spec):
  with pytest.raises(UserError, match='choose one of digits, folder:/path, .*webdataset:/path'):
    open_source(spec, 'train')


@pytest.mark.parametrize('name', ['no_such_data_set', 'mnist/no_config', 'mnist:99.0.0', '../x'])
def test_unknown_tfds_names(name):
  with pytest.raises(UserError, match='TFDS') as caught:
    open_source(f'tfds:{name}', 'train')
  assert '\n' not in str(caught.value)


def test_a_known_tfds_name_that_is_not_prepared():
  with pytest.raises(UserError, match=r"not prepared .*tfds.builder\('binary_alpha_digits'"):
    open_source('tfds:binary_alpha_digits', 'train')


@pytest.mark.parametrize('key', ['label', 'labels'])
def test_array_record(key, tmp_path):
  write_tfds(tmp_path / 'pets' / '1.0.0', key)
  source = open_source(f'array_record:{tmp_path}/pets/1.0.0', 'train')
  assert (source.size, source.class_names) == (5, ('cat', 'dog', 'owl'))
  for i in (4, 0, 1, 2, 3):
    image, label = decoded(source, i)
    np.testing.assert_array_equal(image, TFDS_IMAGES[i])
    if key == 'label':
      assert (label, label.dtype, label.shape) == (TFDS_LABELS[key][i], np.int32, ())
    else:
      assert (label.dtype, label.shape) == (np.uint8, (3,))
      assert list(np.nonzero(label)[0]) == TFDS_LABELS[key][i]


def test_array_record_takes_parts_of_splits(tmp_path):
  write_tfds(tmp_path / 'x', 'label')
  part = open_source(f'array_record:{tmp_path}/x', 'train[20%:80%]')
  assert labels(part) == [1, 2, 0]


def no_label(root):
  features = json.loads((root / 'features.json').read_text())
  del features['featuresDict']['features']['label']
  (root / 'features.json').write_text(json.dumps(features))


def label_is_text(root):
  text = (root / 'features.json').read_text()
  features = json.loads(text)['featuresDict']['features']
  features['label'] = {
    'pythonClassName': 'tensorflow_datasets.core.features.text_feature.Text',
    'text': {},
  }
  whole = json.loads(text) | {'featuresDict': {'features': features}}
  (root / 'features.json').write_text(json.dumps(whole))


def other_format(root):
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
    (no_label, 'train', 'image and label are needed'),
    (label_is_text, 'train', 'label'),
    (other_format, 'train', 'array_record'),
  ],
)
def test_damaged_tfds_data_ends_in_one_sentence(damage, split, message, tmp_path):
  root = tmp_path / 'pets'
  write_tfds(root, 'label')
  damage(root)
  with pytest.raises(UserError, match=message) as caught:
    open_source(f'array_record:{root}', split)
  assert '\n' not in str(caught.value)


def test_a_lost_shard_is_named(tmp_path):
  write_tfds(tmp_path / 'pets', 'label')
  (tmp_path / 'pets' / 'pets-train.array_record-00001-of-00002').unlink()
  with pytest.raises(UserError, match='pets-train.array_record-00001-of-00002'):
    open_source(f'array_record:{tmp_path}/pets', 'train').read(4)


@pytest.mark.parametrize('order', [range(40), reversed(range(40))], ids=['up', 'down'])
def test_a_damaged_record_is_the_only_one_that_is_lost(order, tmp_path):
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


def test_nothing_imports_tensorflow(tmp_path):
  write_tfds(tmp_path / 'pets', 'label')
  write_classes(tmp_path / 'images', 2, 'a', 'b')
  (tmp_path / 'tensorflow').mkdir()
  (tmp_path / 'tensorflow' / '__init__.py').touch()  # an import of it would succeed
  code = f"""
import sys
import vit_jax, vit_jax.main, vit_jax.predict, vit_jax.evaluate
from vit_jax.data.sources import open_source
for spec in 'digits', 'folder:{tmp_path}/images', 'array_record:{tmp_path}/pets':
  open_source(spec, 'train[:3]' if spec[0] == 'a' else 'all').read(0)
try:
  open_source('tfds:no_such_data_set', 'train')
except vit_jax.UserError:
  assert 'tensorflow' not in sys.modules
  print('done')
"""
  result = subprocess.run(
    [sys.executable, '-c', code],
    cwd=SANDBOX,
    env=os.environ | {'PYTHONPATH': str(tmp_path)},
    capture_output=True,
    text=True,
  )
  assert (result.returncode, result.stdout) == (0, 'done\n'), result.stderr


def test_check_same_classes_names_the_difference():
  check_same_classes(('a', 'b'), ['a', 'b'], 'x')
  with pytest.raises(UserError, match='x has 2 classes, 3 were expected; missing: c'):
    check_same_classes(('a', 'b', 'c'), ('a', 'b'), 'x')
  with pytest.raises(UserError, match='not expected: z'):
    check_same_classes(('a', 'b'), ('a', 'z'), 'x')
  with pytest.raises(UserError, match='order'):
    check_same_classes(('a', 'b'), ('b', 'a'), 'x')
