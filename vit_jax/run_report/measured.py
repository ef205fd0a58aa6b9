"""What a plan and the compiler predicted, beside what a run measured; only what is known."""

from collections.abc import Sequence
from typing import Any

from vit_jax.run_report.run_files import Run
from vit_jax.text import format_bytes

_COLUMNS = ('plan', 'this run', 'measured')


def predicted_and_measured(
  run: Run,
) -> tuple[Sequence[str], Sequence[tuple[str, Sequence[str]]], str]:
  """A table.

  Returns:
    (its columns, (name, texts) of its rows, a sentence about it); no columns if nothing was
    predicted.
  """
  plan, compiled, curves = run.plan, run.compiled, run.curves.curves
  last = {name: curve.last.value for name, curve in curves.items() if curve.last}
  rate = last.get('train/images_per_second')
  batch_size = run.config.batch_size if run.config else None
  seconds = batch_size / rate if batch_size and rate else None
  rows = [
    (
      'memory of a device',
      (_find(plan, 'memory', 'needed'), _find(compiled, 'bytes'), run.curves.memory_peak),
      lambda size: format_bytes(round(size)),
    ),
    (
      'FLOPs of a step, without recomputation',
      (_find(plan, 'train_flops'), _find(compiled, 'flops'), None),
      '{:.4g}'.format,
    ),
    (
      'time of a step, with waiting for data',
      (_find(plan, 'step_time', 'predicted'), None, seconds),
      lambda value: f'{value * 1e3:,.1f} ms',
    ),
    (
      'share of peak FLOP/s',
      (_find(plan, 'mfu'), None, last.get('train/model_flops_utilization')),
      '{:.1%}'.format,
    ),
  ]
  rows = [row for row in rows if any(value is not None for value in row[1][:2])]
  kept = [i for i in range(3) if any(values[i] is not None for _, values, _ in rows)]
  table = [
    (name, ['' if values[i] is None else text(values[i]) for i in kept])
    for name, values, text in rows
  ]
  return [_COLUMNS[i] for i in kept] if rows else [], table, _note(run, has_measured=2 in kept)


def _find(content: Any, *keys: str) -> float | None:
  """The number at a place of nested JSON objects; None where there is none."""
  for key in keys:
    content = content.get(key) if isinstance(content, dict) else None
  return content if type(content) in (int, float) and 0 <= content < 1e300 else None


def _note(run: Run, has_measured: bool) -> str:
  notes = []
  if run.plan:
    notes.append(f'The plan is that of plan.json, for {run.plan.get("topology")}.')
  if run.compiled:
    notes.append(
      'This run: arguments and temporaries of the compiled train step, on '
      f'{run.compiled.get("devices")}; FLOPs by formula.'
    )
  if has_measured:
    notes.append('Measured: largest memory in use, the other figures at the last log.')
  return ' '.join(notes)
