"""Where the cycles of a step go, as one HTML file or as CSV."""

import csv
import io
import pathlib
from typing import Any

from vit_jax import files
from vit_jax.errors import UserError
from vit_jax.planning import plan_report
from vit_jax.planning.cycles import PARTS, PASSES, CycleEstimate
from vit_jax.planning.planner import Plan
from vit_jax.planning.topologies import Topology
from vit_jax.templates import environment

_SUFFIXES = ('.html', '.csv')
_TEMPLATES = environment('vit_jax.planning')
_TEMPLATES.filters['ms'] = lambda seconds: '' if seconds is None else f'{seconds * 1e3:,.2f}'


def check_path(path: str, topology: Topology) -> None:
  """Raises `UserError` for a file of another kind, or a topology without cycle estimates."""
  if pathlib.PurePath(path).suffix not in _SUFFIXES:
    raise UserError(f'--profile is {path!r}; it takes a file that ends in .html or .csv.')
  if topology.chip is None:
    raise UserError(f'--profile needs a TPU topology; for {topology.name} there are no cycles.')


def write(plan: Plan, cycles: CycleEstimate, path: str) -> None:
  """Writes the profile of a plan, HTML or CSV by the name of the file.

  Raises:
    UserError: if the file cannot be written.
  """
  try:
    files.write_text(path, (as_csv if path.endswith('.csv') else as_html)(plan, cycles))
  except OSError as error:
    raise UserError(f'{path} cannot be written: {error.strerror}.') from None


def as_csv(plan: Plan, cycles: CycleEstimate) -> str:
  """One row for each part and pass."""
  file = io.StringIO()
  writer = csv.DictWriter(file, list(_row(plan, cycles, 0)), lineterminator='\n')
  writer.writeheader()
  writer.writerows(_row(plan, cycles, index) for index in range(len(cycles.parts)))
  return file.getvalue()


def _row(plan: Plan, cycles: CycleEstimate, index: int) -> dict[str, Any]:
  part = cycles.parts[index]
  seconds = _seconds(plan, part.cycles)
  return {
    'part': part.part,
    'pass': part.direction,
    'instructions': part.instructions,
    'cycles': part.cycles,
    'share': f'{part.cycles / cycles.total:.5f}',
    'milliseconds': '' if seconds is None else f'{seconds * 1e3:.4f}',
  }


def as_html(plan: Plan, cycles: CycleEstimate) -> str:
  """The page: the prediction, a bar for each part, the heaviest instructions."""
  bars = []
  for part in PARTS:
    by_pass = {row.direction: row.cycles for row in cycles.parts if row.part == part}
    if by_pass:
      bars.append((part, sum(by_pass.values()), by_pass))
  return _TEMPLATES.get_template('profile_page.html.j2').render(
    title=f'{plan.topology.name}, {plan.global_batch:,} images a step',
    lines=plan_report.page(plan),
    cycles=cycles,
    bars=sorted(bars, key=lambda bar: -bar[1]),
    passes=[name for name in PASSES if any(row.direction == name for row in cycles.parts)],
    longest=max(total for _, total, _ in bars),
    seconds=lambda count: _seconds(plan, count),
  )


def _seconds(plan: Plan, cycles: int) -> float | None:
  chip = plan.topology.chip
  return cycles / chip.clock_hz if chip and chip.clock_hz else None
