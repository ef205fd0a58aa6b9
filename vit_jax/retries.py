"""Storage that stutters: what may be a temporary error is tried again, for a bounded time."""

import errno
import random
import re
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from vit_jax.errors import MachineError, RunError, UserError, first_line

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 20.0  # seconds; doubled after each attempt
_TOTAL_SECONDS = 90.0  # after which no further attempt begins

_TEMPORARY = {
  getattr(errno, name)
  for name in 'EIO EREMOTEIO ESTALE ETIMEDOUT ECONNRESET ECONNREFUSED ECONNABORTED EPIPE EAGAIN '
  'EBUSY ENETDOWN ENETRESET ENETUNREACH EHOSTDOWN EHOSTUNREACH ENOTCONN ENOLINK'.split()
  if hasattr(errno, name)
}
# Of the HTTP clients of gs:// and s3://, which are optional packages, by the names of the classes.
_CONNECTION_ERRORS = {'ClientConnectionError', 'ClientPayloadError', 'HTTPClientError'}
_CONNECTION_ERRORS |= {'ChecksumError', 'RefreshError', 'TransportError'}
# Of TensorStore and JAX, whose exceptions tell by their text.
_TEMPORARY_TEXT = re.compile(
  r'\b(UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|HTTP response code: (408|429|5\d\d)|EIO|ESTALE|'
  r'ETIMEDOUT|ECONN[A-Z]+|Input/output error|Stale file handle|'
  r'Connection (reset|refused|timed out))'
)
_PERMANENT = {
  getattr(errno, name)
  for name in 'ENOSPC EDQUOT EFBIG EACCES EPERM EROFS ENAMETOOLONG ELOOP'.split()
  if hasattr(errno, name)
}
_PERMANENT_TEXT = re.compile(
  r'No space left|quota exceeded|File too large|Permission denied|PERMISSION_DENIED|not permitted|'
  r'Read-only file system|UNAUTHENTICATED|HTTP response code: 40[13]|Forbidden|Anonymous caller'
)


def is_temporary(error: BaseException) -> bool:
  """Whether the same operation may succeed later: EIO, a lost connection, HTTP 429 or 5xx, …"""
  status = getattr(error, 'status', None) or getattr(error, 'code', None)
  if isinstance(status, int) and status >= 100:
    return status in (408, 429) or status >= 500
  if isinstance(error, OSError) and error.errno is not None:
    return error.errno in _TEMPORARY or isinstance(error, (ConnectionError, TimeoutError))
  names = {kind.__name__ for kind in type(error).__mro__}
  return (
    isinstance(error, (ConnectionError, TimeoutError))
    or bool(names & _CONNECTION_ERRORS)
    or bool(_TEMPORARY_TEXT.search(str(error)))
  )


def is_lack_of_space_or_rights(error: BaseException) -> bool:
  """Whether the user must make room or get access: no space, a quota, no rights, HTTP 403."""
  is_permanent = isinstance(error, OSError) and error.errno in _PERMANENT
  return is_permanent or bool(_PERMANENT_TEXT.search(str(error)))


def with_retries(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
  """Calls a function that reads or writes storage; again after a temporary error.

  The waits grow exponentially, with jitter, so that the hosts of a pod do not return all at once;
  the first one is reported on stderr.

  Raises:
    OSError: the last temporary error, once the time is used up; also for those of HTTP clients.
    Exception: any other error of the function, at once.
  """
  deadline, wait = time.monotonic() + _TOTAL_SECONDS, _FIRST_WAIT
  while True:
    try:
      return function(*args, **kwargs)
    except Exception as error:
      if not is_temporary(error):
        raise
      pause = random.uniform(wait / 2, wait)
      if time.monotonic() + pause > deadline:
        if isinstance(error, OSError):
          raise
        raise OSError(errno.EIO, first_line(error)) from error
      if wait == _FIRST_WAIT:
        print(f'storage: {first_line(error)}; trying again', file=sys.stderr, flush=True)
    time.sleep(pause)
    wait = min(2 * wait, _LONGEST_WAIT)


def storage_error(message: str, error: BaseException) -> RunError:
  """What ends a run whose storage failed: `MachineError` for a temporary error, else `UserError`.

  Args:
    message: what failed, without a final period.
    error: of the storage.
  """
  strerror = error.strerror if isinstance(error, OSError) else None
  text = f'{message} ({strerror or first_line(error).rstrip(".")})'
  if not is_temporary(error):
    return UserError(f'{text}.')
  return MachineError(f'{text} on {socket.gethostname()}; rerun the same command to resume.')
