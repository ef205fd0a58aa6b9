"""A plan for reading: a page, a row of a table, or JSON."""

import dataclasses
from typing import Any

from vit_jax.planning.planner import Plan


def page(plan: Plan) -> str:
  """All that a plan says, aligned."""
  memory, unit = plan.memory, _unit(plan)
  lines = [
    ('devices', _devices(plan)),
    ('mesh', ', '.join(f'{axis} {size}' for axis, size in plan.mesh.items())),
    ('parameters', f'{plan.parameters:,}'),
    (
      'batch',
      f'global {plan.global_batch:,}, a host {plan.host_batch:,}, a device '
      f'{plan.device_batch:,}, micro-batch {plan.micro_batch:,}',
    ),
    (f'memory of a {unit}', ''),
    ('  arguments', _size(memory.arguments)),
    ('  temporaries', _size(memory.temporaries)),
    ('  sum', _verdict(plan)),
    (
      f'collectives of a {unit}',
      '' if plan.collectives else 'none' if plan.fits is not False else 'not known',
    ),
    *(
      (f'  {row.kind}', f'{_size(row.bytes)} received in {row.count:,} a step')
      for row in plan.collectives
    ),
    (
      'arithmetic',
      f'{plan.train_flops:.4g} FLOP a step'
      + (
        f', and {plan.recomputed_flops:.4g} that remat computes again'
        if plan.recomputed_flops
        else ''
      ),
    ),
    *_floor(plan),
    ('compiled in', f'{plan.compile_seconds:.1f} s'),
  ]
  width = max(len(name) for name, _ in lines)
  return '\n'.join(f'{name:{width}}  {value}'.rstrip() for name, value in lines)


def attempt(plan: Plan) -> str:
  """One line for a neighbour that was tried."""
  return f'{plan.flags}: {_verdict(plan)} ({plan.compile_seconds:.0f} s)'


def as_json(plan: Plan) -> dict[str, Any]:
  """Numbers in bytes, seconds, hours and FLOP; without the program's text."""
  fields = dataclasses.asdict(plan) | {
    'topology': plan.topology.name,
    'bytes_over_limit': plan.bytes_over_limit,
    'hours': plan.hours,
    'chip_hours': plan.hours and plan.hours * plan.num_chips,
  }
  fields['memory']['needed'] = plan.memory.needed
  del fields['text']
  return fields


def row(plan: Plan) -> dict[str, Any]:
  """A row of a table of topologies: GiB of a device, milliseconds, hours."""

  def rounded(value: float | None, scale: float = 1, digits: int = 2) -> float | str:
    return '' if value is None else round(value / scale, digits)

  received = sum(row.bytes for row in plan.collectives)
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
    'chip_hours': rounded(plan.hours and plan.hours * plan.num_chips, digits=0),
    'compile_s': rounded(plan.compile_seconds, digits=0),
  }


def table(rows: list[dict[str, Any]]) -> str:
  """Rows with the same keys, aligned under them."""
  cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return '\n'.join(
    '  '.join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells
  )


def _unit(plan: Plan) -> str:
  """What has a memory of its own: a chip, a core of v2 or v3, or a CPU device."""
  if plan.topology.chip is None:
    return 'device'
  return 'chip' if plan.topology.chip.devices == 1 else 'core'


def _devices(plan: Plan) -> str:
  slices = f'{plan.num_slices} slices of ' if plan.num_slices > 1 else ''
  if plan.topology.chip is None:
    return f'{slices}{plan.num_devices} CPU devices'
  cores = '' if plan.num_devices == plan.num_chips else f' with {plan.num_devices:,} cores'
  hosts = f'{plan.num_hosts:,} host{"s"[: plan.num_hosts > 1]}'
  return f'{slices}{plan.topology.name}: {plan.num_chips:,} chips{cores}, {hosts}'


def _size(size: int | None) -> str:
  if size is None:
    return 'not known, as the compiler gave up'
  return f'{size / 2**30:.2f} GiB' if size >= 2**30 / 10 else f'{size / 2**20:.2f} MiB'


def _verdict(plan: Plan) -> str:
  """'4.90 GiB of 15.75 GiB: fits'."""
  needed = _size(plan.memory.needed)
  if plan.limit is None:
    return f'{needed}; no limit is known'
  if plan.fits:
    return f'{needed} of {_size(plan.limit)}: fits'
  over = '' if plan.bytes_over_limit is None else f' by {_size(plan.bytes_over_limit)}'
  return f'{needed} of {_size(plan.limit)}: does not fit{over}'


def _floor(plan: Plan) -> list[tuple[str, str]]:
  if plan.min_step_seconds is None:
    return [('schedule', f'{plan.total_steps:,} steps')]
  return [
    ('floor of a step', f"{plan.min_step_seconds * 1e3:.1f} ms at 100 % of the chips' peak"),
    (
      'schedule',
      f'{plan.total_steps:,} steps: at least {plan.hours:,.1f} hours, '
      f'{plan.hours * plan.num_chips:,.0f} chip-hours',
    ),
  ]
