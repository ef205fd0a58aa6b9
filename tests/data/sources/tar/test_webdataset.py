"""webdataset: tar shards by random access: layouts, labels, the cached index, damage."""

import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.helpers import ROOT, SANDBOX, read_labels
from vit_jax.data.sources import open_source, split_names
from vit_jax.data.sources.tar import tar_index, tar_shards, webdataset
from vit_jax.errors import BadExampleError, UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> pathlib.Path:
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache' / 'webdataset'


def write_members(path: pathlib.Path, members: dict[str, bytes], tar_format=tarfile.PAX_FORMAT):
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, 'w', format=tar_format) as tar:
    for name, content in members.items():
      member = tarfile.TarInfo(name)
      member.size, member.mtime = len(content), 1.5  # a fraction needs an extended header
      tar.addfile(member, io.BytesIO(content))


def image(i: int) -> bytes:
  return b'jpeg %d ' % i * (i % 5 + 1)


def write(path: pathlib.Path, numbers, label=lambda i: {'cls': b'%d' % (i % 3)}, **kwargs) -> None:
  """Writes one shard; `label` gives the other members of each example."""
  members = {}
  for i in numbers:
    members[f'{i:06}.jpg'] = image(i)
    members |= {f'{i:06}.{suffix}': content for suffix, content in label(i).items()}
  write_members(path, members, **kwargs)


def as_json(value):
  return lambda i: {'json': json.dumps({'width': 5, 'label': value(i)}).encode()}


def contents(source) -> list[tuple[bytes, int]]:
  return [(stored, int(label)) for stored, label in map(source.read, range(source.size))]


def expected(numbers) -> list[tuple[bytes, int]]:
  return [(image(i), i % 3) for i in numbers]


@pytest.mark.parametrize(
  'tar_format', [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]
)
def test_shards_are_read_in_any_order(tar_format, tmp_path):
  for shard in range(3):
    numbers = range(shard * 10, shard * 10 + 10)
    write(tmp_path / f'x-{shard:04}.tar', numbers, tar_format=tar_format)
  for spec in f'{tmp_path}', f'{tmp_path}/x-{{0000..0002}}.tar', f'{tmp_path}/x-000{{0,1,2}}.tar':
    source = open_source(f'webdataset:{spec}', 'all')
    assert (source.size, source.class_names) == (30, ('0', '1', '2'))
    with ThreadPoolExecutor(4) as pool:
      assert list(pool.map(source.read, reversed(range(30)))) == expected(reversed(range(30)))
  assert tar_shards.expand('{a,b}-{8..10}') == ['a-8', 'a-9', 'a-10', 'b-8', 'b-9', 'b-10']
  assert source.read(4)[1].dtype == np.int32
  assert source.describe(21).startswith(f'{tmp_path}/x-0002.tar: 000021')
  single = open_source(f'webdataset:{tmp_path}/x-0001.tar', 'all')
  assert contents(single) == expected(range(10, 20))


def test_sub_folders_are_splits(tmp_path):
  write(tmp_path / 'train' / '0.tar', range(6))
  write(tmp_path / 'validation' / '0.tar', range(6, 8))  # not of all classes
  spec = f'webdataset:{tmp_path}'
  assert contents(open_source(spec, 'train')) == expected(range(6))
  for split in 'validation', 'val', 'test':
    source = open_source(spec, split)
    assert contents(source) == expected(range(6, 8))
    assert source.class_names == ('0', '1', '2')
  assert open_source(spec, 'all').size == 8
  assert split_names(spec) == ('train', 'val')


@pytest.mark.parametrize('name', ['{}-0000.tar', 'in1k-{}-0000.tar', 'x_{}.tar', '{}0000.tar'])
def test_file_names_give_the_splits(name, tmp_path):
  write(tmp_path / name.format('train'), range(6))
  write(tmp_path / name.format('val'), range(6, 10))
  write(tmp_path / name.format('test'), range(10, 13))
  spec = f'webdataset:{tmp_path}'
  assert contents(open_source(spec, 'train')) == expected(range(6))
  assert contents(open_source(spec, 'val')) == expected(range(6, 10))
  assert contents(open_source(spec, 'train[:2]+test'))[2:] == expected([10, 11, 12])
  parts = contents(open_source(spec, 'train[:2]+train[2:]'))
  assert sorted(parts) == sorted(expected(range(6)))


@pytest.mark.parametrize(
  ('train', 'test'),
  [
    ('Training/0.tar', 'Validation/0.tar'),
    ('archive/shards/seg_train/0.tar', 'archive/shards/seg_test/0.tar'),
    ('Train-0.tar', 'TEST-0.tar'),
    ('x_training.tar', 'x_testing.tar'),
    ('trainset-1.tar', 'dev-1.tar'),
  ],
)
def test_splits_have_many_names(train, test, tmp_path):
  write(tmp_path / 'x' / train, range(6))
  write(tmp_path / 'x' / test, range(6, 10))
  (tmp_path / 'x' / '__MACOSX').mkdir()
  spec = f'webdataset:{tmp_path}/x'
  assert contents(open_source(spec, 'train')) == expected(range(6))
  assert contents(open_source(spec, 'test')) == expected(range(6, 10))


def test_two_folders_of_one_split_are_an_error(tmp_path):
  write(tmp_path / 'x' / 'val' / '0.tar', range(6))
  write(tmp_path / 'x' / 'valid' / '0.tar', range(6))
  with pytest.raises(UserError, match='has both val and valid; keep one'):
    open_source(f'webdataset:{tmp_path}/x', 'val')


@pytest.mark.parametrize(
  'label', [lambda i: {'cls': b'%d' % (i // 3)}, as_json(lambda i: [i // 3])]
)
def test_small_classes_are_on_both_sides(label, tmp_path):
  write(tmp_path / 'x' / '0.tar', range(60), label)
  write(tmp_path / 'x' / '1.tar', range(60, 90), label)
  sides = [open_source(f'webdataset:{tmp_path}/x', split) for split in ('train', 'test')]
  assert sides[0].size + sides[1].size == 90
  for source in sides:
    labels = [source.read(i)[1] for i in range(source.size)]
    classes = {int(np.argmax(y)) if source.multi_label else int(y) for y in labels}
    assert classes == set(range(30))


@pytest.mark.parametrize('name', ['0000.tar', 'train-0000.tar'])
def test_without_a_test_split_a_fifth_is_held_out(name, tmp_path):
  write(tmp_path / name, range(200))
  train, test = (contents(open_source(f'webdataset:{tmp_path}', s)) for s in ('train', 'test'))
  assert sorted(train + test) == sorted(expected(range(200)))
  assert 20 < len(test) < 60
  assert split_names(f'webdataset:{tmp_path}') == ('train', 'test')
  (tmp_path / name).rename(tmp_path / 'train-0001.tar')
  write(tmp_path / 'train-0000.tar', range(1000, 1010))
  assert set(contents(open_source(f'webdataset:{tmp_path}', 'test'))) >= set(test)


@pytest.mark.parametrize(
  ('label', 'names', 'labels'),
  [
    (as_json(lambda i: i), ('0', '1', '2', '3'), [0, 1, 2, 3]),
    (as_json(lambda i: 'dcba'[i]), ('a', 'b', 'c', 'd'), [3, 2, 1, 0]),
    (lambda i: {'cls': b' dog\n' if i % 2 else 'Bär'.encode()}, ('Bär', 'dog'), [0, 1, 0, 1]),
    (lambda i: {'json': b'{"label": 9}', 'txt': b'x', 'cls': b'1\n'}, ('0', '1'), [1] * 4),
  ],
)
def test_labels_may_be_numbers_or_names(label, names, labels, tmp_path):
  write(tmp_path / '0.tar', range(2), label)
  write(tmp_path / '1.tar', range(2, 4), label)
  source = open_source(f'webdataset:{tmp_path}', 'all')
  assert (source.class_names, source.multi_label) == (names, False)
  assert [label for _, label in contents(source)] == read_labels(source) == labels


@pytest.mark.parametrize('names', [list(range(4)), list('abcd')])
def test_lists_of_labels_are_multi_label(names, tmp_path):
  classes = [[0, 2], [], [3], [1, 2, 0]]
  label = as_json(lambda i: [names[c] for c in classes[i]])
  write(tmp_path / '0.tar', [0, 1], label)
  write(tmp_path / '1.tar', [2, 3], label)
  source = open_source(f'webdataset:{tmp_path}', 'all')
  assert source.multi_label and source.class_names == tuple(map(str, names))
  labels = [source.read(i)[1] for i in range(4)]
  assert [sorted(np.flatnonzero(label)) for label in labels] == [[0, 2], [], [3], [0, 1, 2]]
  assert (labels[0].dtype, labels[0].shape) == (np.uint8, (4,))


@pytest.mark.parametrize(
  ('file', 'text'),
  [
    ('classes.txt', 'cat\ndog\nowl\n'),
    ('labels.txt', 'cat\ndog\nowl'),
    ('dataset.json', '{"class_names": ["cat", "dog", "owl"]}'),
  ],
)
def test_a_file_beside_the_shards_lists_the_class_names(file, text, tmp_path):
  write(tmp_path / 'x' / 'train' / '0.tar', range(2))
  (tmp_path / 'x' / file).write_text(text)
  assert open_source(f'webdataset:{tmp_path}/x', 'all').class_names == ('cat', 'dog', 'owl')
  write(tmp_path / 'x' / 'train' / '1.tar', range(3), lambda i: {'cls': b'3'})
  with pytest.raises(UserError, match='lists 3 classes, but has the label 3'):
    open_source(f'webdataset:{tmp_path}/x', 'all')


def test_members_may_have_unusual_names(tmp_path):
  long = 'some/folder.v2/' + 'very' * 40
  write_members(
    tmp_path / '0.tar',
    {
      './a.JPEG': b'1',
      './._a.cls': b'left by a file manager',
      './a.cls': b'0',
      'b.seg.png': b'a mask',
      'b.png': b'2',
      'b.cls': b'0',
      f'{long}.jpg': b'3',
      f'{long}.cls': b'1',
      'n/a.webp': b'4',
      'n/a.cls': b'0',
      'readme.txt': b'not an example',
    },
  )
  source = open_source(f'webdataset:{tmp_path}', 'all')
  assert contents(source) == [(b'1', 0), (b'2', 0), (b'3', 1), (b'4', 0)]


def record_reads(monkeypatch) -> list[str]:
  """Returns a list that collects the names of the shards whose headers are read."""
  read, names = tar_index._read, []
  monkeypatch.setattr(tar_index, '_read', lambda path: names.append(path.name) or read(path))
  return names


def test_a_shard_is_indexed_again_only_when_it_changes(tmp_path, cache, monkeypatch):
  for shard in range(2):
    write(tmp_path / f'{shard}.tar', range(shard * 5, shard * 5 + 5))
  read = record_reads(monkeypatch)
  first = open_source(f'webdataset:{tmp_path}', 'all')
  assert sorted(read) == ['0.tar', '1.tar']
  assert len(list(cache.iterdir())) == 2
  second = open_source(f'webdataset:{tmp_path}', 'all')
  assert len(read) == 2
  assert contents(first) == contents(second)
  assert first.fingerprint == second.fingerprint
  write(tmp_path / '1.tar', range(20, 50))
  third = open_source(f'webdataset:{tmp_path}', 'all')
  assert read[2:] == ['1.tar']
  assert third.fingerprint != first.fingerprint
  assert contents(third) == expected([*range(5), *range(20, 50)])


@pytest.mark.parametrize('damage', [b'', b'not an index', None])
def test_a_damaged_index_is_replaced(damage, tmp_path, cache):
  write(tmp_path / '0.tar', range(9))
  open_source(f'webdataset:{tmp_path}', 'all')
  (file,) = cache.iterdir()
  file.write_bytes(file.read_bytes()[:-8] if damage is None else damage)
  assert contents(open_source(f'webdataset:{tmp_path}', 'all')) == expected(range(9))
  assert len(list(cache.iterdir())) == 1


def test_an_unwritable_cache_is_not_used(tmp_path, monkeypatch):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'file'))
  write(tmp_path / '0.tar', range(3))
  assert open_source(f'webdataset:{tmp_path}', 'all').size == 3


def cut(path: pathlib.Path, size: int) -> None:
  path.write_bytes(path.read_bytes()[:size])


def overwrite(path: pathlib.Path, offset: int, content: bytes) -> None:
  with open(path, 'r+b') as file:
    file.seek(offset)
    file.write(content)


def repack(path: pathlib.Path) -> None:
  with tarfile.open(path, 'w:gz') as tar:
    tar.add(__file__, 'x.jpg')


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda path: cut(path, 10_000), '1.tar is not a complete tar file'),  # inside a member
    (lambda path: cut(path, 1024 * 4), '1.tar is not a complete tar file'),  # between two members
    (lambda path: overwrite(path, 4096, b'?' * 512), '1.tar is not a complete tar file'),
    (lambda path: overwrite(path, 4096, bytes(2 << 20)), '1.tar is not a complete tar file .zeros'),
    (lambda path: path.write_bytes(b''), '1.tar is not a complete tar file'),
    (lambda path: path.write_bytes(b'<html>not found</html>'), '1.tar is not a complete tar file'),
    (repack, '1.tar is compressed'),
    (lambda path: write(path, [7], lambda i: {}), '1.tar: 000007 has no .cls or .json'),
    (lambda path: write(path, [7], lambda i: {'cls': b''}), "000007 has the .cls b''"),
    (lambda path: write(path, [7], lambda i: {'json': b'{"l'}), '000007 has the .json'),
    (lambda path: write(path, [7], as_json(lambda i: 1.5)), '000007 has the .json'),
    (lambda path: write(path, [7], as_json(lambda i: -1)), '000007 has the label -1'),
    (
      lambda path: write(path, [7], as_json(lambda i: 1 << 40)),
      'label 1099511627776; classes are 0 to 999,999',
    ),
    (
      lambda path: write(path, [7], as_json(lambda i: 'cat')),
      'has both names and numbers as labels',
    ),
    (lambda path: write(path, [6, 7], as_json(lambda i: ['x', 1][i % 2])), '000007 has the la'),
    (lambda path: path.rename(path.with_name('val-1.tar')), '0.tar has no split in its name'),
  ],
)
def test_damaged_shards_are_errors_of_one_sentence_at_opening(damage, message, tmp_path):
  write(tmp_path / '0.tar', range(5))
  write(tmp_path / '1.tar', range(5, 15), tar_format=tarfile.USTAR_FORMAT)
  damage(tmp_path / '1.tar')
  with pytest.raises(UserError, match=message) as caught:
    open_source(f'webdataset:{tmp_path}', 'all')
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('spec', 'split', 'message'),
  [
    ('gone', 'train', 'There is no .*gone; webdataset: takes a folder'),
    ('x/{0..3}.tar', 'train', 'There is no .*x/1.tar'),
    ('empty', 'train', 'empty has no .tar files'),
    ('x', 'extra', "has the splits train, test and all, not 'extra'"),
    ('texts', 'all', 'has no images'),
    ('val', 'train', "has the splits val and all, not 'train'"),
  ],
)
def test_missing_shards_or_splits_are_errors_of_one_sentence(spec, split, message, tmp_path):
  write(tmp_path / 'x' / '0.tar', range(5))
  write(tmp_path / 'val' / 'val' / '0.tar', range(5))
  write_members(tmp_path / 'texts' / '0.tar', {'a.txt': b'x'})
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match=message):
    open_source(f'webdataset:{tmp_path}/{spec}', split)


def test_a_shard_that_disappears_or_changes_during_a_run_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(webdataset, '_MAX_OPEN_FILES', 1)
  for shard in range(2):
    write(tmp_path / f'{shard}.tar', range(5))
  source = open_source(f'webdataset:{tmp_path}', 'all')
  source.read(0)
  (tmp_path / '1.tar').unlink()
  with pytest.raises(BadExampleError, match='1.tar cannot be read: No such file'):
    source.read(7)
  assert source.describe(7).startswith(f'{tmp_path}/1.tar')
  source.read(0)
  for damage in (lambda path: overwrite(path, 8000, b'x'), lambda path: cut(path, 700)):
    damage(tmp_path / '0.tar')  # while it is open
    with pytest.raises(BadExampleError, match='0.tar has changed since it was opened'):
      source.read(0)


def test_few_files_stay_open_and_reading_does_not_import_tensorflow_or_jax(tmp_path):
  for shard in range(9):
    write(tmp_path / f'{shard}.tar', range(3))
  code = f"""
import os, sys, types
package = types.ModuleType('vit_jax')  # skips the imports of the package itself
package.__path__ = ['{ROOT}/vit_jax']
sys.modules['vit_jax'] = package
from vit_jax.data.sources import open_source
from vit_jax.data.sources.tar import webdataset
webdataset._MAX_OPEN_FILES = 4
source = open_source('webdataset:{tmp_path}', 'all')
for i in [*range(27)] * 2:
  source.read(i)
opened = [os.path.realpath(f'/proc/self/fd/{{fd}}') for fd in os.listdir('/proc/self/fd')]
print(sum(name.endswith('.tar') for name in opened))
print({{'jax', 'flax', 'tensorflow', 'torch'}} & set(sys.modules))
"""
  run = [sys.executable, '-c', code]
  result = subprocess.run(run, cwd=SANDBOX, env=os.environ, capture_output=True, text=True)
  assert (result.stdout, result.stderr) == ('4\nset()\n', '')
