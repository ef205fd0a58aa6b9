"""webdataset: tar shards by random access: layouts, labels, the index and its cache, damage."""

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

from tests.helpers import ROOT, SANDBOX
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
      member.size, member.mtime = len(content), 1.5  # a fraction takes an extended header
      tar.addfile(member, io.BytesIO(content))


def image(i: int) -> bytes:
  return b'jpeg %d ' % i * (i % 5 + 1)


def write(path: pathlib.Path, numbers, label=lambda i: {'cls': b'%d' % (i % 3)}, **kwargs) -> None:
  """One shard: `label` gives what lies beside each image."""
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
  one = open_source(f'webdataset:{tmp_path}/x-0001.tar', 'all')
  assert contents(one) == expected(range(10, 20))


def test_splits_are_folders(tmp_path):
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
def test_splits_are_in_the_names_of_files(name, tmp_path):
  write(tmp_path / name.format('train'), range(6))
  write(tmp_path / name.format('val'), range(6, 10))
  write(tmp_path / name.format('test'), range(10, 13))
  spec = f'webdataset:{tmp_path}'
  assert contents(open_source(spec, 'train')) == expected(range(6))
  assert contents(open_source(spec, 'val')) == expected(range(6, 10))
  assert contents(open_source(spec, 'train[:2]+test')) == expected([0, 1, 10, 11, 12])


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
def test_labels(label, names, labels, tmp_path):
  write(tmp_path / '0.tar', range(2), label)
  write(tmp_path / '1.tar', range(2, 4), label)
  source = open_source(f'webdataset:{tmp_path}', 'all')
  assert (source.class_names, source.multi_label) == (names, False)
  assert [label for _, label in contents(source)] == labels


@pytest.mark.parametrize('names', [list(range(4)), list('abcd')])
def test_several_labels(names, tmp_path):
  given = [[0, 2], [], [3], [1, 2, 0]]
  label = as_json(lambda i: [names[c] for c in given[i]])
  write(tmp_path / '0.tar', [0, 1], label)
  write(tmp_path / '1.tar', [2, 3], label)
  source = open_source(f'webdataset:{tmp_path}', 'all')
  assert source.multi_label and source.class_names == tuple(map(str, names))
  found = [source.read(i)[1] for i in range(4)]
  assert [sorted(np.flatnonzero(label)) for label in found] == [[0, 2], [], [3], [0, 1, 2]]
  assert (found[0].dtype, found[0].shape) == (np.uint8, (4,))


@pytest.mark.parametrize(
  ('file', 'text'),
  [
    ('classes.txt', 'cat\ndog\nowl\n'),
    ('labels.txt', 'cat\ndog\nowl'),
    ('dataset.json', '{"class_names": ["cat", "dog", "owl"]}'),
  ],
)
def test_class_names_lie_beside_the_shards(file, text, tmp_path):
  write(tmp_path / 'x' / 'train' / '0.tar', range(2))
  (tmp_path / 'x' / file).write_text(text)
  assert open_source(f'webdataset:{tmp_path}/x', 'all').class_names == ('cat', 'dog', 'owl')
  write(tmp_path / 'x' / 'train' / '1.tar', range(3), lambda i: {'cls': b'3'})
  with pytest.raises(UserError, match='lists 3 classes, but there is the label 3'):
    open_source(f'webdataset:{tmp_path}/x', 'all')


def test_names_as_people_give_them(tmp_path):
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
      'readme.txt': b'no example',
    },
  )
  source = open_source(f'webdataset:{tmp_path}', 'all')
  assert contents(source) == [(b'1', 0), (b'2', 0), (b'3', 1), (b'4', 0)]


def counted_reads(monkeypatch) -> list[str]:
  """The names of the shards whose headers are read from now on."""
  read, names = tar_index._read, []
  monkeypatch.setattr(tar_index, '_read', lambda path: names.append(path.name) or read(path))
  return names


def test_headers_are_read_once_until_a_shard_changes(tmp_path, cache, monkeypatch):
  for shard in range(2):
    write(tmp_path / f'{shard}.tar', range(shard * 5, shard * 5 + 5))
  read = counted_reads(monkeypatch)
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


@pytest.mark.parametrize('damage', [b'', b'no index', None])
def test_a_damaged_index_is_made_again(damage, tmp_path, cache):
  write(tmp_path / '0.tar', range(9))
  open_source(f'webdataset:{tmp_path}', 'all')
  (file,) = cache.iterdir()
  file.write_bytes(file.read_bytes()[:-8] if damage is None else damage)
  assert contents(open_source(f'webdataset:{tmp_path}', 'all')) == expected(range(9))
  assert len(list(cache.iterdir())) == 1


def test_without_a_place_for_the_cache_there_is_none(tmp_path, monkeypatch):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'file'))
  write(tmp_path / '0.tar', range(3))
  assert open_source(f'webdataset:{tmp_path}', 'all').size == 3


def cut(path: pathlib.Path, size: int) -> None:
  path.write_bytes(path.read_bytes()[:size])


def overwrite(path: pathlib.Path, place: int, content: bytes) -> None:
  with open(path, 'r+b') as file:
    file.seek(place)
    file.write(content)


def repack(path: pathlib.Path) -> None:
  with tarfile.open(path, 'w:gz') as tar:
    tar.add(__file__, 'x.jpg')


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda path: cut(path, 10_000), '1.tar is no whole tar file'),  # inside of a member
    (lambda path: cut(path, 1024 * 4), '1.tar is no whole tar file'),  # between two
    (lambda path: overwrite(path, 4096, b'?' * 512), '1.tar is no whole tar file'),
    (lambda path: overwrite(path, 4096, bytes(2 << 20)), '1.tar is no whole tar file .zeros'),
    (lambda path: path.write_bytes(b''), '1.tar is no whole tar file'),
    (lambda path: path.write_bytes(b'<html>not found</html>'), '1.tar is no whole tar file'),
    (repack, '1.tar is compressed'),
    (lambda path: write(path, [7], lambda i: {}), '1.tar: 000007 has no .cls or .json'),
    (lambda path: write(path, [7], lambda i: {'cls': b''}), "000007 has the .cls b''"),
    (lambda path: write(path, [7], lambda i: {'json': b'{"l'}), '000007 has the .json'),
    (lambda path: write(path, [7], as_json(lambda i: 1.5)), '000007 has the .json'),
    (lambda path: write(path, [7], as_json(lambda i: -1)), '000007 has the label -1'),
    (lambda path: write(path, [7], as_json(lambda i: 1 << 40)), 'label 1099511627776, which'),
    (lambda path: write(path, [7], as_json(lambda i: 'cat')), 'some labels as names'),
    (lambda path: write(path, [6, 7], as_json(lambda i: ['x', 1][i % 2])), '000007 has the la'),
    (lambda path: path.rename(path.with_name('val-1.tar')), '0.tar names no split'),
  ],
)
def test_damage_ends_in_one_sentence_before_the_run(damage, message, tmp_path):
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
    ('empty', 'train', 'empty holds no .tar files'),
    ('x', 'dev', "has the splits train, test and all, not 'dev'"),
    ('texts', 'all', 'has no image'),
    ('val', 'train', "has the splits val and all, not 'train'"),
  ],
)
def test_what_is_not_there_ends_in_one_sentence(spec, split, message, tmp_path):
  write(tmp_path / 'x' / '0.tar', range(5))
  write(tmp_path / 'val' / 'val' / '0.tar', range(5))
  write_members(tmp_path / 'texts' / '0.tar', {'a.txt': b'x'})
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match=message):
    open_source(f'webdataset:{tmp_path}/{spec}', split)


def test_a_shard_that_vanishes_or_changes_during_the_run_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(webdataset, '_OPEN_FILES', 1)
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


def test_few_files_are_open_at_a_time_and_tensorflow_and_jax_not_imported(tmp_path):
  for shard in range(9):
    write(tmp_path / f'{shard}.tar', range(3))
  code = f"""
import os, sys, types
package = types.ModuleType('vit_jax')  # without what the package itself imports
package.__path__ = ['{ROOT}/vit_jax']
sys.modules['vit_jax'] = package
from vit_jax.data.sources import open_source, webdataset
webdataset._OPEN_FILES = 4
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
