"""Exceptions that end a command with one sentence, and the exit codes of all commands.

A finished command exits with 0, a bug (a traceback) with 1, an interrupt by the keyboard with 130;
the other codes are those of the exceptions.
"""

import contextlib
import errno
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator

from vit_jax.text import printable, shortened

# Of a place that the user must change: no bugs of the code.
_USERS_ERRORS = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP)

# Of JAX's runtime: status codes, and what drivers and collectives name.
_FAULTS = re.compile(
  r'^(INTERNAL|UNAVAILABLE|ABORTED|DATA_LOSS|DEADLINE_EXCEEDED)\b'
  r'|\b(NCCL|ICI|ECC|Xid|Gloo)\b|CUDA_ERROR',
  re.MULTILINE,
)

# What JAX says when another process does not come to connect, as before a first collective.
_ABSENCE = re.compile(r'\bGetKeyValue\(\) timed out\b')

# An interrupt is reported once, by the main thread or by the one that ends a busy process.
interrupt_lock = threading.RLock()
interrupt_reported = threading.Event()


class RunError(Exception):
  """Ends a command with one sentence on stderr instead of a traceback.

  Its text is printable and not long, whatever the names that it quotes.
  """

  exit_code = 1
  label = 'error'

  def __str__(self) -> str:
    return printable(shortened(super().__str__()))


class UserError(RunError):
  """A mistake that the user can fix; the message says what is wrong, where, and what to do."""

  exit_code = 2


class BadExampleError(UserError):
  """An unreadable example of the data; the message names its file."""


class MissingDataError(UserError):
  """A data source that does not exist; the message says what it takes instead."""


class DivergedError(RunError):
  """The run has diverged; the message names the step.

  Attributes:
    step: number of the step; None if it is not that of one run.
  """

  exit_code = 3

  def __init__(self, message: str, step: int | None = None):
    super().__init__(message)
    self.step = step


class NonFiniteLossError(DivergedError):
  """A loss or gradient that is not finite; the message names the step."""


class DifferentResultsError(RunError):
  """Results that differ beyond the noise; the message names the first step and metric."""

  exit_code = 1  # as diff's
  label = 'different'


class DeviceMemoryError(RunError):
  """The devices ran out of memory; the message says what would need less."""

  exit_code = 4


class PreemptedError(RunError):
  """The run was preempted (SIGTERM): rerun to resume; the message names the step that was saved."""

  exit_code = 75  # EX_TEMPFAIL of sysexits.h
  label = 'stopped'


class LostPeerError(RunError):
  """Another process did not start or was lost: rerun to resume; the message names it."""

  exit_code = 76


class UnsavedError(RunError):
  """The run was preempted (SIGTERM), but did not get to save in time: rerun to resume."""

  exit_code = 75
  label = 'stopped'


class NoProgressError(RunError):
  """Restarts in a row have made no progress; the message says how to try again."""

  exit_code = 5


class MachineError(RunError):
  """A fault of a machine or its storage: rerun to resume; the message names the host.

  Attributes:
    is_of_host: whether a device or the network of this host has failed, rather than a storage.
  """

  exit_code = 77

  def __init__(self, message: str, is_of_host: bool = False):
    super().__init__(message)
    self.is_of_host = is_of_host


class HangError(RunError):
  """Nothing has finished for too long: rerun to resume; the message names the stacks' folder."""

  exit_code = 78


class StoppedError(Exception):
  """An evaluation is left unfinished, because the run must save and exit; never seen by users."""


def first_line(error: BaseException) -> str:
  """The first line of a library's error, at most 200 characters, to quote in a sentence."""
  return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def is_out_of_memory(error: BaseException) -> bool:
  """Returns True if a device ran out of memory, for which JAX raises several exceptions."""
  return 'RESOURCE_EXHAUSTED' in str(error) or 'Out of memory' in str(error)


@contextlib.contextmanager
def memory_explained(advice: str) -> Iterator[None]:
  """Turns a device's out-of-memory error into `DeviceMemoryError`; also a decorator.

  Args:
    advice: what needs less memory; completes the sentence 'The devices ran out of memory (…); …'.
  """
  try:
    yield
  except (RuntimeError, ValueError) as error:
    if not is_out_of_memory(error):
      raise
    reason = re.sub(r'^\W*RESOURCE_EXHAUSTED\W*', '', first_line(error)).rstrip('.')
    raise DeviceMemoryError(f'The devices ran out of memory ({reason}); {advice}.') from None


def is_machine_fault(error: BaseException) -> bool:
  """Returns True for an error of JAX's runtime that a sound program gets from a faulty machine."""
  return isinstance(error, RuntimeError) and bool(_FAULTS.search(str(error)))


@contextlib.contextmanager
def faults_named(is_sound: Callable[[], bool]) -> Iterator[None]:
  """Turns the error of a faulty machine into `MachineError`, with the name of this host.

  That of a process which does not connect to this one becomes `LostPeerError`.

  Args:
    is_sound: whether the program has worked before; else the same error may be its own.
  """
  try:
    yield
  except RuntimeError as error:
    if _ABSENCE.search(str(error)):
      raise LostPeerError(
        f'Another process did not connect to this one in time ({first_line(error)}); rerun the '
        'same command to resume from the last checkpoint.'
      ) from None
    if not is_sound() or is_out_of_memory(error) or not is_machine_fault(error):
      raise
    raise MachineError(
      f'A device or the network of {socket.gethostname()} failed ({first_line(error)}); rerun the '
      'same command to resume from the last checkpoint, on another host if it fails again.',
      is_of_host=True,
    ) from None


def describe(error: BaseException) -> tuple[int, str, str]:
  """What ended a command: its exit code, a one-line message, and the text for the user."""
  if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
    error = UserError(f'{error.filename or "A file"} cannot be written ({error.strerror}).')
  elif isinstance(error, OSError) and error.errno in _USERS_ERRORS and error.filename:
    error = UserError(f'{error.filename} cannot be read or written ({error.strerror}).')
  elif isinstance(error, ImportError) and error.name is None:  # of a package for gs://…, s3://…
    error = UserError(f'A package is missing ({first_line(error).rstrip(".")}).')
  if isinstance(error, RunError):
    return error.exit_code, str(error), f'{error.label}: {error}'
  if isinstance(error, KeyboardInterrupt):
    message = f'{": ".join(filter(None, ("interrupted by the keyboard", str(error))))}.'
    return 130, message, message
  text = ''.join(traceback.format_exception(error)).rstrip('\n')
  return 1, f'{type(error).__name__}: {first_line(error)}', text


def report(error: BaseException) -> tuple[int, str]:
  """Prints on stderr what ended a command; returns its exit code and a one-line message."""
  code, message, text = describe(error)
  is_interrupt = isinstance(error, KeyboardInterrupt)
  with interrupt_lock if is_interrupt else contextlib.nullcontext():
    with contextlib.suppress(OSError):  # where nothing can be printed, the exit code still holds
      print(text, file=sys.stderr, flush=True)
    if is_interrupt:
      interrupt_reported.set()
  return code, message
