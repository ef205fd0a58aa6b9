"""Locks on files: they end with the process that holds them, and NFS shares them among machines."""

from typing import BinaryIO

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None


def try_lock(file: BinaryIO, *, shared: bool = False) -> bool | None:
  """Locks an open file until it is closed; never waits.

  Args:
    file: open for reading if `shared`, else for writing, as NFS demands.
    shared: whether others may lock it, too, if theirs are shared.

  Returns:
    Whether it is locked now; False if another holds it; None where there are no locks (on Windows,
    and on some file systems, such as Lustre without the option flock).
  """
  if fcntl is None:
    return None
  try:
    fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    return True
  except BlockingIOError:
    return False
  except OSError:
    return None
