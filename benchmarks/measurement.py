"""What benchmarks share: flags, the machine, interleaved measurements, tables with dates."""

import argparse
import csv
import datetime
import json
import pathlib
import platform
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from vit_jax import command_line
from vit_jax.errors import UserError, first_line, is_out_of_memory
from vit_jax.hardware import num_cores

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / 'benchmarks' / 'results'
MACHINE = ('date', 'device', 'cores', 'python', 'jax')  # first columns of every table
_MAX_CALLS = 10_000


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
  def _get_help_string(self, action: argparse.Action) -> str | None:
    has_default = action.default not in (None, False, '', [], argparse.SUPPRESS)
    return super()._get_help_string(action) if has_default else action.help


def make_parser(script: str, description: str | None) -> argparse.ArgumentParser:
  """A parser with the flags of all benchmarks; a wrong flag is one sentence and exit code 2."""
  parser = command_line.Parser(script, description=description, formatter_class=_HelpFormatter)
  parser.prog = f'python benchmarks/{script}.py'
  parser.add_argument('--out', type=pathlib.Path, default=RESULTS, help='folder for the CSV file')
  return parser


def names(text: str) -> list[str]:
  """'a,b' -> ['a', 'b']."""
  return [name for name in text.split(',') if name]


def chosen(text: str, known: Iterable[str], flag: str) -> list[str]:
  """The names of a flag that are among `known`.

  Raises:
    UserError: for another one.
  """
  if unknown := [name for name in names(text) if name not in known]:
    raise UserError(f'{flag}: {unknown[0][:40]!r} is not one of {", ".join(known)}.')
  return names(text)


def positive(text: str) -> int:
  """The type of a flag that takes a positive integer."""
  if not re.fullmatch('[0-9]{1,9}', text) or not int(text):
    raise argparse.ArgumentTypeError(f'{text[:40]!r} is not a positive integer')
  return int(text)


def sizes(text: str) -> list[int]:
  """'8,16' -> [8, 16]: the type of a flag that takes several positive integers."""
  return [positive(each) for each in text.split(',')]


# --- the machine ----------------------------------------------------------------------------


def device_name(device: Any = None) -> str:
  """The name of a JAX device (default: the first one); of a CPU that of its processor."""
  device = device or jax.devices()[0]
  if device.platform != 'cpu':
    return device.device_kind
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  text = cpuinfo.read_text() if cpuinfo.exists() else ''
  match = re.search(r'model name\s*: (.+)', text)
  return match[1].strip() if match else platform.processor() or platform.machine()


def machine(num_devices: int = 1) -> dict[str, Any]:
  """The columns `MACHINE` of every row."""
  return {
    'date': datetime.date.today().isoformat(),
    'device': f'{num_devices} x {device_name()}',
    'cores': num_cores(),
    'python': platform.python_version(),
    'jax': jax.__version__,
  }


# --- measuring ------------------------------------------------------------------------------


def num_calls(seconds_per_call: float, seconds: float) -> int:
  """How many calls take about `seconds`; at least one."""
  return min(max(1, round(seconds / max(seconds_per_call, 1e-9))), _MAX_CALLS)


def measure_interleaved(
  runners: Mapping[Any, Callable[[], float]], rounds: int
) -> tuple[dict[Any, list[float]], dict[Any, str]]:
  """Calls all runners in each round, forwards and backwards in turn.

  So other work on the machine, and its temperature, affect all of them alike.

  Args:
    runners: {name: function that measures once, and returns the measurement}.
    rounds: measurements of each.

  Returns:
    {name: its measurements}, and {name: the reason} of those that failed, as without memory.
  """
  results: dict[Any, list[float]] = {name: [] for name in runners}
  failures: dict[Any, str] = {}
  for i in range(rounds):
    for name in list(runners)[:: -1 if i % 2 else 1]:
      if name in failures:
        continue
      try:
        results[name].append(runners[name]())
      except (RuntimeError, UserError) as error:
        failures[name] = reason(error)
  return {name: values for name, values in results.items() if name not in failures}, failures


def reason(error: BaseException) -> str:
  """Why something could not be measured, for a column `note`."""
  return 'out of memory' if is_out_of_memory(error) else first_line(error)


def summary(values: Sequence[float], name: str, digits: int = 3) -> dict[str, float]:
  """{name: median, name_lowest: …, name_highest: …}, rounded."""
  three = (statistics.median(values), min(values), max(values))
  suffixes = ('', '_lowest', '_highest')
  return {name + s: round(x, digits) for s, x in zip(suffixes, three, strict=True)}


# --- tables ---------------------------------------------------------------------------------


class Table:
  """A CSV file `<name>_<date>_<device>.csv` that grows row by row; a call of the same day appends.

  Args:
    folder: of the file.
    name: of the benchmark.
    columns: of the table.
    device: in the name of the file; None: the first one of this process.

  Raises:
    UserError: when such a file has other columns, or the folder cannot be made.
  """

  def __init__(
    self, folder: pathlib.Path, name: str, columns: Iterable[str], device: str | None = None
  ):
    device = re.sub(r'\W+', '-', device or device_name()).strip('-').lower()
    self.path = folder / f'{name}_{datetime.date.today()}_{device}.csv'
    self._columns = list(columns)
    try:
      folder.mkdir(parents=True, exist_ok=True)
      exists = self.path.exists() and self.path.stat().st_size > 0
    except OSError as error:
      raise UserError(f'--out={folder} is not a folder ({error.strerror}).') from None
    if exists:
      with self.path.open(newline='') as file:
        if next(csv.reader(file)) != self._columns:
          raise UserError(f'{self.path} has other columns; move it, or choose another --out.')
    else:
      self._write(dict(zip(self._columns, self._columns, strict=True)))

  def rows(self) -> list[dict[str, str]]:
    """What the file has."""
    return read_table(self.path)

  def add(self, row: Mapping[str, Any]) -> None:
    """Writes a row, and prints it on stdout as JSON; columns that it lacks stay empty."""
    self._write(row)
    shown = {name: value for name, value in row.items() if name not in MACHINE and value != ''}
    print(json.dumps(shown), flush=True)

  def _write(self, row: Mapping[str, Any]) -> None:
    with self.path.open('a', newline='') as file:
      writer = csv.DictWriter(file, self._columns, restval='', lineterminator='\n')
      writer.writerow(dict(row))


def read_table(path: pathlib.Path) -> list[dict[str, str]]:
  """The rows of a CSV file."""
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


def note(text: str) -> None:
  """Prints a sentence on stderr."""
  print(text, file=sys.stderr, flush=True)
