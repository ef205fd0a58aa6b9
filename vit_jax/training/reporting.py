"""What a run says: metrics.jsonl, TensorBoard, a progress bar, the last lines."""

import contextlib
import json
import math
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
import tensorboardX
import tqdm
from etils import epath
from jax.experimental import multihost_utils

from vit_jax.data.loader import Feed
from vit_jax.data.sources import Source
from vit_jax.data.workers import num_cores
from vit_jax.models.build import count_parameters
from vit_jax.models.flops import train_flops
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.parallel.topologies import peak_flops
from vit_jax.training.program import Program

_STARVING = 0.2  # share of the time that is waited for data
_NAMED = 5  # bad examples that are named


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


@contextlib.contextmanager
def _keyboard_waits() -> Iterator[None]:
  """Ctrl-C comes after this: within it, TensorBoard's queue would wait for itself without end."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  came = []
  before = signal.signal(signal.SIGINT, lambda *args: came.append(args))
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)
    if came and callable(before):
      before(*came[0])


class MetricsWriter:
  """Appends to `workdir/metrics.jsonl` and TensorBoard; only one process of a run is enabled."""

  def __init__(self, workdir: epath.Path, first_step: int, enabled: bool):
    self._file = self._board = self._remote = None
    if not enabled:
      return
    path = workdir / 'metrics.jsonl'
    if path.exists():
      _keep_until(path, first_step)
    if '://' in str(workdir):  # there files cannot grow, and event files are not written
      self._remote, self._lines = path, path.read_text() if path.exists() else ''
      return
    self._file = path.open('a')
    self._board = tensorboardX.SummaryWriter(str(workdir), purge_step=first_step + 1)

  def __enter__(self) -> 'MetricsWriter':
    return self

  def __exit__(self, *unused) -> None:
    with _keyboard_waits():
      for file in (self._file, self._board):
        if file:
          file.close()

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes one flat JSON object; NaN and infinity become null."""
    with _keyboard_waits():
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


def _bytes(size: int) -> str:
  """1234567 -> '1.23 MB'."""
  power = min(len(str(size)) - 1, 9) // 3
  return f'{size / 1000**power:.3g} {("B", "kB", "MB", "GB")[power]}'


def describe(config: ml_collections.ConfigDict, program: Program) -> list[str]:
  """What a run is spread over and how: devices, mesh, batches, parameters."""
  mesh = program.mesh
  axes = ' x '.join(f'{axis} {size}' for axis, size in mesh.shape.items())
  batch = mesh_lib.batch_sizes(mesh, config.batch_size, config.accumulation_steps)
  micro = f' in micro-batches of {batch["micro"]}' if config.accumulation_steps > 1 else ''
  params = mesh_lib.sharded_bytes(program.abstract_state.params)
  state = mesh_lib.sharded_bytes(program.abstract_state)
  processes = f'{jax.process_count()} process{"es"[: 2 * (jax.process_count() > 1)]}'
  return [
      f'{mesh.size} {mesh.devices.flat[0].device_kind} device{"s"[: mesh.size > 1]} of '
      f'{processes}; mesh {axes}',
      f'batch {batch["global"]}: {batch["host"]} a host, {batch["device"]} a device{micro}',
      f'{count_parameters(program.abstract_state.params):,} parameters: '
      f'{_bytes(params["sharded"])} sharded, {_bytes(params["replicated"])} replicated; with '
      f'the optimizer a device holds {_bytes(state["device"])}',
  ]


class Progress:
  """A bar with step, loss, images/s and time left; plain lines where there is no terminal."""

  def __init__(self, config: ml_collections.ConfigDict, program: Program, first_step: int):
    self._config, self._program, self._first = config, program, first_step
    self._total, self._batch_size = config.total_steps, config.batch_size
    self._enabled, self._terminal = jax.process_index() == 0, sys.stdout.isatty()
    self._began = self._since = time.monotonic()
    self._since_step, self._waited = first_step, 0.0
    self._bar = None
    self._intervals, self._starved, self._bad_said = 0, False, set()

  def start(self, sources: tuple[Source, Source], workdir: epath.Path) -> None:
    """Says what is about to be trained, on what, and where it goes."""
    train, test = sources
    for line in describe(self._config, self._program):
      self.say(line)
    self.say(
        f'{train.name}: {train.size:,} examples of {train.num_classes:,} classes; {test.name}: '
        f'{test.size:,} examples'
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

  def compile(self) -> jax.stages.Compiled:
    """Compiles the train step, and says how long it took and what it takes of a device."""
    began = time.monotonic()
    compiled = self._program.compile()
    seconds, memory = time.monotonic() - began, compiled.memory_analysis()
    taken = '' if memory is None else (
        f'; a device holds {_bytes(memory.argument_size_in_bytes)} of arguments and '
        f'{_bytes(memory.temp_size_in_bytes)} of temporaries'
    )
    self.say(f'the train step was compiled in {seconds:.1f} s{taken}')
    self._since = time.monotonic()
    return compiled

  def waiting_for(self, batches: Iterator[Any]) -> Iterator[Any]:
    """The batches; the time until each is there counts as waiting for data."""
    while True:
      before = time.monotonic()
      batch = next(batches, None)
      self._waited += time.monotonic() - before
      if batch is None:
        return
      yield batch

  def update(self) -> None:
    """One more step was dispatched."""
    self._bar.update()

  def log(self, step: int, loss: float, feed: Feed) -> dict[str, float]:
    """Shows the loss after `step` steps; returns how fast they went since the last call.

    Says which examples were bad, and once when the devices wait for data.

    All processes call it together. Keys: train/images_per_second; train/model_flops_utilization,
    the share of the devices' peak that the model's own arithmetic takes (where their peak is
    known); train/data_wait/process_<i>, the share of time process i waited for data;
    train/bad_examples, how often one that cannot be read has come up since the start of this run;
    train/device_memory_peak, bytes of this process's first device (where it tells).
    """
    now = time.monotonic()
    elapsed = max(now - self._since, 1e-9)
    rate = (step - self._since_step) * self._batch_size / elapsed
    waited = np.float32(min(self._waited / elapsed, 1))
    bad = feed.bad_reads['train']
    wait, bad = map(np.ravel, multihost_utils.process_allgather((waited, np.int32(bad))))
    self._since, self._since_step, self._waited = now, step, 0.0
    speed = {'train/images_per_second': rate}
    if (peak := peak_flops(self._program.mesh)) is not None:
      flops = train_flops(self._program.model, self._program.image_size)
      speed['train/model_flops_utilization'] = rate * flops / peak
    for process, share in enumerate(wait):
      speed[f'train/data_wait/process_{process}'] = float(share)
    if np.sum(bad):
      speed['train/bad_examples'] = int(np.sum(bad))
    memory = jax.local_devices()[0].memory_stats() or {}
    if 'peak_bytes_in_use' in memory:
      speed['train/device_memory_peak'] = memory['peak_bytes_in_use']
    text = f'loss {loss:.4f}, {rate:,.0f} images/s, {np.max(wait):.0%} waiting for data'
    if 'train/model_flops_utilization' in speed:
      text += f', {speed["train/model_flops_utilization"]:.0%} of peak'
    self._bar.set_postfix_str(text)
    self._say_bad(feed)
    self._say_starving(float(np.max(wait)), rate, feed)
    if not self._terminal:
      left = (self._total - step) * (now - self._began) / max(step - self._first, 1)
      self.say(
          f'step {step}/{self._total}, {text}, {tqdm.tqdm.format_interval(left)} left'
      )
    return speed

  def _say_bad(self, feed: Feed) -> None:
    """Names the examples that were skipped since the last time, of many the first few."""
    for message in (*feed.bad['train'].values(), *feed.bad['test'].values()):
      if message not in self._bad_said and len(self._bad_said) < _NAMED:
        more = '; more are counted in metrics.jsonl' if len(self._bad_said) == _NAMED - 1 else ''
        self.say(f'skipped: {message}{more}')
        self._bad_said.add(message)

  def _say_starving(self, wait: float, rate: float, feed: Feed) -> None:
    """Says once that the devices wait for data, and what to change."""
    self._intervals += 1  # the first one still fills the queues
    if self._starved or self._intervals < 2 or wait < _STARVING:
      return
    self._starved = True
    cores = num_cores()
    wanted = min(math.ceil(max(feed.num_workers, 1) / (1 - min(wait, 0.95))), cores)
    if wanted > feed.num_workers:
      change = f'--config.data.workers={wanted} (now {feed.num_workers}, {cores} cores)'
    else:
      change = (
          f'all {cores} cores read already; images prepared by python -m vit_jax.prepare_data '
          'SOURCE TARGET --size=256 are read faster'
      )
    self.say(
        f'the devices wait {wait:.0%} of the time for data, which comes at {rate:,.0f} images/s; '
        f'they could take {rate / max(1 - wait, 0.05):,.0f}: {change}'
    )

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """What happens inside does not count in images/s."""
    before, waited = time.monotonic(), self._waited
    yield
    self._since += time.monotonic() - before
    self._waited = waited

  def say(self, line: str) -> None:
    """Prints a line above the bar."""
    if self._enabled:
      with tqdm.tqdm.external_write_mode(file=sys.stdout):
        print(line, flush=True)

  def say_result(self, step: int, result: Mapping[str, float], feed: Feed) -> None:
    """Prints an evaluation."""
    skipped = f' ({len(feed.bad["test"]):,} more cannot be read)' if feed.bad['test'] else ''
    self.say(
        f'step {step}/{self._total}, test accuracy {result["accuracy"]:.2%} on '
        f'{result["examples"]:,} examples{skipped}, test loss {result["loss"]:.4f}'
    )

  def finish(
      self, result: Mapping[str, float], model: epath.Path, test: ml_collections.ConfigDict
  ) -> None:
    """The last lines: what was reached, where the model is, what to try next."""
    data = '' if test.split == 'test' else f' --split={shlex.quote(test.split)}'
    data += ' --on_bad_example=skip' if self._config.data.on_bad_example == 'skip' else ''
    data, name = shlex.quote(str(test.source)) + data, shlex.quote(str(model))
    seconds = time.monotonic() - self._began
    self.say(
        f'\ndone: {result["accuracy"]:.2%} of {result["examples"]:,} test examples right after '
        f'{self._total:,} steps ({tqdm.tqdm.format_interval(seconds)} in this run)\n'
        f'model: {model}\n'
        f'next: python -m vit_jax.evaluate --model={name} --data={data}\n'
        f'  or: python -m vit_jax.predict --model={name} IMAGE…'
    )
