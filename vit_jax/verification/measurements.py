"""What a run or an evaluation measured, read from its files."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from vit_jax.config.fields import flatten
from vit_jax.config.reading import read_json
from vit_jax.errors import UserError, first_line
from vit_jax.files import read_json_object, user_path
from vit_jax.run_metrics import metrics_files, read_metrics

Curve = dict[int, float | None]  # the value at each step; None where it was not finite

RESULT = -1  # stands for the step of a single result, as opposed to a curve
# Of the machine rather than of the model: these differ between any two runs.
_TIMING = re.compile(r'per_second|utilization|data_wait|memory|seconds|^time\b|goodput|restarts')


@dataclasses.dataclass(frozen=True)
class Measurements:
  """What a run or an evaluation measured.

  Attributes:
    name: the path that the user named.
    curves: the values of each metric by step; an evaluation's are at no step.
    settings: how it was measured: fields of a run's config, or what an evaluation records.
  """

  name: str
  curves: Mapping[str, Curve]
  settings: Mapping[str, Any]

  @property
  def metrics(self) -> list[str]:
    """The names of its metrics, without those of the machine (images per second, memory)."""
    return [name for name in self.curves if not _TIMING.search(name)]


def read_measurements(name: str) -> Measurements:
  """Reads a workdir, its metrics.jsonl, or a file that `evaluate --json` printed.

  Raises:
    UserError: for a path that does not exist, or holds neither.
  """
  path = user_path(name)
  is_workdir = path.is_dir()
  if is_workdir and not metrics_files(path):
    raise UserError(f'{name} holds no metrics.jsonl; name the workdir of a run.')
  try:
    if is_workdir or path.suffix == '.jsonl':
      return _read_run(name, path)
    curves, settings = {}, {}
    for key, value in _leaves(read_json_object(path)):
      is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
      if is_number and not key.startswith('preprocessing/'):
        curves[key] = {RESULT: _finite(value)}
      elif not key.endswith('confusions'):
        settings[key] = value
  except (OSError, ValueError) as error:
    reason = error.strerror if isinstance(error, OSError) else first_line(error)
    raise UserError(f'{name} is no run and no result of evaluate --json: {reason}.') from None
  if not curves:
    raise UserError(f'{name} has no results: there is no number in it.')
  return Measurements(name, curves, settings)


def _read_run(name: str, path: epath.Path) -> Measurements:
  curves: dict[str, Curve] = {}
  for values in read_metrics(path):
    step = values.pop('step')
    for metric, value in values.items():
      if value is None or isinstance(value, (int, float)):
        curves.setdefault(metric, {})[step] = _finite(value)
  if not curves:
    raise ValueError('it has no metrics')
  config = (path if path.is_dir() else path.parent) / 'config.json'
  settings = flatten(read_json(config)) if config.exists() else {}
  return Measurements(name, curves, {f'config.{key}': settings[key] for key in settings})


def _finite(value: float | None) -> float | None:
  """The value as a float, or None if it is not finite (JSON has integers of any size)."""
  try:
    return float(value) if value is not None and math.isfinite(value) else None
  except OverflowError:
    return None


def _leaves(value: Any, prefix: str = '') -> list[tuple[str, Any]]:
  """[('real/accuracy', 0.9), …] of nested objects."""
  if not isinstance(value, dict):
    return [(prefix, value)]
  return [
    leaf
    for key, nested in value.items()
    for leaf in _leaves(nested, f'{prefix}/{key}' if prefix else str(key))
  ]
