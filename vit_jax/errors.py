"""The errors that end a command with one sentence, and the exit codes of all ends.

0    finished
1    a bug: a traceback
2    the user's mistake (`UserError`)
3    the loss is no number (`NonFiniteLossError`)
4    out of memory: change the plan (`DeviceMemoryError`)
75   preempted: restart me (`PreemptedError`; EX_TEMPFAIL of sysexits.h)
76   another process of the run was lost: restart me (`LostPeerError`)
130  stopped by the keyboard
"""

import contextlib
import errno
import re
import sys
import traceback
from collections.abc import Iterator

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RunError(Exception):
  """An end with one sentence on stderr instead of a traceback."""

  exit_code = 1
  label = 'error'


class UserError(RunError):
  """Something the user can mend; the message says what was wrong, where, and what to do."""

  exit_code = 2


class BadExampleError(UserError):
  """An example of the data that cannot be read; the message names its file."""


class NonFiniteLossError(RunError):
  """The loss or its gradient stopped being a number; the message names the step."""

  exit_code = 3


class DeviceMemoryError(RunError):
  """The devices have too little memory for the plan; the message says what would need less."""

  exit_code = 4


class PreemptedError(RunError):
  """The machine is being taken away (SIGTERM); the message names the step that was saved."""

  exit_code = 75
  label = 'stopped'


class LostPeerError(RunError):
  """Another process of the run has not come or is gone; the message names it."""

  exit_code = 76


def first_line(error: Exception) -> str:
  """The first line of a library's error, short enough to stand inside one of our sentences."""
  return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def is_out_of_memory(error: BaseException) -> bool:
  """Whether a device has run out of memory; what JAX raises then differs from call to call."""
  return 'RESOURCE_EXHAUSTED' in str(error) or 'Out of memory' in str(error)


@contextlib.contextmanager
def memory_explained() -> Iterator[None]:
  """Turns a device's out-of-memory error into `DeviceMemoryError`."""
  try:
    yield
  except (RuntimeError, ValueError) as error:
    if not is_out_of_memory(error):
      raise
    said = re.sub(r'^\W*RESOURCE_EXHAUSTED\W*', '', first_line(error)).rstrip('.')
    raise DeviceMemoryError(
      f'The devices have too little memory for this plan ({said}); config.model.remat=full, a '
      'larger config.mesh.fsdp or config.accumulation_steps, or a smaller config.batch_size '
      'need less, and python -m vit_jax.plan says how much.'
    ) from None


def report(error: BaseException) -> tuple[int, str]:
  """Prints what ended a command on stderr; returns its exit code, and it in a sentence."""
  if isinstance(error, RunError):
    print(f'{error.label}: {error}', file=sys.stderr, flush=True)
    return error.exit_code, str(error)
  if isinstance(error, OSError) and error.errno in _NO_SPACE:
    said = f'{error.filename or "A file"} cannot be written ({error.strerror}).'
    print(f'error: {said}', file=sys.stderr, flush=True)
    return UserError.exit_code, said
  if isinstance(error, KeyboardInterrupt):
    print('stopped by the keyboard.', file=sys.stderr, flush=True)
    return 130, 'stopped by the keyboard.'
  traceback.print_exception(error)
  return 1, f'{type(error).__name__}: {first_line(error)}'
