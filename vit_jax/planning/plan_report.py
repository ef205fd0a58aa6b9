"""A plan as a page, a row of a table, or JSON."""

import dataclasses
from typing import Any

from vit_jax.planning.cycles import PARTS, CycleEstimate
from vit_jax.planning.planner import Plan
from vit_jax.planning.step_time import FACTOR_REASON, PUBLISHED_FACTOR
from vit_jax.text import join_words, plural


def page(plan: Plan) -> str:
  """All figures of a plan as aligned lines."""
  unit, memory = _device_name(plan), plan.memory
  batch = (
    f'{plan.global_batch:,} in total, {plan.host_batch:,} a host, {plan.device_batch:,} a device, '
    f'micro-batches of {plan.micro_batch:,}'
  )
  remat = f', and {plan.recomputed_flops:.4g} for rematerialization'
  is_partial = plan.trained_parameters < plan.parameters
  trained = f', {plan.trained_parameters:,} of them trained' if is_partial else ''
  lines = [
    ('devices', _devices(plan)),
    ('mesh', ', '.join(f'{axis} {size}' for axis, size in plan.mesh.items())),
    ('parameters', f'{plan.parameters:,}{trained}'),
    ('batch', batch),
    (f'memory of a {unit}', ''),
    ('  arguments', _format_size(memory.arguments)),
    ('  temporaries', _format_size(memory.temporaries)),
    ('  sum', _verdict(plan)),
    *_collectives(plan, unit),
    ('FLOPs', f'{plan.train_flops:.4g} a step{remat if plan.recomputed_flops else ""}'),
    *_times(plan),
    *_cycles(plan, unit),
    ('compiled in', f'{plan.compile_seconds:.1f} s'),
  ]
  width = max(len(name) for name, _ in lines)
  return '\n'.join(f'{name:{width}}  {value}'.rstrip() for name, value in lines)


def fallback_line(plan: Plan) -> str:
  """One line for a fallback config that was tried."""
  return f'{plan.flags}: {_verdict(plan)} ({plan.compile_seconds:.0f} s)'


def as_json(plan: Plan) -> dict[str, Any]:
  """The fields of a plan, in bytes, seconds, hours and FLOPs."""
  fields = dataclasses.asdict(plan) | {
    'topology': plan.topology.name,
    'bytes_over_limit': plan.bytes_over_limit,
    'min_step_seconds': plan.min_step_seconds,
    'hours': plan.hours,
    'chip_hours': plan.chip_hours,
    'mfu': plan.mfu,
    'published_factor': PUBLISHED_FACTOR,
    'expected_hours': plan.expected_hours,
    'expected_chip_hours': plan.expected_chip_hours,
  }
  fields['memory']['needed'] = plan.memory.needed
  fields['step_time']['predicted'] = plan.step_time.predicted
  return fields


def row(plan: Plan) -> dict[str, Any]:
  """A row of a table of topologies, in GiB of a device, milliseconds and hours."""

  def rounded(value: float | None, scale: float = 1, digits: int = 2) -> float | str:
    return '' if value is None else round(value / scale, digits)

  received = sum(collective.bytes for collective in plan.collectives)
  return {
    'topology': plan.topology.name,
    'chips': plan.num_chips,
    'mesh': 'x'.join(map(str, plan.mesh.values())),
    'per_device': plan.device_batch,
    'micro': plan.micro_batch,
    'arguments': rounded(plan.memory.arguments, 2**30),
    'temporaries': rounded(plan.memory.temporaries, 2**30),
    'sum': rounded(plan.memory.needed, 2**30),
    'limit': rounded(plan.limit, 2**30),
    'fits': {True: 'yes', False: 'no', None: ''}[plan.fits],
    'received': rounded(received if plan.collectives else None, 2**30),
    'min_step_ms': rounded(plan.min_step_seconds, 1e-3, 1),
    'hours': rounded(plan.hours, digits=1),
    'chip_hours': rounded(plan.chip_hours, digits=0),
    'predicted_ms': rounded(plan.step_time.predicted, 1e-3, 1),
    'mfu': rounded(plan.mfu, digits=3),
    'compile_s': rounded(plan.compile_seconds, digits=0),
  }


def table(rows: list[dict[str, Any]]) -> str:
  """Rows with the same keys, aligned below a header."""
  cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return '\n'.join(
    '  '.join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells
  )


def _device_name(plan: Plan) -> str:
  """What has its own memory: a chip, a core of v2, v3 or tpu7x, or a CPU device."""
  if plan.topology.chip is None:
    return 'device'
  return 'chip' if plan.topology.chip.num_devices == 1 else 'core'


def _devices(plan: Plan) -> str:
  slices = f'{plan.num_slices} slices of ' if plan.num_slices > 1 else ''
  if plan.topology.chip is None:
    return f'{slices}{plural(plan.num_devices, "CPU device")}'
  cores = '' if plan.num_devices == plan.num_chips else f' with {plan.num_devices:,} cores'
  return (
    f'{slices}{plan.topology.name}: {plural(plan.num_chips, "chip")}{cores}, '
    f'{plural(plan.num_hosts, "host")}'
  )


def _format_size(size: int | None) -> str:
  if size is None:
    return 'unknown: the compiler gave up'
  return f'{size / 2**30:.2f} GiB' if size >= 2**30 / 10 else f'{size / 2**20:.2f} MiB'


def _verdict(plan: Plan) -> str:
  """'4.90 GiB of 15.75 GiB: fits'."""
  needed = _format_size(plan.memory.needed)
  if plan.limit is None:
    return f'{needed}; no limit is known'
  if plan.fits:
    return f'{needed} of {_format_size(plan.limit)}: fits'
  excess = '' if plan.bytes_over_limit is None else f' by {_format_size(plan.bytes_over_limit)}'
  return f'{needed} of {_format_size(plan.limit)}: does not fit{excess}'


def _collectives(plan: Plan, unit: str) -> list[tuple[str, str]]:
  summary = '' if plan.collectives else 'unknown' if plan.fits is False else 'none'
  rows = [
    (f'  {row.kind}', f'{_format_size(row.bytes)} received a step, in {row.count:,} operations')
    for row in plan.collectives
  ]
  return [(f'collectives of a {unit}', summary), *rows]


def _times(plan: Plan) -> list[tuple[str, str]]:
  """Lower bounds of a step's time, the prediction, and the schedule at both."""
  unit, times = _device_name(plan), plan.step_time
  steps = f'{plan.total_steps:,} steps'
  if plan.hours is None or plan.chip_hours is None:
    return [('schedule', steps)]
  bounds = [
    ('arithmetic', times.arithmetic, "at 100 % of the chips' peak"),
    ('HBM', times.hbm, f'for {_format_size(plan.hbm_bytes)} a {unit}'),
    ('interconnect', times.interconnect, 'over all links of a chip'),
  ]
  lines = [('minimum step time', '')]
  lines += [
    (f'  {name}', f'{seconds * 1e3:.1f} ms {how}') for name, seconds, how in bounds if seconds
  ]
  lines.append(('predicted step time', predicted_line(plan)))
  hours = f'{steps}: at least {plan.hours:,.1f} hours, {plan.chip_hours:,.0f} chip-hours'
  lines.append(('schedule', hours))
  if plan.expected_hours is not None and plan.expected_chip_hours is not None:
    expected = (
      f'about {plan.expected_hours:,.1f} hours, {plan.expected_chip_hours:,.0f} chip-hours '
      f'at {PUBLISHED_FACTOR} times the prediction, {FACTOR_REASON}'
    )
    lines.append(('', expected))
  return lines


def predicted_line(plan: Plan) -> str:
  """'195.7 ms by the compiler's cycle estimates: 654 images/s, 35.0 % of peak'."""
  times = plan.step_time
  if times.predicted is None or plan.mfu is None:
    reason = 'no clock of this chip is published' if plan.cycles else 'no cycle estimates'
    return f'unknown: {reason}'
  by_cycles = times.predicted == times.cycles
  source = "the compiler's cycle estimates" if by_cycles else 'the largest lower bound'
  return (
    f'{times.predicted * 1e3:.1f} ms by {source}: '
    f'{plan.global_batch / times.predicted:,.0f} images/s, {plan.mfu:.1%} of peak'
  ).replace('%', ' %')


def _cycles(plan: Plan, unit: str) -> list[tuple[str, str]]:
  """Where the cycles go, a line for each part of the model."""
  cycles = plan.cycles
  if cycles is None:
    return []
  lines = [(f'cycles of a {unit}', f'{cycles.total / 1e6:,.1f} million a step')]
  for part in PARTS:
    rows = [row for row in cycles.parts if row.part == part]
    if rows:
      split = ', '.join(f'{row.direction} {row.cycles / cycles.total * 100:.1f}' for row in rows)
      share = cycles.of_part(part) / cycles.total * 100
      lines.append((f'  {part}', f'{share:5.1f} % ({split})'))
  return [*lines, ('  not estimated', not_estimated(cycles))]


def not_estimated(cycles: CycleEstimate) -> str:
  """What a prediction does not cover."""
  calls = sum(cycles.uncounted.values())
  if not calls:
    return 'waits for copies and collectives, the input'
  flops = cycles.uncounted_flops
  stated = f' beyond the {flops:.4g} FLOPs they state' if flops else ''
  return (
    f'{plural(calls, "custom call")} ({join_words(cycles.uncounted)}){stated}, waits for copies '
    'and collectives, the input'
  )
