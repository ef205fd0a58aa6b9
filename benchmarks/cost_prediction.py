"""Columns of `cost_scaling.py` for a step that is compiled for a TPU."""

import importlib.metadata
from typing import Any

from benchmarks import measurement
from benchmarks.cost_points import Point
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.planning import planner, topologies
from vit_jax.planning.cycles import PARTS, CycleEstimate
from vit_jax.planning.planner import Labels, Plan
from vit_jax.planning.topologies import Topology

PART_COLUMNS = {part: f'{part.lower().replace(" ", "_")}_ms' for part in PARTS}
_SHARE_OF_FLOPS = {'forward': 1 / 3, 'step': 1}


def topology_of(kind: str, count: int) -> Topology:
  """A slice of so many chips of a kind, or so many CPU devices.

  Raises:
    UserError: if there is none.
  """
  if kind == 'cpu':
    return topologies.parse_topology(f'cpu:{count}')
  return topologies.parse_topology(f'{kind}-{count * topologies.SLICES[kind].tensor_cores}')


def predict(point: Point, kind: str, num_classes: int) -> dict[str, dict[str, Any]]:
  """{pass: columns} of a point on chips of a kind; those of a point that fails have a note."""
  columns = {
    **measurement.machine(),
    'device': f'{point.columns["devices"]} x {kind}',
    'libtpu': importlib.metadata.version('libtpu'),
    'dtype': build.resolve_dtype(point.config.model.dtype, 'tpu').__name__,
  }
  try:
    topology = topology_of(kind, point.columns['devices'])
    plan = planner.make_plan(point.config.resolve_steps(0), topology, Labels(num_classes))
  except UserError as error:
    return dict.fromkeys(_SHARE_OF_FLOPS, columns | {'note': str(error)})
  return {name: columns | described for name, described in describe(plan).items()}


def describe(plan: Plan) -> dict[str, dict[str, Any]]:
  """{pass: columns} of a plan; `forward` is the forward pass inside of the step."""
  chip, cycles, times = plan.topology.chip, plan.cycles, plan.step_time
  if chip is None or not chip.clock_hz or cycles is None or times.predicted is None:
    reason = 'it does not fit' if plan.fits is False else 'no cycles, or no clock of this chip'
    return dict.fromkeys(_SHARE_OF_FLOPS, {'note': reason})
  result = {}
  for name, share in _SHARE_OF_FLOPS.items():
    parts = _milliseconds(cycles, chip.clock_hz, 'forward' if name == 'forward' else None)
    seconds = times.predicted if name == 'step' else sum(parts.values()) / 1e3
    flops = share * plan.train_flops / seconds
    result[name] = {
      'milliseconds': round(1e3 * seconds, 3),
      'images_per_second': round(plan.global_batch / seconds, 1),
      'tflops_per_second': round(flops / 1e12, 4),
      'share_of_peak': round(flops / chip.peak_flops / plan.num_chips, 4),
      **{PART_COLUMNS[part]: round(value, 4) for part, value in parts.items()},
    }
  floors = {'arithmetic': times.arithmetic, 'hbm': times.hbm, 'interconnect': times.interconnect}
  result['step'] |= {
    **{f'{name}_ms': round(1e3 * value, 4) for name, value in floors.items() if value is not None},
    'arguments_gib': round(plan.memory.arguments / 2**30, 3),
    'temporaries_gib': round((plan.memory.temporaries or 0) / 2**30, 3),
    'compile_seconds': round(plan.compile_seconds, 1),
    'note': 'kernels without cycles count at the peak' if cycles.uncounted_flops else '',
  }
  return result


def _milliseconds(
  cycles: CycleEstimate, clock_hz: float, direction: str | None
) -> dict[str, float]:
  """{part: its time}, of one pass or of all."""
  result = dict.fromkeys(dict.fromkeys(row.part for row in cycles.parts), 0.0)
  for row in cycles.parts:
    if direction in (None, row.direction):
      result[row.part] += 1e3 * row.cycles / clock_hz
  return result
