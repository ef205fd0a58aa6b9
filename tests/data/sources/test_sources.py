"""Opening sources: digits, unknown kinds, equal classes, and no TensorFlow."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers import SANDBOX, read_images, read_labels, write_images, write_tfds
from vit_jax.data import imagenet
from vit_jax.data.sources import check_same_classes, open_source
from vit_jax.errors import UserError


def test_digits_have_their_sizes_and_types():
  train, test = open_source('digits', 'train'), open_source('digits', 'test')
  assert (train.size, test.size) == (1437, 360)
  assert train.class_names == test.class_names == tuple('0123456789')
  image, label = train.read(0)
  assert (image.shape, image.dtype, label.dtype) == ((8, 8, 3), np.uint8, np.int32)
  assert max(train.read(i)[0].max() for i in range(50)) == 255


def test_digits_are_stratified_fixed_and_disjoint():
  train, test, everything = (open_source('digits', split) for split in ('train', 'test', 'all'))
  counts = [np.bincount(read_labels(source)) for source in (train, test, everything)]
  np.testing.assert_array_equal(counts[0] + counts[1], counts[2])
  np.testing.assert_allclose(counts[1], counts[2] * 0.2, atol=1)
  assert read_labels(test) == read_labels(open_source('digits', 'test'))
  assert read_labels(test)[:10] == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3]
  assert read_images(train) | read_images(test) == read_images(everything)
  assert not read_images(train) & read_images(test)


@pytest.mark.parametrize(
  'spec', ['', 'cifar10', 'folder', 'folder:', 'digits:x', 'zip:/tmp/x.zip', 'tfds:', ':']
)
def test_an_unknown_source_is_an_error_that_lists_the_kinds(spec):
  with pytest.raises(
    UserError, match='is not a data source; choose one of digits, folder:/path, .*webdataset:/path'
  ):
    open_source(spec, 'train')


def test_commands_and_sources_do_not_import_tensorflow(tmp_path):
  write_tfds(tmp_path / 'pets', 'label')
  write_images(tmp_path / 'images', dict.fromkeys(['a/0.png', 'b/0.png'], (6, 8)))
  (tmp_path / 'tensorflow').mkdir()
  (tmp_path / 'tensorflow' / '__init__.py').touch()  # so that importing it would succeed
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


def test_check_same_classes_names_the_first_differences():
  check_same_classes(('a', 'b'), ['a', 'b'], 'x')
  with pytest.raises(UserError, match='x has 2 classes, expected 3; missing: c'):
    check_same_classes(('a', 'b', 'c'), ('a', 'b'), 'x')
  with pytest.raises(UserError, match='not expected: z'):
    check_same_classes(('a', 'b'), ('a', 'z'), 'x')
  with pytest.raises(UserError, match='order'):
    check_same_classes(('a', 'b'), ('b', 'a'), 'x')


def test_classes_of_imagenet_are_the_same_by_synset_and_by_name():
  ids = imagenet.synsets('1k')
  names = imagenet.class_names(ids)
  lemmas = [re.sub(r' \(n\d+\)', '', name) for name in names]  # as in lists of others
  for expected, actual in ((names, ids), (ids, names), (names, lemmas), (ids[:3], names[:3])):
    check_same_classes(expected, actual, 'x')
  with pytest.raises(UserError, match='order'):
    check_same_classes(names, sorted(names), 'x')
  with pytest.raises(UserError, match='missing: kit fox'):
    check_same_classes(names, (*ids[:278], 'n00000000', *ids[279:]), 'x')
