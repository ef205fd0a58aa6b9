"""Folders as people have them: read as meant, or refused with the change that would do."""

import pathlib
import re

import pytest

from tests.helpers import read_labels, write_images
from vit_jax.data.sources import open_source, split_names
from vit_jax.errors import UserError
from vit_jax.prepare.listing import list_examples

SIZE = (2, 3)
CLASSES = ('cat', 'dog', 'owl')


def write(root: pathlib.Path, *patterns: str, count: int = 10) -> None:
  """Writes images such as '{c}/{i}.jpg': of each class, and numbered."""
  names = [p.format(c=c, i=i) for p in patterns for c in CLASSES for i in range(count)]
  write_images(root, dict.fromkeys(names, SIZE))


def write_hidden(root: pathlib.Path) -> None:
  """What a zip of a Mac leaves."""
  write(root, '__MACOSX/train/{c}/._{i}.jpg', '.cache/{c}/{i}.jpg', count=1)
  (root / '.DS_Store').write_bytes(b'')
  (root / 'Thumbs.db').write_bytes(b'')


@pytest.mark.parametrize(
  ('train', 'test'),
  [
    ('Training', 'Validation'),
    ('Training', 'Testing'),
    ('seg_train', 'seg_test'),
    ('seg_train/seg_train', 'seg_test/seg_test'),
    ('Train', 'Test'),
    ('train_set', 'valid'),
    ('images_train', 'dev'),
    ('fruits_train', 'fruits_test'),
    ('archive/dataset/train', 'archive/dataset/val'),
    ('TRAIN_IMAGES', 'TEST_IMAGES'),
  ],
)
def test_split_folders_have_many_names(train, test, tmp_path):
  write(tmp_path, train + '/{c}/{i}.jpg')
  write(tmp_path, test + '/{c}/{i}.jpg', count=3)
  write_hidden(tmp_path)
  spec = f'folder:{tmp_path}'
  assert split_names(spec)[0] == 'train' and len(split_names(spec)) == 2
  for split, size in (('train', 30), ('test', 9)):
    source = open_source(spec, split)
    assert (source.size, source.class_names, source.notes) == (size, CLASSES, ())
  listing = list_examples(str(tmp_path))
  assert {split: len(e) for split, e in listing.splits.items()} == dict(
    zip(split_names(spec), (30, 9), strict=True)
  )


def test_lone_folders_are_stepped_into(tmp_path):
  write(tmp_path, 'archive/My Dataset/all images/{c}/{i}.jpg')
  write_hidden(tmp_path / 'archive')
  (tmp_path / 'archive' / 'README.md').write_text('x')
  assert open_source(f'folder:{tmp_path}', 'all').class_names == CLASSES
  inner = open_source(f'folder:{tmp_path}/archive/My Dataset/all images', 'test')
  outer = open_source(f'folder:{tmp_path}', 'test')
  assert inner.fingerprint == outer.fingerprint


def test_a_class_may_be_called_train(tmp_path):
  write_images(tmp_path, {f'{c}/{i}.png': SIZE for c in ('train', 'car', 'bus') for i in range(5)})
  assert open_source(f'folder:{tmp_path}', 'all').class_names == ('bus', 'car', 'train')


def test_folders_beside_the_splits_are_noted(tmp_path):
  write(tmp_path, 'seg_train/{c}/{i}.jpg', 'seg_test/{c}/{i}.jpg', 'seg_pred/{c}{i}.jpg', count=4)
  (note,) = open_source(f'folder:{tmp_path}', 'train').notes
  assert note == f'12 images beside the splits of {tmp_path}, in seg_pred, are not used'


@pytest.mark.parametrize('test', ['test', 'test/test', 'test1', 'Testing/unknown', 'test/images'])
def test_a_test_folder_without_classes_is_left_for_predictions(test, tmp_path):
  write(tmp_path, 'train/{c}/{i}.jpg')
  write_images(tmp_path / test, {f'{i}.jpg': SIZE for i in range(7)})
  train, held_out = (open_source(f'folder:{tmp_path}', split) for split in ('train', 'test'))
  assert train.size + held_out.size == 30
  assert set(read_labels(held_out)) == {0, 1, 2}
  (note,) = train.notes
  assert 'the 7 images of' in note and f'vit_jax.predict --model=… {tmp_path}/{test[:4]}' in note


def test_validation_has_classes_and_test_does_not(tmp_path):
  write(tmp_path, 'train/{c}/{i}.jpg', 'valid/{c}/{i}.jpg')
  write_images(tmp_path / 'test', {f'{i}.jpg': SIZE for i in range(7)})
  assert split_names(f'folder:{tmp_path}') == ('train', 'val')
  assert 'valid' in open_source(f'folder:{tmp_path}', 'test').describe(0)


@pytest.mark.parametrize(
  ('name', 'pattern'),
  [
    ('{c}.{i}.jpg', r'(\w+)\.\d+'),
    ('{c}_{i}.jpg', '(.+)_'),
    ('{i}-{c}.jpg', r'-(\w+)\.'),
    ('x/{c}/left/{i}.jpg', '([^/]+)/left/'),
    ('2020/{c}/{i}.jpg', '^[^/]+/([^/]+)/'),
  ],
)
def test_the_class_may_be_in_the_name(name, pattern, tmp_path):
  write(tmp_path, name, *(['2021/{c}/{i}.jpg'] if '2020' in name else []))
  spec = f'folder:{tmp_path}?pattern={pattern}'
  sources = {split: open_source(spec, split) for split in ('train', 'test', 'all')}
  assert sources['all'].class_names == CLASSES
  assert sources['train'].size + sources['test'].size == sources['all'].size
  assert all(
    CLASSES[y] in sources['all'].describe(i) for i, y in enumerate(read_labels(sources['all']))
  )
  assert sources['all'].name == f'{spec} (all)'
  assert len(list_examples(spec).splits['train']) == sources['train'].size
  assert sources['all'].fingerprint == open_source(spec, 'all').fingerprint


def test_cats_and_dogs_of_kaggle(tmp_path):
  write(tmp_path, 'dogs-vs-cats/train/{c}.{i}.jpg')
  write_images(tmp_path, {f'dogs-vs-cats/test1/{i}.jpg': SIZE for i in range(5)})
  spec = rf'folder:{tmp_path}?pattern=(\w+)\.\d+'
  train, test = open_source(spec, 'train'), open_source(spec, 'test')
  assert train.class_names == CLASSES and train.size + test.size == 30
  assert any('vit_jax.predict' in note for note in train.notes)


def test_images_without_a_match_are_noted(tmp_path):
  write(tmp_path, '{c}.{i}.jpg', 'cover.jpg')
  (note,) = open_source(rf'folder:{tmp_path}?pattern=(\w+)\.\d', 'all').notes
  assert note == '1 image such as cover.jpg without a match of the pattern is ignored'


def test_groups_stay_on_one_side(tmp_path):
  names = [f'{c}/p{p:02}_{i}.jpg' for c in CLASSES for p in range(12) for i in range(4)]
  write_images(tmp_path, dict.fromkeys(names, SIZE))
  spec = rf'folder:{tmp_path}?group=(p\d+)_'
  sides = []
  for split in 'train', 'test':
    source = open_source(spec, split)
    sides.append({re.search(r'p\d+', source.describe(i))[0] for i in range(source.size)})
    assert set(read_labels(source)) == {0, 1, 2}
  assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 12


def test_folds_are_parts(tmp_path):
  write(tmp_path, '{c}/{i}.jpg')
  files = []
  for k in range(1, 6):
    test = open_source(f'folder:{tmp_path}?fold={k}/5', 'test')
    train = open_source(f'folder:{tmp_path}?fold={k}/5', 'train')
    assert train.size + test.size == 30
    files += [test.describe(i) for i in range(test.size)]
  assert len(files) == len(set(files)) == 30


def write_flat_splits(root):
  write(root, 'Training/{c}{i}.jpg', 'Validation/{c}{i}.jpg')


def write_years(root):
  write(root, '2020/{c}/{i}.jpg', '2021/{c}/{i}.jpg')


def write_splits_in_classes(root):
  write(root, '{c}/train/{i}.jpg', '{c}/test/{i}.jpg')


def write_table(root):
  write(root, 'train/{c}{i}.jpg', 'test/{c}{i}.jpg')
  (root / 'sample_submission.csv').write_text('id,label\ncat0,x\ncat1,y\n')
  (root / 'train.csv').write_text('id,label\ncat0,cat\ndog0,dog\n')


@pytest.mark.parametrize(
  ('make', 'query', 'message'),
  [
    (write_flat_splits, '', r"all outside .*have their class, use 'folder:\S+\?pattern=\(\["),
    (lambda root: write(root, '{c}.{i}.jpg'), '', r"use 'folder:\S+\?pattern=\(\\w\+\)\\.\\d\+'"),
    (lambda root: write(root, '{c}_{i}.jpg'), '', r"\?pattern=\(\.\+\)_\\d\+'"),
    (lambda root: write(root, '{i}.jpg'), '', 'move the images of each class into a sub-folder'),
    (write_years, '', r'2020, 2021 of .* all have the sub-folders cat, dog, owl,.*\[\^/\]\+/\('),
    (write_splits_in_classes, '', r'all have the sub-folders test, train.*folder:\S+/x/cat; if'),
    (write_table, '', "if train.csv has their labels, use 'table:/.*/train.csv'"),
    (write_years, '?pattern=(', 'is not a regular expression'),
    (write_years, '?pattern=x', 'has no parentheses; put some around the class'),
    (write_years, '?pattern=(x)', 'outside|does the pattern match'),
    (write_years, '?patern=(x)', "unknown option 'patern'; those of folder: are pattern, group"),
    (lambda root: write(root, '{c}/{i}.jpg'), '?fold=6/5', 'is not a fold'),
    (lambda root: write(root, '{c}/{i}.jpg'), r'?group=(p\d)', 'does not match cat/0.jpg'),
    (
      lambda root: write(root, '{c}/{i}.jpg'),
      '?group=jpg',
      'in every name; nothing can be held out',
    ),
    (
      lambda root: write(root, 'train/{c}/{i}.jpg', 'val/{c}/{i}.jpg'),
      '?fold=1/5',
      'has a folder for val, so nothing is held out; leave out fold=',
    ),
  ],
)
def test_a_layout_that_fails_names_the_smallest_change(make, query, message, tmp_path):
  make(tmp_path / 'x')
  with pytest.raises(UserError, match=message) as caught:
    open_source(f'folder:{tmp_path}/x{query}', 'train')
  assert '\n' not in str(caught.value)


def test_a_table_is_not_a_folder(tmp_path):
  (tmp_path / 'labels.csv').write_text('image,label\n')
  with pytest.raises(UserError, match=r'use table:\S+/labels.csv'):
    open_source(f'folder:{tmp_path}/labels.csv', 'train')


def test_folders_that_all_mean_one_split_are_refused(tmp_path):
  write_images(tmp_path, {f'{c}/{i}.png': SIZE for c in ('test1', 'test2') for i in range(9)})
  with pytest.raises(UserError, match='has both test1 and test2; keep one of them, or, if they'):
    open_source(f'folder:{tmp_path}', 'train')
  assert open_source(f'folder:{tmp_path}?pattern=^([^/]+)/', 'train').class_names[1] == 'test2'


def test_some_classes_may_be_called_as_splits(tmp_path):
  write_images(tmp_path, {f'{c}/{i}.png': SIZE for c in ('dev', 'eval', 'ops') for i in range(9)})
  assert open_source(f'folder:{tmp_path}', 'all').class_names == ('dev', 'eval', 'ops')
