"""The metrics of a run as files: metrics.jsonl and TensorBoard events."""

import contextlib
import json
import math
import signal
from collections.abc import Mapping
from typing import Any

import tensorboardX
from etils import epath

from vit_jax import signals
from vit_jax.files import is_remote, write_text


def parse_lines(text: str) -> list[dict[str, Any]]:
  """The JSON objects of a text, one a line, without what a kill has cut short."""
  lines = []
  for line in text.splitlines():
    with contextlib.suppress(ValueError):
      lines.append(json.loads(line))
  return [line for line in lines if isinstance(line, dict)]


def read_metrics(workdir: epath.Path) -> list[dict[str, Any]]:
  """The lines of `metrics.jsonl`; [] without the file."""
  path = workdir / 'metrics.jsonl'
  return parse_lines(path.read_text()) if path.exists() else []


def _truncate(path: epath.Path, step: int) -> None:
  """Drops the lines past `step`, which will be written again, and a last one cut short."""
  lines = []
  for line in path.read_text().splitlines():
    try:
      if json.loads(line)['step'] <= step:
        lines.append(line + '\n')
    except (ValueError, KeyError, TypeError):
      continue
  write_text(path, ''.join(lines))


class MetricsWriter:
  """Appends to `workdir/metrics.jsonl` and TensorBoard; only one process of a run is enabled."""

  def __init__(self, workdir: epath.Path, first_step: int, enabled: bool):
    self._file = self._board = self._remote = self._path = None
    if not enabled:
      return
    self._path = path = workdir / 'metrics.jsonl'
    if path.exists():
      _truncate(path, first_step)
    if is_remote(workdir):  # files cannot grow there, and TensorBoard events are not written
      self._remote, self._lines = path, path.read_text() if path.exists() else ''
      return
    self._file = path.open('a')
    self._board = tensorboardX.SummaryWriter(str(workdir), purge_step=first_step + 1)

  def has_evaluation(self, step: int) -> bool:
    """Whether `metrics.jsonl` has other metrics of a step than those of training."""
    if self._path is None or not self._path.exists():
      return False
    lines = map(json.loads, self._path.read_text().splitlines())
    names = (name for line in lines if line['step'] == step for name in line)
    return any('/' in name and not name.startswith(('train/', 'time/')) for name in names)

  def __enter__(self) -> 'MetricsWriter':
    return self

  def __exit__(self, *unused) -> None:
    with signals.delayed(signal.SIGINT):
      for file in (self._file, self._board):
        if file:
          file.close()

  # Ctrl-C inside TensorBoard's queue would make it wait for itself forever, hence `delayed`.

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes one flat JSON object; NaN and infinity become null."""
    with signals.delayed(signal.SIGINT):
      self._write(step, metrics)

  def _write(self, step: int, metrics: Mapping[str, float]) -> None:
    values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    line = json.dumps({'step': step, **values}) + '\n'
    if self._remote:
      self._lines += line
      self._remote.write_text(self._lines)
    if self._file:
      self._file.write(line)
      self._file.flush()
    if self._board:
      for name, value in metrics.items():
        self._board.add_scalar(name, value, step)
