"""Shared by all commands: the argument parser, progress bars, exit codes, quiet libraries."""

import argparse
import hashlib
import io
import itertools
import logging
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import tqdm

from vit_jax import compilation_cache, errors, signals
from vit_jax.distributed import cluster
from vit_jax.errors import UserError
from vit_jax.files import is_remote, user_path, write_text
from vit_jax.text import printable, shortened

# Of google.api_core, about the years ahead of this version of Python.
warnings.filterwarnings('ignore', 'You are using a Python version', FutureWarning)

_MAX_NAME = 240  # bytes of the name of a folder; file systems allow 255


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
  def _get_help_string(self, action: argparse.Action) -> str | None:
    has_default = action.default not in (None, False, '', argparse.SUPPRESS)
    return super()._get_help_string(action) if has_default else action.help


class Parser(argparse.ArgumentParser):
  """An `ArgumentParser` that shows defaults in `--help` and reports a mistake in one sentence."""

  def __init__(self, module: str, **kwargs):
    kwargs.setdefault('formatter_class', _HelpFormatter)
    super().__init__(prog=f'python -m {module}', allow_abbrev=False, **kwargs)

  def parse_known_args(self, args=None, namespace=None):  # pyright: ignore
    self._arguments = sys.argv[1:] if args is None else list(args)
    return super().parse_known_args(args, namespace)

  def _unknown_flags(self) -> list[str]:
    """The flags of the command line that the command does not have."""
    flags = itertools.takewhile(lambda argument: argument != '--', self._arguments)
    names = [flag.split('=')[0] for flag in flags if re.match('--?[A-Za-z]', flag)]
    known = self._option_string_actions
    return [n for n in names if n not in known and not re.match('--?(no)?config[.]', n)]

  def error(self, message: str) -> NoReturn:
    # A misspelt flag is the reason why a required one is missing.
    if 'arguments are required' in message and (unknown := self._unknown_flags()):
      message = f'unrecognized arguments: {" ".join(unknown)}'
    print(f'error: {printable(shortened(message))}; --help shows the usage.', file=sys.stderr)
    sys.exit(UserError.exit_code)


def parse_image_size(text: str) -> int | tuple[int, int]:
  """An image size in pixels, '224' or '224x160' (height x width), as an int or a pair."""
  match = re.fullmatch(r'(\d{1,9})(?:x(\d{1,9}))?', text)
  if not match:
    raise argparse.ArgumentTypeError(f'{text[:40]!r} is not an image size such as 224 or 224x160')
  height, width = match.groups()
  return (int(height), int(width)) if width else int(height)


def check_range(name: str, value: int, least: int, most: int) -> None:
  """Raises `UserError` for a number out of its range; `name` is that of the flag."""
  if not least <= value <= most:
    raise UserError(f'{name} is {value}; it must be from {least} to {most:,}.')


def check_page(out: str) -> None:
  """Raises `UserError` unless a page can be written there; `out` is --out."""
  if not out.endswith('.html'):
    raise UserError(f'--out is {out!r}; it takes a file that ends in .html.')
  path = user_path(out)
  if not is_remote(path) and (not path.parent.is_dir() or path.is_dir()):
    raise UserError(f'{out} is a folder, or in none that exists; choose another --out.')


def write_page(out: str, page: str) -> None:
  """Writes a page; raises `UserError` if that fails."""
  try:
    write_text(user_path(out), page)
  except OSError as error:
    raise UserError(f'{out} cannot be written: {error.strerror or error}.') from None


def default_workdir(config: str, prefix: str = '') -> str:
  """configs/finetune.py:b16,cifar10 -> runs/finetune-b16-cifar10; of a config.json its folder.

  Args:
    config: as --config takes it.
    prefix: of the name of the folder, so that another command has its own.
  """
  path = pathlib.Path(config)
  if path.name == 'config.json':  # of a run
    return str(path.parent.with_name(prefix + path.parent.name) if prefix else path.parent)
  name = re.sub(r'\.(py|json)\b', '', config.split('configs/', 1)[-1])
  name = prefix + re.sub(r'[^\w.]+', '-', name).strip('-')
  if len(name.encode()) > _MAX_NAME:
    name = f'{name[: _MAX_NAME // 4]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}'
  return f'runs/{name}'


def add_process_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of a run of several processes: for `detect_process` and `distributed_run`."""
  add = parser.add_argument
  add('--coordinator', metavar='HOST:PORT', help='address of process 0')
  add('--num_processes', type=int, metavar='N', help='processes in the run')
  add('--process_id', type=int, metavar='I', help='number of this one, from 0')
  min_help = 'start with at least M processes, without those that are missing (default: all)'
  add('--min_processes', type=int, metavar='M', help=min_help)
  add(
    '--start_timeout',
    type=float,
    default=60,
    metavar='SECONDS',
    help='how long to wait for the other processes (default: %(default)g)',
  )


def detect_process(args: argparse.Namespace) -> cluster.ProcessInfo | None:
  """This process in the run that the flags or the environment tell of; None if it is alone."""
  return cluster.detect_cluster(
    args.coordinator, args.num_processes, args.process_id, args.min_processes
  )


def print_report(report: Any) -> None:
  """Prints the report of loading weights on stderr, unless all of them were loaded unchanged."""
  if not report.is_plain:
    print(report, file=sys.stderr)


def progress(items: Iterable[Any], total: int, unit: str) -> Iterable[Any]:
  """Iterates over the items and, on a terminal, shows a progress bar on stderr."""
  return tqdm.tqdm(items, total=total, unit=unit, leave=False, disable=None)


def run(main: Callable[[], None]) -> NoReturn:
  """Runs a command and exits; an error of the user is one sentence on stderr, no traceback."""
  for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
    if getattr(sys, name) is None:  # closed by the shell, as with >&-
      setattr(sys, name, open(os.devnull, mode))
  for stream in (sys.stdout, sys.stderr):  # escapes of what a terminal cannot encode
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')
  # Their errors are raised, too; those of threads that save concern what is reported anyway.
  for library in ('absl', 'jax', 'orbax', 'etils', 'gcsfs', 'concurrent.futures'):
    logging.getLogger(library).setLevel(logging.CRITICAL)
  compilation_cache.enable_cache()
  with signals.interruptible():
    code = _exit_code(main)
  try:
    sys.stdout.flush()
    sys.stderr.flush()
  except OSError:  # a normal exit would fail in the same way, with another code
    os._exit(code)
  if signals.was_interrupted():  # a normal exit may wait for the threads of libraries
    os._exit(code)
  sys.exit(code)


def _exit_code(main: Callable[[], None]) -> int:
  """Runs a command, reports its error, and returns its exit code."""
  try:
    main()
    sys.stdout.flush()
    signals.check_interrupted()
  except BrokenPipeError:  # the reader of a pipe has exited, as in `predict … | head -1`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except BaseException as error:  # noqa: BLE001 - Ctrl-C may end in any exception of a library
    if signals.was_interrupted() and not isinstance(error, KeyboardInterrupt):
      error = KeyboardInterrupt()
    if not isinstance(error, (errors.RunError, KeyboardInterrupt, OSError, ImportError)):
      raise
    return errors.report(error)[0]
  return 0
