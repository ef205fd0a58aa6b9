"""folder: splits, classes, hold-out, and folders that cannot be read."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from tests.helpers import read_example, read_images, read_labels, write_images
from vit_jax.data.sources import open_source, split_names
from vit_jax.errors import UserError

SIZE = (6, 8)


def images_in(*paths: pathlib.Path) -> set[bytes]:
  return {np.asarray(Image.open(path)).tobytes() for path in paths}


def write_classes(folder: pathlib.Path, count: int, *classes: str, seed: int = 0) -> None:
  names = [f'{name}/{i}.png' for name in classes for i in range(count)]
  write_images(folder, dict.fromkeys(names, SIZE), seed)


@pytest.mark.parametrize('held_out', ['test', 'val'])
def test_folder_with_two_splits(held_out, tmp_path):
  write_classes(tmp_path / 'train', 3, 'dog', 'cat')
  write_classes(tmp_path / held_out, 2, 'cat', 'dog', seed=1)
  train = open_source(f'folder:{tmp_path}', 'train')
  assert train.class_names == ('cat', 'dog')
  assert read_labels(train) == [0, 0, 0, 1, 1, 1]
  assert read_images(train) == images_in(*tmp_path.glob('train/*/*'))
  for split in ('test', 'val'):
    test = open_source(f'folder:{tmp_path}', split)
    assert read_labels(test) == [0, 0, 1, 1]
    assert read_images(test) == images_in(*tmp_path.glob(f'{held_out}/*/*'))


def test_folder_with_three_splits(tmp_path):
  for seed, split in enumerate(('train', 'val', 'test')):
    write_classes(tmp_path / split, 2, 'a', 'b', seed=seed)
  for split in ('train', 'val', 'test'):
    source = open_source(f'folder:{tmp_path}', split)
    assert read_images(source) == images_in(*tmp_path.glob(f'{split}/*/*'))


@pytest.mark.parametrize('root', ['', 'train'])
def test_folder_without_a_test_split_holds_a_fifth_out(root, tmp_path):
  write_classes(tmp_path / root, 60, 'ant', 'bee')
  train, test = (open_source(f'folder:{tmp_path}', split) for split in ('train', 'test'))
  assert read_images(train) | read_images(test) == images_in(*(tmp_path / root).glob('*/*'))
  assert not read_images(train) & read_images(test)
  assert 12 <= test.size <= 36
  assert train.class_names == test.class_names == ('ant', 'bee')
  assert read_images(open_source(f'folder:{tmp_path}', 'val')) == read_images(test)


def test_the_held_out_files_depend_only_on_their_names(tmp_path):
  write_classes(tmp_path / 'one', 30, 'ant', 'bee')
  (tmp_path / 'one').rename(tmp_path / 'two')
  before = read_images(open_source(f'folder:{tmp_path}/two', 'test'))
  write_classes(tmp_path / 'two', 5, 'cow', seed=1)
  after = read_images(open_source(f'folder:{tmp_path}/two', 'test'))
  assert before == after - images_in(*tmp_path.glob('two/cow/*'))
  everything = open_source(f'folder:{tmp_path}/two', 'all')
  assert everything.size == 65


def test_a_class_without_held_out_images_keeps_its_label(tmp_path):
  write_classes(tmp_path, 40, 'b', 'c')
  write_classes(tmp_path, 1, 'a')
  for split in ('train', 'test'):
    source = open_source(f'folder:{tmp_path}', split)
    assert source.class_names == ('a', 'b', 'c')
    assert set(read_labels(source)) >= {1, 2}


def test_a_folder_of_test_images_only_can_be_evaluated(tmp_path):
  write_classes(tmp_path / 'test', 2, 'a', 'b')
  assert open_source(f'folder:{tmp_path}', 'test').size == 4
  with pytest.raises(UserError, match='test'):
    open_source(f'folder:{tmp_path}', 'train')


def test_folder_finds_images_of_all_suffixes_and_depths(tmp_path):
  names = [
    'A/1.PNG',
    'A/2.Jpg',
    'A/3.jpeg',
    'A/4.bmp',
    'A/4.tif',
    'A/4.ppm',
    'A/5.webp',
    'A/more/inside/6.png',
    'großer Hund/schönes Bild.png',
    'großer Hund/猫.png',
    'b c/x y.z.png',
  ]
  write_images(tmp_path, dict.fromkeys(names, SIZE))
  (tmp_path / 'A' / 'notes.txt').write_text('not an image')
  (tmp_path / 'A' / '._1.png').write_bytes(b'left by a file manager')
  write_images(tmp_path, {'.cache/0.png': SIZE})
  source = open_source(f'folder:{tmp_path}', 'all')
  assert source.class_names == ('A', 'b c', 'großer Hund')
  assert read_labels(source) == [0] * 8 + [1] + [2] * 2


def test_folder_images_may_have_any_size(tmp_path):
  write_images(tmp_path, {'a/1.png': (3, 9), 'b/1.png': (7, 2)})
  source = open_source(f'folder:{tmp_path}', 'all')
  assert [read_example(source, i)[0].shape for i in range(2)] == [(3, 9, 3), (7, 2, 3)]


def test_a_path_may_start_with_the_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  write_classes(tmp_path / 'my images', 2, 'a', 'b')
  assert open_source('folder:~/my images', 'all').size == 4


def without_images(root):
  (root / 'cat').mkdir(parents=True)
  (root / 'cat' / 'readme.txt').write_text('soon')


def with_one_class(root):
  write_classes(root, 3, 'cat')


def without_classes(root):
  write_images(root, {'1.png': SIZE, '2.png': SIZE})


def with_an_unknown_test_class(root):
  write_classes(root / 'train', 2, 'cat', 'dog')
  write_classes(root / 'test', 2, 'cat', 'owl')


def with_two_images(root):
  write_classes(root, 1, 'cat', 'dog')


@pytest.mark.parametrize(
  ('write', 'split', 'message'),
  [
    (lambda root: None, 'train', 'There is no folder .*root; folder: takes'),
    (without_images, 'train', 'has no images .*in its sub-folders'),
    (with_one_class, 'train', r'1 class \(cat\)'),
    (without_classes, 'train', 'sub-folder'),
    (with_an_unknown_test_class, 'test', 'owl'),
    (with_two_images, 'extra', 'train, val, test and all'),
    (with_two_images, 'test', 'has too few images'),
  ],
)
def test_bad_folders_end_in_one_sentence(write, split, message, tmp_path):
  write(tmp_path / 'root')
  with pytest.raises(UserError, match=message) as caught:
    open_source(f'folder:{tmp_path}/root', split)
  assert '\n' not in str(caught.value)


def test_a_missing_folder_has_no_splits_to_list(tmp_path):
  with pytest.raises(UserError, match='There is no folder .*gone; folder: takes'):
    split_names(f'folder:{tmp_path}/gone')


@pytest.mark.parametrize('name', ['training', 'train'])
@pytest.mark.parametrize('held_out', ['valid', 'validation', 'testing'])
def test_split_folders_may_have_other_names(name, held_out, tmp_path):
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


def test_classes_may_be_named_like_splits(tmp_path):
  write_classes(tmp_path, 8, 'val', 'oval')
  assert open_source(f'folder:{tmp_path}', 'all').class_names == ('oval', 'val')
  assert split_names(f'folder:{tmp_path}') == ('train', 'test')


def test_ignored_files_are_noted(tmp_path):
  write_classes(tmp_path, 2, 'a', 'b')
  assert open_source(f'folder:{tmp_path}', 'all').notes == ()
  write_images(tmp_path, {'stray.png': SIZE})
  (tmp_path / 'a' / 'raw.xcf').touch()
  (tmp_path / 'b' / 'raw.XCF').touch()
  (tmp_path / 'notes').touch()
  kinds, stray = open_source(f'folder:{tmp_path}', 'all').notes
  assert kinds == f'3 files are not supported images (.xcf 2, none 1), in {tmp_path}'
  assert stray == f'1 image outside the class folders of {tmp_path} is ignored'


def test_labels_of_the_test_split_count_the_classes_of_train(tmp_path):
  write_classes(tmp_path / 'train', 2, 'cat', 'dog', 'owl')
  write_classes(tmp_path / 'test', 2, 'cat', 'owl')
  assert read_labels(open_source(f'folder:{tmp_path}', 'test')) == [0, 0, 2, 2]
