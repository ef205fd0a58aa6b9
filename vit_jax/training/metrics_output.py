"""Where the metrics of a run go: local files that grow, or parts of bounded size in a bucket.

Storage that fails does not end the run: what cannot be written is kept and written later.
"""

import pathlib
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from etils import epath

from vit_jax.errors import first_line
from vit_jax.retries import with_retries
from vit_jax.text import format_bytes, plural

_UPLOAD_SECONDS = 10.0  # between uploads
_MAX_PART = 2**20  # bytes of a part in a bucket after which the next one begins
_MAX_KEPT = 2**26  # bytes that are kept while they cannot be written


class Output(Protocol):
  """A stream of bytes that grows with the steps of a run."""

  def append(self, step: int, content: bytes) -> None:
    """Adds whole lines or records of `step`, which never decreases; raises no `OSError`."""
    ...


class WriteFailures:
  """Says on stderr once that something cannot be written, and at the end what became of it."""

  def __init__(self, name: str = 'metrics'):
    self._name = name
    self._num_failures = self._dropped_bytes = 0

  def report(self, path: epath.PathLike, error: Exception) -> None:
    """Counts a failure to write `path`."""
    self._num_failures += 1
    if self._num_failures == 1:
      reason = getattr(error, 'strerror', None) or first_line(error).rstrip('.')
      self._print(
        f'{path} cannot be written ({reason}); training continues, and the write is retried'
      )

  def drop(self, num_bytes: int) -> None:
    """Counts what is given up because too much is kept."""
    self._dropped_bytes += num_bytes

  def report_end(self, unwritten_bytes: int) -> None:
    """Sums up, if there were failures."""
    if not self._num_failures:
      return
    lost = unwritten_bytes + self._dropped_bytes
    end = f'{format_bytes(lost)} are lost' if lost else 'all were written later'
    self._print(f'writing failed {plural(self._num_failures, "time")}; {end}')

  def _print(self, text: str) -> None:
    print(f'{self._name}: {text}', file=sys.stderr, flush=True)


class LocalFile:
  """A local file that grows."""

  def __init__(self, path: epath.Path, failures: WriteFailures):
    self._path, self._failures = pathlib.Path(path), failures
    self._unwritten, self._lock = bytearray(), threading.Lock()

  def append(self, step: int, content: bytes) -> None:
    del step
    with self._lock:
      if len(self._unwritten) + len(content) <= _MAX_KEPT:
        self._unwritten += content
      else:
        self._failures.drop(len(content))
    self.flush()

  def flush(self) -> None:
    with self._lock:
      try:
        while (
          self._unwritten
        ):  # opened anew, because a handle of a network file system may be stale
          with open(self._path, 'ab', buffering=0) as file:
            del self._unwritten[: file.write(self._unwritten)]
      except OSError as error:
        self._failures.report(self._path, error)

  def close(self) -> int:
    """Writes for the last time; returns how many bytes could not be written."""
    self.flush()
    return len(self._unwritten)


class Uploader:
  """Uploads objects to a bucket on a thread, every ten seconds the newest content of each."""

  def __init__(self, failures: WriteFailures):
    self._failures = failures
    self._pending: dict[epath.Path, bytes] = {}  # oldest first
    self._lock, self._upload_lock = threading.Lock(), threading.Lock()
    self._closing = threading.Event()
    self._thread = threading.Thread(target=self._run, name='metrics', daemon=True)
    self._thread.start()

  def put(self, path: epath.Path, content: bytes) -> None:
    """Sets the content that the object will have after the next upload."""
    with self._lock:
      self._pending[path] = content
      while sum(map(len, self._pending.values())) > _MAX_KEPT:
        self._failures.drop(len(self._pending.pop(next(iter(self._pending)))))

  def flush(self) -> None:
    """Uploads what is pending; what fails is pending again."""
    with self._upload_lock:
      with self._lock:
        pending, self._pending = self._pending, {}
      for path, content in list(pending.items()):
        try:
          with_retries(path.write_bytes, content)
        except Exception as error:  # noqa: BLE001 - the clients of buckets raise many kinds
          self._failures.report(path, error)
          break
        del pending[path]
      with self._lock:
        self._pending = pending | self._pending

  def close(self) -> int:
    """Uploads for the last time; returns how many bytes could not be uploaded."""
    self._closing.set()
    self._thread.join()
    self.flush()
    return sum(map(len, self._pending.values()))

  def _run(self) -> None:
    while not self._closing.wait(_UPLOAD_SECONDS):
      self.flush()


class Parts:
  """Objects of bounded size in a bucket, each of which begins with whole lines or records."""

  def __init__(
    self,
    uploader: Uploader,
    path_of: Callable[[int], epath.Path],
    header: bytes = b'',
    last: tuple[int, bytes] | None = None,
  ):
    """Begins a part, or continues the last one.

    Args:
      uploader: of the objects.
      path_of: the path of the part that begins with a step.
      header: of each part.
      last: first step and content of the part to continue.
    """
    self._uploader, self._path_of, self._header = uploader, path_of, header
    self._first_step, self._content = last or (None, b'')

  def append(self, step: int, content: bytes) -> None:
    is_full = len(self._content) >= _MAX_PART and step != self._first_step
    if self._first_step is None or is_full:
      self._first_step, self._content = step, self._header
    self._content += content
    self._uploader.put(self._path_of(self._first_step), self._content)
