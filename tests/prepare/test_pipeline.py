"""prepare_data: folders to ArrayRecord and back, also after interruptions and with bad images."""

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
import tqdm
from PIL import Image

from tests.helpers import (
  SANDBOX,
  TFDS_IMAGES,
  TFDS_LABELS,
  read_labels,
  run,
  start,
  write_images,
  write_tfds,
)
from vit_jax.data.sources import open_source
from vit_jax.data.sources.splitting.permutation import permutation, permute
from vit_jax.errors import BadExampleError, UserError
from vit_jax.prepare.listing import Options
from vit_jax.prepare.pipeline import prepare
from vit_jax.prepare.shard_plan import Preparation, default_name
from vit_jax.prepare.shard_writer import Encoding, encode_image


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
  """Two classes in train and test, 20 x 30 pixels, with unusual names."""
  names = [
    f'{split}/{name}/{i}.jpg'
    for split in ('train', 'test')
    for name in ('a b', 'ü')
    for i in range(3)
  ]
  write_images(tmp_path / 'photos', dict.fromkeys([*names, 'train/ü/new\nline.png'], (20, 30)))
  return tmp_path / 'photos'


def read_files(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def prepare_here(source, target, bar=None, **kwargs):
  bar = tqdm.tqdm(disable=True) if bar is None else bar
  return prepare(Preparation(str(source), target, **kwargs), 1, bar)


def test_a_prepared_folder_has_the_same_bytes(photos, tmp_path):
  import tensorflow_datasets as tfds

  card = prepare_here(photos, tmp_path / 'out', shards=2)
  for split, count in (('train', 7), ('test', 6)):
    before = open_source(f'folder:{photos}', split)
    after = open_source(f'array_record:{tmp_path}/out', split)
    assert after.class_names == before.class_names == ('a b', 'ü')
    assert after.size == before.size == count
    order = permutation(count).tolist()
    assert [after.read(i) for i in range(count)] == [before.read(i) for i in order]
    assert 'a b/0.jpg' in after.describe(order.index(0))
  by_tfds = tfds.builder_from_directory(tmp_path / 'out').as_data_source('train')
  source = open_source(f'array_record:{tmp_path}/out', 'train')
  for i, example in enumerate(by_tfds):
    np.testing.assert_array_equal(example['image'], Image.open(io.BytesIO(source.read(i)[0])))
    assert example['label'] == source.read(i)[1]
  assert by_tfds[permutation(7).tolist().index(6)]['file_name'].decode() == 'ü/new\nline.png'
  assert (tmp_path / 'out' / 'labels.txt').read_text() == 'a b\nü\n'
  data = json.loads((tmp_path / 'out' / 'dataset.json').read_text())
  assert data['splits']['train']['class_counts'] == [3, 4]
  assert [shard['records'] for shard in data['splits']['train']['shards']] == [3, 4]
  assert not (tmp_path / 'out' / '.unfinished').exists()
  assert card.splits['train'].examples == 7


def test_pixels_and_multiple_labels_are_preserved(tmp_path):
  prepare_here('digits', tmp_path / 'digits', options=Options(splits=('test',)))
  digits = open_source(f'array_record:{tmp_path}/digits', 'test')
  pixels, label = open_source('digits', 'test').read(permute(5, 360))
  np.testing.assert_array_equal(Image.open(io.BytesIO(digits.read(5)[0])), pixels)
  assert digits.read(5)[1] == label
  write_tfds(tmp_path / 'pets', 'labels')
  prepare_here(
    f'array_record:{tmp_path}/pets', tmp_path / 'again', options=Options(splits=('train',))
  )
  again = open_source(f'array_record:{tmp_path}/again', 'train')
  labels = [np.flatnonzero(again.read(i)[1]).tolist() for i in range(len(TFDS_IMAGES))]
  assert labels == [TFDS_LABELS['labels'][i] for i in permutation(5)] and again.multi_label


@pytest.mark.parametrize(
  ('size', 'expected'), [((40, 60), (20, 30)), ((90, 30), (60, 20)), ((20, 80), None)]
)
def test_only_larger_images_are_resized(size, expected):
  file = io.BytesIO()
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 4), np.uint8)).save(file, 'PNG')
  stored = encode_image(file.getvalue(), 'x', Encoding(20, 90))
  if expected is None:
    assert stored == file.getvalue()
  else:
    image = Image.open(io.BytesIO(stored))
    assert (image.format, image.mode, image.size[::-1]) == ('JPEG', 'RGB', expected)


def test_unreadable_images_are_listed_or_left_out(photos, tmp_path):
  good = (photos / 'train' / 'ü' / '0.jpg').read_bytes()
  (photos / 'train' / 'ü' / 'cut.jpg').write_bytes(good[: len(good) // 2])
  (photos / 'test' / 'ü' / 'empty.jpg').touch()
  (photos / 'test' / 'ü' / 'link.jpg').symlink_to('link.jpg')
  with pytest.raises(UserError, match='3 images cannot be read') as caught:
    prepare_here(photos, tmp_path / 'out')
  for name in ('ü/cut.jpg', 'ü/empty.jpg: empty', 'ü/link.jpg'):
    assert name in str(caught.value)
  assert '\n' not in str(caught.value)
  with pytest.raises(UserError, match='not finished; run the same'):
    open_source(f'array_record:{tmp_path}/out', 'train')
  prepare_here(photos, tmp_path / 'out', skip_bad=True)
  sizes = [open_source(f'array_record:{tmp_path}/out', s).size for s in ('train', 'test')]
  assert sizes == [7, 6]
  data = json.loads((tmp_path / 'out' / 'dataset.json').read_text())
  unreadable = {bad['file'] for bad in data['splits']['test']['unreadable_files']}
  assert unreadable == {'ü/empty.jpg', 'ü/link.jpg'}


def test_a_repaired_image_is_used_when_the_command_is_repeated(photos, tmp_path):
  broken = photos / 'train' / 'ü' / '0.jpg'
  good = broken.read_bytes()
  broken.write_bytes(good[:200])
  with pytest.raises(UserError, match='0.jpg'):
    prepare_here(photos, tmp_path / 'out')
  broken.write_bytes(good)
  assert prepare_here(photos, tmp_path / 'out').splits['train'].examples == 7


def test_other_settings_and_occupied_folders_are_refused(photos, tmp_path):
  (tmp_path / 'occupied').mkdir()
  (tmp_path / 'occupied' / 'thesis.txt').write_text('all of it')
  for target in ('occupied', 'occupied/thesis.txt'):
    with pytest.raises(UserError, match='TARGET'):
      prepare_here(photos, tmp_path / target)
  assert read_files(tmp_path / 'occupied') == {'thesis.txt': b'all of it'}
  prepare_here(photos, tmp_path / 'out')
  before = read_files(tmp_path / 'out')
  assert prepare_here(photos, tmp_path / 'out') is None
  with pytest.raises(UserError, match='size=0, not 8'):
    prepare_here(photos, tmp_path / 'out', encoding=Encoding(8))
  (photos / 'train' / 'ü' / '0.jpg').rename(photos / 'train' / 'ü' / 'z.jpg')
  with pytest.raises(UserError, match='have changed'):
    prepare_here(photos, tmp_path / 'out')
  assert read_files(tmp_path / 'out') == before


@pytest.fixture
def many(tmp_path) -> pathlib.Path:
  """A folder that takes long enough to be interrupted."""
  write_images(tmp_path / 'many', {f'{i % 2}/{i}.png': (200, 200) for i in range(4)})
  for i in range(4, 1000):
    (tmp_path / 'many' / f'{i % 2}' / f'{i}.png').hardlink_to(
      tmp_path / 'many' / f'{i % 2}' / f'{i % 4}.png'
    )
  return tmp_path / 'many'


def complete_shards(target: pathlib.Path) -> set[str]:
  """The names of the complete shards of an unfinished data set."""
  metadata_files = target.glob('.unfinished/*-of-*.json')
  return {path.name.removesuffix('.json') for path in metadata_files}


def interrupt(many: pathlib.Path, target: pathlib.Path, number: int) -> tuple[int, str]:
  """Starts a preparation, and sends it a signal once a few shards are written."""
  process = start(
    'prepare_data', many, target, '--shards=40', '--workers=2', start_new_session=True
  )
  limit = time.monotonic() + 60
  enough = len(complete_shards(target)) + 3
  while len(complete_shards(target)) < enough and time.monotonic() < limit:
    time.sleep(0.02)
  if number == signal.SIGINT:
    os.killpg(process.pid, number)  # as a terminal does
  else:
    process.send_signal(number)
  _, err = process.communicate(timeout=60)
  while time.monotonic() < limit:  # until all of its processes have ended
    try:
      os.killpg(process.pid, 0)
    except ProcessLookupError:
      return process.returncode, err
    time.sleep(0.02)
  raise AssertionError('a process is still running')


def test_an_interrupted_preparation_resumes_to_the_same_bytes(many, tmp_path):
  code, _ = interrupt(many, tmp_path / 'out', signal.SIGKILL)
  assert code == -signal.SIGKILL
  code, err = interrupt(many, tmp_path / 'out', signal.SIGINT)
  assert (code, err.strip()) == (130, 'interrupted by the keyboard.')
  complete = [tmp_path / 'out' / name for name in complete_shards(tmp_path / 'out')]
  assert 6 <= len(complete) < 80
  times = [path.stat().st_mtime_ns for path in complete]
  result = run('prepare_data', many, tmp_path / 'out', '--shards=40', '--workers=2')
  assert result.returncode == 0, result.stderr
  assert [path.stat().st_mtime_ns for path in complete] == times
  prepare_here(many, tmp_path / 'uninterrupted', shards=40, name='many')
  assert read_files(tmp_path / 'out') == read_files(tmp_path / 'uninterrupted')


def test_shards_of_an_older_version_are_written_again(photos, tmp_path):
  """Their metadata has other keys: {'shard': …, 'tally': …}."""
  target = tmp_path / 'out'
  broken = photos / 'train' / 'ü' / '0.jpg'
  good = broken.read_bytes()
  broken.write_bytes(good[:200])
  with pytest.raises(UserError, match='0.jpg'):
    prepare_here(photos, target, shards=2)
  broken.write_bytes(good)
  for name in complete_shards(target):
    file = target / '.unfinished' / f'{name}.json'
    metadata = json.loads(file.read_text())
    metadata['tally'] = metadata.pop('statistics')
    file.write_text(json.dumps(metadata))
    (target / f'{name}.part').touch()
  with tqdm.tqdm(file=io.StringIO()) as bar:
    prepare_here(photos, target, shards=2, bar=bar)
  assert (bar.total, bar.initial, bar.n) == (13, 0, 13)
  prepare_here(photos, tmp_path / 'uninterrupted', shards=2)
  assert read_files(target) == read_files(tmp_path / 'uninterrupted')


def test_what_older_versions_have_prepared_is_recognised(photos, tmp_path):
  prepare_here(photos, tmp_path / 'out')
  card = tmp_path / 'out' / 'dataset.json'
  settings = json.loads(card.read_text())['settings']
  assert settings == {
    'version': 2,
    'name': 'photos',
    'source': str(photos),
    'listing': '9edcc4c296b5496f6f83702aaa4c83ec1e7c41cd704d5dc0775be88b0e430f79',
    'splits': {'train': 7, 'test': 6},
    'classes': 2,
    'size': 0,
    'quality': 95,
    'shards': 0,
  }
  assert open_source(f'array_record:{tmp_path}/out', 'train').shuffled
  card.write_text(card.read_text().replace('"version": 2', '"version": 1'))
  assert prepare_here(photos, tmp_path / 'out') is None
  assert not open_source(f'array_record:{tmp_path}/out', 'train').shuffled


def test_slices_of_a_prepared_data_set_have_all_classes(tmp_path):
  names = [f'{name}/{i:02}.png' for name in 'abcdefgh' for i in range(25)]
  write_images(tmp_path / 'photos', dict.fromkeys(names, (2, 2)))
  prepare_here(tmp_path / 'photos', tmp_path / 'out')
  for split in 'train[:75%]', 'train[75%:]', 'test[:75%]':
    assert set(read_labels(open_source(f'array_record:{tmp_path}/out', split))) == set(range(8))


def test_what_another_version_began_is_not_resumed(photos, tmp_path):
  target = tmp_path / 'out'
  prepare_here(photos, target)
  settings = json.loads((target / 'dataset.json').read_text())['settings'] | {'version': 1}
  (target / 'dataset.json').unlink()
  (target / '.unfinished').mkdir()
  content = {'settings': settings, 'shards': {'train': 1, 'test': 1}}
  (target / '.unfinished' / 'settings.json').write_text(json.dumps(content))
  with pytest.raises(UserError, match='begun by another version of vit_jax; remove it'):
    prepare_here(photos, target)


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


def test_check_reports_and_writes_nothing(photos, tmp_path):
  (photos / 'train' / 'ü' / 'bad.jpg').write_text('not an image')
  (photos / 'test' / 'ü' / 'leak.jpg').write_bytes((photos / 'train/ü/0.jpg').read_bytes())
  files = sorted(tmp_path.rglob('*'))
  result = run('prepare_data', photos, '--check', '--workers=1')
  assert result.returncode == 2
  assert '1 image of test is also in train, such as ü/leak.jpg (train: ü/0.jpg)' in result.stdout
  assert 'ü/bad.jpg: not a known image format' in result.stdout
  assert result.stderr == 'error: 1 image cannot be read, see the data card.\n'
  assert sorted(tmp_path.rglob('*')) == files


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    ('{}/nothing', 'nothing does not exist; SOURCE is'),
    ('{}/file.txt', 'neither a folder nor named'),
    ('{}/empty', 'has no images .* in its sub-folders'),
    ('zip:/x', 'is not a data source'),
  ],
)
def test_an_invalid_source_is_an_error(source, message, tmp_path):
  (tmp_path / 'file.txt').touch()
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match=message) as caught:
    prepare_here(source.format(tmp_path), tmp_path / 'out')
  assert not (tmp_path / 'out').exists() and '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--check', '--workers=-1'], '--workers=-1 must not be negative'),
    (['out', '--size=-2'], '--size=-2 must not be negative'),
    (['out', '--quality=0'], 'quality=0 is out of range; use 1 to 100'),
    (['out', '--name=My Set'], 'cannot be part of file names'),
    ([], 'TARGET is missing'),
    (['gs://bucket/out'], 'TARGET is gs://bucket/out; it must be a local folder'),
  ],
)
def test_an_invalid_option_is_an_error(flags, message):
  result = run('prepare_data', 'digits', *flags)
  assert result.returncode == 2 and message in result.stderr and result.stderr.count('\n') == 1


def test_a_damaged_shard_is_named_when_opened_and_a_missing_one_when_read(photos, tmp_path):
  prepare_here(photos, tmp_path / 'out', shards=2)
  first, second = sorted((tmp_path / 'out').glob('photos-train.array_record*'))
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
    ('table:/data/pets.csv?root=a/b&sep=|', 'pets_csv'),
    ('/猫', 'data'),
    (r'folder:/photos?pattern=(\w+)/x', 'photos'),
  ],
)
def test_the_default_name_is_that_of_the_source(source, name):
  assert default_name(source) == name
