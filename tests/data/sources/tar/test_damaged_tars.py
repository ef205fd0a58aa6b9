"""Damaged tar shards, by a fixed seed: their examples, or one sentence; never much memory."""

import io
import os
import pathlib
import random
import tarfile
import tracemalloc

import pytest

from vit_jax.data.sources import open_source
from vit_jax.errors import BadExampleError, UserError

BLOCK = tarfile.BLOCKSIZE
FORMATS = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
# The fields of a header: name, mode, size, time, type, link, magic, and those of extensions.
FIELDS = ((0, 100), (100, 108), (124, 136), (136, 148), (156, 157), (157, 257), (257, 265))
FIELDS += ((329, 345), (345, 500), (386, 500))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))


def make_tar(tar_format: int) -> bytes:
  """A tar of six examples, some with names that need an extended header."""
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode='w', format=tar_format) as tar:
    for i in range(6):
      folder = ('d' * 60 + '/') * (1 + i % 2 * 2)
      for suffix, content in (('jpg', b'x' * 700), ('json', b'{"label": %d}' % (i % 3))):
        member = tarfile.TarInfo(f'{folder}{i:03}.{suffix}')
        member.size, member.mtime = len(content), 1.5
        tar.addfile(member, io.BytesIO(content))
  return file.getvalue()


def with_field(tar: bytes, block: int, field: tuple[int, int], value: bytes) -> bytes:
  """Replaces a field of the header in a block, with the right checksum."""
  header = bytearray(tar[block * BLOCK : (block + 1) * BLOCK])
  header[slice(*field)] = value
  header[148:156] = b' ' * 8
  header[148:156] = b'%06o\0 ' % sum(header)
  return tar[: block * BLOCK] + bytes(header) + tar[(block + 1) * BLOCK :]


def damaged(tar: bytes, rng: random.Random) -> bytes:
  """Changes a byte, cuts, inserts, deletes or zeros some, or replaces a field of a header."""
  kind, i = rng.randrange(9), rng.randrange(len(tar))
  block = i // BLOCK
  if kind == 0:
    return tar[:i] + rng.randbytes(1) + tar[i + 1 :]
  if kind == 1:
    return tar[:i]
  if kind == 2:
    return tar[:i] + rng.randbytes(rng.randrange(1, 600)) + tar[i:]
  if kind == 3:
    return tar[:i] + tar[i + rng.randrange(1, 1500) :]
  if kind == 4:
    return tar[: block * BLOCK] + bytes(BLOCK) + tar[(block + 1) * BLOCK :]
  start, stop = field = rng.choice(FIELDS)
  length = stop - start
  values = [b'7' * length, b'\xff' * length, b'\x80'.ljust(length, b'\x7f'), bytes(length)]
  values += [rng.randbytes(length), b'-1'.ljust(length)[:length]]
  values.append(rng.choice(b'0123457LKxgSDMNV').to_bytes(1, 'little') * length)
  return with_field(tar, block, field, rng.choice(values))


def read_all(path: pathlib.Path) -> None:
  """Reads all examples; raises nothing but one sentence."""
  try:
    source = open_source(f'webdataset:{path}', 'all')
    for i in range(source.size):
      source.read(i)
      source.describe(i)
  except UserError as error:
    assert '\n' not in str(error)


def test_a_damaged_tar_is_read_or_ends_in_one_sentence(tmp_path):
  rng, tars = random.Random(0), [make_tar(tar_format) for tar_format in FORMATS]
  path = tmp_path / 'x.tar'
  for i in range(300):
    path.write_bytes(damaged(rng.choice(tars), rng))
    os.utime(path, ns=(i, i))  # a cached index is that of another file
    read_all(path)


@pytest.mark.parametrize(
  ('kind', 'size'),
  [
    (b'0', b'7' * 11 + b'\0'),  # 8 GB, in octal
    (b'0', b'\x80'.ljust(12, b'\x7f')),  # beyond 64 bits
    (b'0', b'\xff' * 12),  # -1
    (b'L', b'7' * 11 + b'\0'),  # a long name
    (b'x', b'\x80' + b'\0' * 7 + b'\x7f' * 4),
    (b'g', b'\x80'.ljust(12, b'\x7f')),
  ],
)
def test_a_member_that_declares_gigabytes_takes_no_memory(kind, size, tmp_path):
  tar = make_tar(tarfile.USTAR_FORMAT)
  path = tmp_path / 'x.tar'
  path.write_bytes(with_field(with_field(tar, 0, (124, 136), size), 0, (156, 157), kind))
  os.truncate(path, 2**34)  # so that it is not too short
  with open(path, 'r+b') as file:
    file.seek(-1, os.SEEK_END)
    file.write(b'x')
  tracemalloc.start()
  with pytest.raises(UserError, match='is not a complete tar file|the limit is') as caught:
    open_source(f'webdataset:{path}', 'all')
  assert not isinstance(caught.value, BadExampleError)
  assert tracemalloc.get_traced_memory()[1] < 2**23
  tracemalloc.stop()
