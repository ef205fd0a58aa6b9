"""What all commands share: their argument parser, their exit codes, quiet libraries."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import tqdm

from vit_jax import errors
from vit_jax.errors import UserError


class Parser(argparse.ArgumentParser):
  """`argparse` with defaults in `--help` and one sentence for a mistake (exit code 2)."""

  def __init__(self, module: str, **kwargs):
    kwargs.setdefault('formatter_class', argparse.ArgumentDefaultsHelpFormatter)
    super().__init__(prog=f'python -m {module}', allow_abbrev=False, **kwargs)

  def error(self, message: str) -> NoReturn:
    print(f'error: {message}; --help shows the usage.', file=sys.stderr)
    sys.exit(UserError.exit_code)


def pixels(text: str) -> int | tuple[int, int]:
  """An image size on the command line: '224', or '224x160' (height x width)."""
  try:
    sides = [int(side) for side in text.split('x')]
  except ValueError:
    sides = []
  if len(sides) not in (1, 2):
    raise argparse.ArgumentTypeError(f'{text!r} is no size; it takes 224, or 224x160')
  return sides[0] if len(sides) == 1 else tuple(sides)


def say_report(report: Any) -> None:
  """Prints the report of a load on stderr, unless all there was was taken as it is."""
  if not report.is_plain:
    print(report, file=sys.stderr)


def progress(items: Iterable[Any], total: int, unit: str) -> Iterable[Any]:
  """The items, with a progress bar on a terminal's stderr."""
  return tqdm.tqdm(items, total=total, unit=unit, leave=False, disable=None)


def run(main: Callable[[], None]) -> NoReturn:
  """Runs a command; a `RunError` is one sentence on stderr and its exit code, no traceback."""
  for library in ('absl', 'jax', 'orbax', 'etils'):  # what goes wrong there is raised, too
    logging.getLogger(library).setLevel(logging.CRITICAL)
  try:
    main()
    sys.stdout.flush()
  except BrokenPipeError:  # the reader of a pipe has left, as in `predict … | head -1`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except (errors.RunError, KeyboardInterrupt, OSError) as error:
    sys.exit(errors.report(error)[0])
  sys.exit(0)
