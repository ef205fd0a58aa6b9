"""prepare_data: folders to ArrayRecord and back, whatever is stopped, full or broken on the way."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.helpers import SANDBOX, TFDS_IMAGES, TFDS_LABELS, run, start, write_images, write_tfds
from vit_jax.data.sources import open_source
from vit_jax.errors import BadExampleError, UserError
from vit_jax.prepare import pipeline as prepare_lib
from vit_jax.prepare.listing import Options
from vit_jax.prepare.pipeline import prepare
from vit_jax.prepare.shard_writer import Encoding, store


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
  """Two classes in train and test, of 20 x 30 pixels, names of all kinds."""
  names = [
    f'{split}/{name}/{i}.jpg'
    for split in ('train', 'test')
    for name in ('a b', 'ü')
    for i in range(3)
  ]
  write_images(tmp_path / 'photos', dict.fromkeys([*names, 'train/ü/new\nline.png'], (20, 30)))
  return tmp_path / 'photos'


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def prepared(source, target, *args, **kwargs):
  return prepare(str(source), target, *args, workers=1, **kwargs)


def test_a_folder_comes_back_byte_by_byte(photos, tmp_path):
  import tensorflow_datasets as tfds

  card = prepared(photos, tmp_path / 'out', shards=2)
  for split, count in (('train', 7), ('test', 6)):
    before = open_source(f'folder:{photos}', split)
    after = open_source(f'array_record:{tmp_path}/out', split)
    assert after.class_names == before.class_names == ('a b', 'ü')
    assert after.size == before.size == count
    for i in range(count):
      assert after.read(i) == before.read(i)
    assert 'a b/0.jpg' in after.describe(0)
  by_tfds = tfds.builder_from_directory(tmp_path / 'out').as_data_source('train')
  source = open_source(f'array_record:{tmp_path}/out', 'train')
  for i, example in enumerate(by_tfds):
    np.testing.assert_array_equal(example['image'], Image.open(io.BytesIO(source.read(i)[0])))
    assert example['label'] == source.read(i)[1]
  assert by_tfds[6]['file_name'].decode() == 'ü/new\nline.png'
  assert (tmp_path / 'out' / 'labels.txt').read_text() == 'a b\nü\n'
  data = json.loads((tmp_path / 'out' / 'dataset.json').read_text())
  assert data['splits']['train']['class_counts'] == [3, 4]
  assert [shard['records'] for shard in data['splits']['train']['shards']] == [3, 4]
  assert not (tmp_path / 'out' / '.unfinished').exists()
  assert card.splits['train'].examples == 7


def test_digits_and_lists_of_labels(tmp_path):
  prepared('digits', tmp_path / 'digits', Options(splits=('test',)))
  digits = open_source(f'array_record:{tmp_path}/digits', 'test')
  pixels, label = open_source('digits', 'test').read(5)
  np.testing.assert_array_equal(Image.open(io.BytesIO(digits.read(5)[0])), pixels)
  assert digits.read(5)[1] == label
  write_tfds(tmp_path / 'pets', 'labels')
  prepared(f'array_record:{tmp_path}/pets', tmp_path / 'again', Options(splits=('train',)))
  again = open_source(f'array_record:{tmp_path}/again', 'train')
  found = [np.flatnonzero(again.read(i)[1]).tolist() for i in range(len(TFDS_IMAGES))]
  assert found == TFDS_LABELS['labels'] and again.multi_label


@pytest.mark.parametrize(
  ('size', 'expected'), [((40, 60), (20, 30)), ((90, 30), (60, 20)), ((20, 80), None)]
)
def test_only_larger_images_are_resized(size, expected):
  file = io.BytesIO()
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 4), np.uint8)).save(file, 'PNG')
  stored = store(file.getvalue(), 'x', Encoding(20, 90))
  if expected is None:
    assert stored == file.getvalue()
  else:
    image = Image.open(io.BytesIO(stored))
    assert (image.format, image.mode, image.size[::-1]) == ('JPEG', 'RGB', expected)


def test_bad_images_are_named_or_left_out(photos, tmp_path):
  good = (photos / 'train' / 'ü' / '0.jpg').read_bytes()
  (photos / 'train' / 'ü' / 'cut.jpg').write_bytes(good[: len(good) // 2])
  (photos / 'test' / 'ü' / 'empty.jpg').touch()
  (photos / 'test' / 'ü' / 'link.jpg').symlink_to('link.jpg')
  with pytest.raises(UserError, match='3 images cannot be read') as caught:
    prepared(photos, tmp_path / 'out')
  for name in ('ü/cut.jpg', 'ü/empty.jpg: empty', 'ü/link.jpg'):
    assert name in str(caught.value)
  assert '\n' not in str(caught.value)
  with pytest.raises(UserError, match='not finished; run the same'):
    open_source(f'array_record:{tmp_path}/out', 'train')
  prepared(photos, tmp_path / 'out', skip_bad=True)
  sizes = [open_source(f'array_record:{tmp_path}/out', s).size for s in ('train', 'test')]
  assert sizes == [7, 6]
  data = json.loads((tmp_path / 'out' / 'dataset.json').read_text())
  assert [bad['file'] for bad in data['splits']['test']['unreadable_files']] == [
    'ü/empty.jpg',
    'ü/link.jpg',
  ]


def test_a_mended_image_is_taken(photos, tmp_path):
  broken = photos / 'train' / 'ü' / '0.jpg'
  good = broken.read_bytes()
  broken.write_bytes(good[:200])
  with pytest.raises(UserError, match='0.jpg'):
    prepared(photos, tmp_path / 'out')
  broken.write_bytes(good)
  assert prepared(photos, tmp_path / 'out').splits['train'].examples == 7


def test_other_settings_and_taken_folders_are_refused(photos, tmp_path):
  (tmp_path / 'taken').mkdir()
  (tmp_path / 'taken' / 'thesis.txt').write_text('all of it')
  for target in ('taken', 'taken/thesis.txt'):
    with pytest.raises(UserError, match='TARGET'):
      prepared(photos, tmp_path / target)
  assert files_of(tmp_path / 'taken') == {'thesis.txt': b'all of it'}
  prepared(photos, tmp_path / 'out')
  before = files_of(tmp_path / 'out')
  assert prepared(photos, tmp_path / 'out') is None
  with pytest.raises(UserError, match='size=0, not 8'):
    prepared(photos, tmp_path / 'out', None, Encoding(8))
  (photos / 'train' / 'ü' / '0.jpg').rename(photos / 'train' / 'ü' / 'z.jpg')
  with pytest.raises(UserError, match='have changed'):
    prepared(photos, tmp_path / 'out')
  assert files_of(tmp_path / 'out') == before


@pytest.fixture
def many(tmp_path) -> pathlib.Path:
  """A folder that takes long enough to be interrupted."""
  write_images(tmp_path / 'many', {f'{i % 2}/{i}.png': (200, 200) for i in range(4)})
  for i in range(4, 1000):
    (tmp_path / 'many' / f'{i % 2}' / f'{i}.png').hardlink_to(
      tmp_path / 'many' / f'{i % 2}' / f'{i % 4}.png'
    )
  return tmp_path / 'many'


def shards_in(target: pathlib.Path) -> set[str]:
  """The shards that are whole, of a data set that is not."""
  facts = target.glob('.unfinished/*-of-*.json')
  return {path.name.removesuffix('.json') for path in facts}


def interrupt(many: pathlib.Path, target: pathlib.Path, number: int) -> tuple[int, str]:
  """Starts a preparation, and sends it a signal once a few shards are written."""
  process = start(
    'prepare_data', many, target, '--shards=40', '--workers=2', start_new_session=True
  )
  limit = time.monotonic() + 60
  enough = len(shards_in(target)) + 3
  while len(shards_in(target)) < enough and time.monotonic() < limit:
    time.sleep(0.02)
  if number == signal.SIGINT:
    os.killpg(process.pid, number)  # as a terminal does
  else:
    process.send_signal(number)
  _, err = process.communicate(timeout=60)
  while time.monotonic() < limit:  # all of its processes end
    try:
      os.killpg(process.pid, 0)
    except ProcessLookupError:
      return process.returncode, err
    time.sleep(0.02)
  raise AssertionError('a process is left')


def test_killed_and_stopped_it_goes_on_to_the_same_bytes(many, tmp_path):
  code, _ = interrupt(many, tmp_path / 'out', signal.SIGKILL)
  assert code == -signal.SIGKILL
  code, err = interrupt(many, tmp_path / 'out', signal.SIGINT)
  assert (code, err.strip()) == (130, 'stopped by the keyboard.')
  whole = [tmp_path / 'out' / name for name in shards_in(tmp_path / 'out')]
  assert 6 <= len(whole) < 80
  before = [path.stat().st_mtime_ns for path in whole]
  result = run('prepare_data', many, tmp_path / 'out', '--shards=40', '--workers=2')
  assert result.returncode == 0, result.stderr
  assert [path.stat().st_mtime_ns for path in whole] == before
  prepare(str(many), tmp_path / 'at_once', shards=40, workers=1, name='many')
  assert files_of(tmp_path / 'out') == files_of(tmp_path / 'at_once')


def test_a_full_disk_is_one_sentence(many, tmp_path):
  command = (
    sys.executable,
    '-m',
    'vit_jax.prepare_data',
    many,
    tmp_path / 'out',
    '--shards=2',
    '--workers=1',
  )
  result = subprocess.run(
    ['bash', '-c', 'ulimit -f 1024; exec "$@"', 'bash', *map(str, command)],  # a megabyte a file
    cwd=SANDBOX,
    capture_output=True,
    text=True,
    timeout=100,
  )
  assert result.returncode == 2
  assert 'cannot be written (File too large)' in result.stderr and 'Traceback' not in result.stderr
  assert result.stderr.count('\n') == 1


def test_check_looks_and_writes_nothing(photos, tmp_path):
  (photos / 'train' / 'ü' / 'bad.jpg').write_text('no image')
  (photos / 'test' / 'ü' / 'leak.jpg').write_bytes((photos / 'train/ü/0.jpg').read_bytes())
  before = sorted(tmp_path.rglob('*'))
  result = run('prepare_data', photos, '--check', '--workers=1')
  assert result.returncode == 2
  assert '1 image of test is also in train, such as ü/leak.jpg (train: ü/0.jpg)' in result.stdout
  assert 'ü/bad.jpg: not a known image format' in result.stdout
  assert result.stderr == 'error: 1 image cannot be read, see the card.\n'
  assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    ('{}/nothing', 'There is no .*nothing'),
    ('{}/file.txt', 'no folder'),
    ('{}/empty', 'holds no image'),
    ('zip:/x', 'is not a data source'),
  ],
)
def test_sources_that_are_none(source, message, tmp_path):
  (tmp_path / 'file.txt').touch()
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match=message) as caught:
    prepared(source.format(tmp_path), tmp_path / 'out')
  assert not (tmp_path / 'out').exists() and '\n' not in str(caught.value)


def test_a_damaged_shard_is_named_before_a_run_and_a_vanished_one_during_it(photos, tmp_path):
  prepared(photos, tmp_path / 'out', shards=2)
  first, second = sorted((tmp_path / 'out').glob('photos-train*'))
  source = open_source(f'array_record:{tmp_path}/out', 'train')
  source.read(0)
  second.rename(second.with_suffix('.away'))
  with pytest.raises(BadExampleError, match=second.name):
    source.read(6)
  with pytest.raises(UserError, match=f'{second.name} is missing'):
    open_source(f'array_record:{tmp_path}/out', 'train')
  second.with_suffix('.away').rename(second)
  os.truncate(first, first.stat().st_size - 1)
  with pytest.raises(UserError, match=f'{first.name} has [0-9,]+ bytes of'):
    open_source(f'array_record:{tmp_path}/out', 'train')


def test_nothing_that_reads_data_imports_jax():
  import subprocess
  import sys

  code = 'import sys, vit_jax.prepare_data; assert not {"jax", "tensorflow"} & set(sys.modules)'
  subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize(
  ('source', 'name'),
  [
    ('/a/My Photos/', 'my_photos'),
    ('tfds:cifar10/3.0.2', 'cifar10'),
    ('hf:uoft-cs/cifar10', 'cifar10'),
    ('array_record:/data/cifar10/3.0.2', 'cifar10'),
    ('digits', 'digits'),
    ('/猫', 'data'),
  ],
)
def test_names(source, name):
  assert prepare_lib.default_name(source) == name
