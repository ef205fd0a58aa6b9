"""What a run says: metrics.jsonl, TensorBoard, a progress bar, the last lines."""

import contextlib
import json
import math
import shlex
import sys
import time
from collections.abc import Iterator, Mapping

import jax
import ml_collections
import tensorboardX
import tqdm
from etils import epath

from vit_jax.data.sources import Source


def _keep_until(path: epath.Path, step: int) -> None:
  """Drops the lines past `step` (they will be written again) and a last one cut short."""
  lines = []
  for line in path.read_text().splitlines():
    try:
      if json.loads(line)['step'] <= step:
        lines.append(line + '\n')
    except (ValueError, KeyError, TypeError):
      continue
  part = path.with_name(path.name + '.part')
  part.write_text(''.join(lines))
  part.replace(path)


class MetricsWriter:
  """Appends to `workdir/metrics.jsonl` and TensorBoard; only one process of a run is enabled."""

  def __init__(self, workdir: epath.Path, first_step: int, enabled: bool):
    self._file = self._board = None
    if not enabled:
      return
    path = workdir / 'metrics.jsonl'
    if path.exists():
      _keep_until(path, first_step)
    self._file = path.open('a')
    if '://' not in str(workdir):  # event files are written locally only
      self._board = tensorboardX.SummaryWriter(str(workdir), purge_step=first_step + 1)

  def __enter__(self) -> 'MetricsWriter':
    return self

  def __exit__(self, *unused) -> None:
    for file in (self._file, self._board):
      if file:
        file.close()

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes one flat JSON object; NaN and infinity become null."""
    if self._file:
      values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
      self._file.write(json.dumps({'step': step, **values}) + '\n')
      self._file.flush()
    if self._board:
      for name, value in metrics.items():
        self._board.add_scalar(name, value, step)


class Progress:
  """A bar with step, loss, images/s and time left; plain lines where there is no terminal."""

  def __init__(self, first_step: int, total_steps: int, batch_size: int, enabled: bool):
    self._first, self._total, self._batch_size = first_step, total_steps, batch_size
    self._enabled, self._terminal = enabled, sys.stdout.isatty()
    self._began = self._since = time.monotonic()
    self._since_step = first_step
    self._bar = None

  def start(
      self,
      mesh: jax.sharding.Mesh,
      num_parameters: int,
      sources: tuple[Source, Source],
      workdir: epath.Path,
  ) -> None:
    """Says what is about to be trained, on what, and where it goes."""
    devices = f'{mesh.size} {mesh.devices.flat[0].device_kind} device{"s"[: mesh.size > 1]}'
    train, test = sources
    self.say(
        f'{num_parameters:,} parameters on {devices}; {train.name}: {train.size:,} examples of '
        f'{train.num_classes:,} classes; {test.name}: {test.size:,} examples'
    )
    going_on = f', going on after step {self._first}' if self._first else ''
    self.say(f'workdir {workdir}{going_on}; compiling the first step…')
    self._bar = tqdm.tqdm(
        total=self._total,
        initial=self._first,
        dynamic_ncols=True,
        file=sys.stdout,
        disable=not (self._enabled and self._terminal),
        bar_format='{percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix}, {remaining} left',
    )

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *unused) -> None:
    if self._bar is not None:
      self._bar.close()

  def update(self) -> None:
    """One more step was dispatched."""
    self._bar.update()

  def log(self, step: int, loss: float) -> float:
    """Shows the loss after `step` steps; returns images/s since the last call."""
    now = time.monotonic()
    rate = (step - self._since_step) * self._batch_size / max(now - self._since, 1e-9)
    self._since, self._since_step = now, step
    self._bar.set_postfix_str(f'loss {loss:.4f}, {rate:,.0f} images/s')
    if not self._terminal:
      left = (self._total - step) * (now - self._began) / max(step - self._first, 1)
      self.say(
          f'step {step}/{self._total}, loss {loss:.4f}, {rate:,.0f} images/s, '
          f'{tqdm.tqdm.format_interval(left)} left'
      )
    return rate

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """What happens inside does not count in images/s."""
    before = time.monotonic()
    yield
    self._since += time.monotonic() - before

  def say(self, line: str) -> None:
    """Prints a line above the bar."""
    if self._enabled:
      with tqdm.tqdm.external_write_mode(file=sys.stdout):
        print(line, flush=True)

  def say_result(self, step: int, result: Mapping[str, float]) -> None:
    """Prints an evaluation."""
    self.say(
        f'step {step}/{self._total}, test accuracy {result["accuracy"]:.2%} on '
        f'{result["examples"]:,} examples, test loss {result["loss"]:.4f}'
    )

  def finish(
      self, result: Mapping[str, float], model: epath.Path, test: ml_collections.ConfigDict
  ) -> None:
    """The last lines: what was reached, where the model is, what to try next."""
    data = '' if test.split == 'test' else f' --split={shlex.quote(test.split)}'
    data, name = shlex.quote(str(test.source)) + data, shlex.quote(str(model))
    seconds = time.monotonic() - self._began
    self.say(
        f'\ndone: {result["accuracy"]:.2%} of {result["examples"]:,} test examples right after '
        f'{self._total:,} steps ({tqdm.tqdm.format_interval(seconds)} in this run)\n'
        f'model: {model}\n'
        f'next: python -m vit_jax.evaluate --model={name} --data={data}\n'
        f'  or: python -m vit_jax.predict --model={name} IMAGE…'
    )
