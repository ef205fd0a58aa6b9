"""Files: atomic writes, links, the cache folder, JSON objects; with real files."""

import os

import pytest
from etils import epath

from vit_jax import files
from vit_jax.errors import UserError


def test_a_file_is_written_and_nothing_else_is_left(tmp_path):
  path = tmp_path / 'x.txt'
  files.write_text(path, 'old')
  files.write_text(path, 'new é')
  assert path.read_text() == 'new é'
  files.write_bytes(path, b'\0\xff')  # synced to the disk
  assert path.read_bytes() == b'\0\xff'
  assert os.listdir(tmp_path) == ['x.txt']


def test_a_failed_write_leaves_the_file_unchanged(tmp_path):
  path = tmp_path / 'x.txt'
  path.write_text('old')

  def write(scratch):
    assert scratch.parent == path.parent and scratch.name != path.name
    scratch.write_text('half')
    raise OSError(28, 'No space left on device')

  with pytest.raises(OSError, match='No space left'):
    files.write_atomically(path, write)
  assert path.read_text() == 'old'
  assert os.listdir(tmp_path) == ['x.txt']


def test_a_link_is_followed(tmp_path):
  (tmp_path / 'target.txt').write_text('old')
  (tmp_path / 'link.txt').symlink_to('target.txt')
  files.write_text(tmp_path / 'link.txt', 'new')
  assert (tmp_path / 'link.txt').is_symlink()
  assert (tmp_path / 'target.txt').read_text() == 'new'
  assert files.real_path(epath.Path(tmp_path / 'link.txt')) == epath.Path(tmp_path / 'target.txt')


def test_a_new_file_is_not_written_through_a_link(tmp_path, monkeypatch):
  (tmp_path / 'victim').write_text('precious')
  (tmp_path / 'x.part').symlink_to('victim')
  monkeypatch.setattr(files, 'scratch_path', lambda path: path.with_name('x.part'))
  with pytest.raises(FileExistsError):
    files.write_text(tmp_path / 'x', 'new')
  with pytest.raises(OSError, match='it is a link'):
    files.open_to_resume(tmp_path / 'x.part')
  assert (tmp_path / 'victim').read_text() == 'precious'
  assert sorted(os.listdir(tmp_path)) == ['victim', 'x.part']


def test_pipes_devices_and_endless_files_are_not_read(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  for path in (tmp_path / 'pipe', '/dev/zero', '/dev/null'):
    for read in (files.read_bytes, files.read_text):
      with pytest.raises(OSError, match='it is a pipe or a device'):
        read(path)
  with pytest.raises(IsADirectoryError):
    files.read_bytes(tmp_path)
  with pytest.raises(OSError, match='it is a pipe or a device'):
    files.open_to_resume(tmp_path / 'pipe')
  with open(tmp_path / 'sparse', 'wb') as file:
    file.truncate(2**40)
  with pytest.raises(OSError, match='it has more than 1,073,741,824 bytes'):
    files.read_bytes(tmp_path / 'sparse')
  with pytest.raises(OSError, match='it has more than 100,000,000 bytes'):
    files.read_text(tmp_path / 'sparse')


def test_text_is_utf_8(tmp_path):
  (tmp_path / 'x').write_bytes('\ufeffé\r\n猫\n'.encode())
  assert files.read_text(tmp_path / 'x') == 'é\n猫\n'
  (tmp_path / 'x').write_bytes(b'\xe9')
  with pytest.raises(ValueError, match='utf-8'):
    files.read_text(tmp_path / 'x')


def test_remote_paths_are_recognized():
  remote = epath.Path('gs://bucket/run')
  assert files.is_remote(remote) and files.is_remote('gs://bucket/run')
  assert not files.is_remote('/runs/x')
  assert files.real_path(remote) == remote


def test_the_cache_folder(monkeypatch, tmp_path):
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path))
  assert files.cache_folder() == epath.Path(tmp_path)
  monkeypatch.delenv('VIT_JAX_CACHE')
  assert files.cache_folder() == epath.Path('~/.cache/vit_jax').expanduser()
  monkeypatch.setenv('VIT_JAX_CACHE', 'gs://bucket/x')
  with pytest.raises(UserError, match='VIT_JAX_CACHE is gs://bucket/x; it takes a local folder'):
    files.cache_folder()


def test_json_objects(tmp_path):
  path = epath.Path(tmp_path / 'x.json')
  path.write_text('{"a": [1, null]}')
  assert files.read_json_object(path) == {'a': [1, None]}
  for text, message in (
    ('[1]', 'x.json is not a JSON object'),
    ('{"a": ', 'Expecting value'),
    ('[' * 100_000, 'nested too deeply'),
  ):
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
      files.read_json_object(path)
  with pytest.raises(FileNotFoundError):
    files.read_json_object(epath.Path(tmp_path / 'y.json'))


def test_no_device_is_replaced_by_a_file(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  os.symlink('pipe', tmp_path / 'link')
  for name in ('pipe', 'link'):
    with pytest.raises(OSError, match='a pipe or a device'):
      files.write_text(tmp_path / name, 'text')
  assert (tmp_path / 'pipe').is_fifo()
  assert sorted(path.name for path in tmp_path.iterdir()) == ['link', 'pipe']


@pytest.mark.parametrize('path', ['a\0b', '\ud800.png'])
def test_a_path_that_cannot_exist(path):
  with pytest.raises(UserError, match='null character|can name a file'):
    files.user_path(path)
