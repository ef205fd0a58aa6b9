"""What counts as temporary, how long it is tried again, and what an error of storage ends in."""

import errno
import socket
import time

import pytest

from vit_jax import files, retries
from vit_jax.errors import MachineError, UserError


class HttpError(Exception):
  """As gcsfs raises it."""

  def __init__(self, code: int):
    super().__init__(f'HTTP {code}')
    self.code = code


@pytest.fixture
def waits(monkeypatch):
  """Time passes only in waits, whose lengths it records."""
  waits, start = [], time.monotonic()
  monkeypatch.setattr(time, 'monotonic', lambda: start + sum(waits))
  monkeypatch.setattr(time, 'sleep', waits.append)
  return waits


def fail_first(count: int, error: Exception):
  errors = [error] * count

  def function(value):
    if errors:
      raise errors.pop()
    return value

  return function


@pytest.mark.parametrize(
  ('error', 'is_temporary'),
  [
    (OSError(errno.EIO, 'Input/output error'), True),
    (OSError(errno.ESTALE, 'Stale file handle'), True),
    (ConnectionResetError(errno.ECONNRESET, 'reset'), True),
    (TimeoutError('timed out'), True),
    (HttpError(503), True),
    (HttpError(429), True),
    (HttpError(403), False),
    (ValueError('UNAVAILABLE: Error writing gs://b/x: HTTP response code: 503'), True),
    (RuntimeError('DEADLINE_EXCEEDED: x'), True),
    (ValueError('NOT_FOUND: x'), False),
    (OSError(errno.ENOSPC, 'No space left on device'), False),
    (PermissionError(errno.EACCES, 'Permission denied'), False),
    (FileNotFoundError(errno.ENOENT, 'No such file'), False),
    (OSError('Forbidden: gs://b'), False),
    (TypeError('a bug'), False),
  ],
)
def test_only_temporary_errors_are_tried_again(error, is_temporary, waits):
  assert retries.is_temporary(error) == is_temporary
  if is_temporary:
    assert retries.with_retries(fail_first(3, error), 7) == 7
    assert len(waits) == 3 and waits == sorted(waits)
  else:
    with pytest.raises(type(error)):
      retries.with_retries(fail_first(1, error), 7)
    assert not waits


def test_the_total_time_is_bounded_and_clients_errors_become_os_errors(waits, capsys):
  with pytest.raises(OSError, match='HTTP 503'):
    retries.with_retries(fail_first(10**6, HttpError(503)), 7)
  assert 45 < sum(waits) <= 90
  assert capsys.readouterr().err == 'storage: HTTP 503; trying again\n'  # once


def test_what_ends_a_run():
  temporary = retries.storage_error('x cannot be read', OSError(errno.EIO, 'Input/output error'))
  assert isinstance(temporary, MachineError) and temporary.exit_code == 77
  assert socket.gethostname() in str(temporary) and 'rerun' in str(temporary)
  lasting = retries.storage_error('x cannot be read', OSError(errno.ENOSPC, 'No space left'))
  assert isinstance(lasting, UserError)
  assert str(lasting) == 'x cannot be read (No space left).'
  assert retries.is_lack_of_space_or_rights(ValueError('RESOURCE: No space left on device'))
  assert not retries.is_lack_of_space_or_rights(OSError(errno.EIO, 'Input/output error'))


def test_text_files_are_tried_again(tmp_path, monkeypatch, waits):
  path = tmp_path / 'x.json'
  write, failures = files.write_atomically, [OSError(errno.EIO, 'Input/output error')] * 2

  def flaky(*args):
    if failures:
      raise failures.pop()
    write(*args)

  monkeypatch.setattr(files, 'write_atomically', flaky)
  files.write_text(path, 'text')
  assert files.read_text(path) == 'text' and len(waits) == 2
