"""What a run prints: devices and data, a progress bar, warnings, results, what to do next."""

import math
import shlex
import socket
import sys
import time
from collections.abc import Mapping, Sequence

import jax
import tqdm
from etils import epath

from vit_jax.config import DataConfig
from vit_jax.data.loading.loader import DataLoader
from vit_jax.data.sources import Source
from vit_jax.distributed import sharding
from vit_jax.distributed.processes import gather_from_all
from vit_jax.evaluation.masked_patch_scores import MaskedPatchResult
from vit_jax.hardware import num_cores
from vit_jax.models.build import count_parameters
from vit_jax.text import format_bytes, format_metric, plural, printable, printable_lines
from vit_jax.training.evaluator import Result
from vit_jax.training.program import CompiledStep, Program

_STARVING = 0.2  # share of the time spent waiting for data
_MAX_NAMED = 5  # bad examples named


def describe(program: Program) -> list[str]:
  """What a run is spread over and how: devices, mesh, batches, parameters."""
  mesh, step = program.mesh, program.step
  axes = ' x '.join(f'{axis} {size}' for axis, size in mesh.shape.items())
  batch = sharding.batch_sizes(mesh, step.batch_size, step.accumulation_steps)
  micro = f' in micro-batches of {batch["micro"]}' if step.accumulation_steps > 1 else ''
  params = sharding.sharded_bytes(program.abstract_state.params)
  state = sharding.sharded_bytes(program.abstract_state)
  total, trained = count_parameters(program.abstract_state.params), program.num_trained
  of_them = '' if trained == total else f' ({trained:,} trained)'
  return [
    f'{plural(mesh.size, f"{mesh.devices.flat[0].device_kind} device")} of '
    f'{plural(jax.process_count(), "process")}; mesh {axes}',
    f'batch {batch["global"]}: {batch["host"]} per host, {batch["device"]} per device{micro}',
    f'{total:,} parameters{of_them}: '
    f'{format_bytes(params["sharded"])} sharded, {format_bytes(params["replicated"])} '
    f'replicated; with the optimizer each device holds {format_bytes(state["device"])}',
  ]


def _accuracy(result: Result) -> str:
  """'accuracy 97.22% on 360 examples', with the mean per class where that is another number."""
  examples = plural(result.examples, 'example')
  if isinstance(result, MaskedPatchResult):
    error = f'squared error {result.loss:.4f}'
    score = error if result.accuracy is None else f'accuracy {result.accuracy:.2%}'
    return f'{score} on the corrupted patches of {examples}'
  mean = result.metrics.get('mean_per_class_accuracy', result.accuracy)
  per_class = '' if f'{mean:.2%}' == f'{result.accuracy:.2%}' else f' ({mean:.2%} mean per class)'
  return f'accuracy {result.accuracy:.2%}{per_class} on {examples}'


class Progress:
  """A bar with step, loss, images/s and time left; plain lines where there is no terminal."""

  def __init__(self, program: Program, first_step: int):
    self._program, self._first_step = program, first_step
    self._total_steps = program.step.total_steps
    self._enabled, self._is_terminal = jax.process_index() == 0, sys.stdout.isatty()
    self._start = time.monotonic()
    self._num_updates = 0
    self._num_logs, self._is_starving, self._named_bad = 0, False, set()
    self._hosts = gather_from_all(socket.gethostname())  # of each process

  def __enter__(self) -> 'Progress':
    self._bar = tqdm.tqdm(
      total=self._total_steps,
      initial=self._first_step,
      dynamic_ncols=True,
      file=sys.stdout,
      disable=not (self._enabled and self._is_terminal),
      bar_format='{percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix}, {remaining} left',
    )
    return self

  def __exit__(self, *unused) -> None:
    self._bar.close()

  def print(self, line: str) -> None:
    """Prints a line above the bar, on process 0."""
    if self._enabled:
      with tqdm.tqdm.external_write_mode(file=sys.stdout):
        print(printable_lines(line), flush=True)

  def print_start(self, train: Source, test: Source, workdir: epath.Path) -> None:
    """Prints what is about to be trained, on what, and where it is written."""
    for line in describe(self._program):
      self.print(line)
    self.print(
      f'{train.name}: {plural(train.size, "example")} of {train.num_classes:,} classes; '
      f'{test.name}: {plural(test.size, "example")}'
    )
    if self._first_step == self._total_steps:
      status = f', complete after step {self._first_step}; evaluating…'
    else:
      resuming = f', resuming after step {self._first_step}' if self._first_step else ''
      status = f'{resuming}; compiling the first step…'
    self.print(f'workdir {workdir}{status}')

  def print_compiled(self, step: CompiledStep) -> None:
    """Prints how long the train step took to compile, and the memory it needs."""
    memory = step.call.memory_analysis()
    needs = (
      ''
      if memory is None
      else (
        f'; each device holds {format_bytes(memory.argument_size_in_bytes)} of arguments and '
        f'{format_bytes(memory.temp_size_in_bytes)} of temporaries'
      )
    )
    self.print(f'the train step was compiled in {step.seconds:.1f} s{needs}')

  def update(self) -> None:
    """Counts one more step."""
    self._num_updates += 1
    self._bar.update()

  def has_steps(self) -> bool:
    """Whether a step has finished, so that the program is sound: the last one may still run."""
    return self._num_updates > 1

  def print_metrics(self, step: int, metrics: Mapping[str, float], loader: DataLoader) -> None:
    """Shows loss and speed; names bad examples, and warns once when the devices starve."""
    rate, wait = metrics['train/images_per_second'], metrics['train/data_wait/max']
    text = f'loss {metrics["train/loss"]:.4f}, {rate:,.0f} images/s, {wait:.0%} waiting for data'
    if 'train/model_flops_utilization' in metrics:
      text += f', {metrics["train/model_flops_utilization"]:.0%} of peak'
    text += f', goodput {metrics["train/goodput"]:.0%}'
    self._bar.set_postfix_str(text)
    self._name_bad_examples(loader)
    slowest = int(metrics['train/data_wait/slowest_process'])
    self._warn_if_starving(wait, rate, slowest, loader.num_workers)
    if not self._is_terminal:
      elapsed, steps = time.monotonic() - self._start, max(step - self._first_step, 1)
      left = tqdm.tqdm.format_interval((self._total_steps - step) * elapsed / steps)
      self.print(f'step {step}/{self._total_steps}, {text}, {left} left')

  def _name_bad_examples(self, loader: DataLoader) -> None:
    """Names the examples that were skipped since the last time, of many the first few."""
    for message in (text for bad in loader.bad_examples.values() for text in bad.values()):
      if message not in self._named_bad and len(self._named_bad) < _MAX_NAMED:
        self._named_bad.add(message)
        is_last = len(self._named_bad) == _MAX_NAMED
        more = '; more are counted in metrics.jsonl' if is_last else ''
        self.print(f'skipped: {printable(message)}{more}')

  def _warn_if_starving(self, wait: float, rate: float, slowest: int, num_workers: int) -> None:
    """Warns once when the devices wait for data, and says what to change."""
    self._num_logs += 1  # during the first interval the queues still fill
    if self._is_starving or self._num_logs < 2 or wait < _STARVING:
      return
    self._is_starving = True
    cores = num_cores()
    wanted = min(math.ceil(max(num_workers, 1) / (1 - min(wait, 0.95))), cores)
    if wanted > num_workers:
      advice = f'--config.data.workers={wanted} (now {num_workers}, {cores} cores)'
    else:
      advice = (
        f'all {cores} cores are reading; images prepared by python -m vit_jax.prepare_data '
        'SOURCE TARGET --size=256 are read faster'
      )
    of = f' of process {slowest} on {self._hosts[slowest]}' if len(self._hosts) > 1 else ''
    self.print(
      f'the devices{of} wait for data {wait:.0%} of the time: it arrives at {rate:,.0f} images/s, '
      f'they could take {rate / max(1 - wait, 0.05):,.0f}; {advice}'
    )

  def print_result(
    self, step: int, result: Result | None, metrics: Mapping[str, float], loader: DataLoader
  ) -> None:
    """Prints the result of the test data, if there is one, and the metrics of other evaluations."""
    start = f'step {step}/{self._total_steps}, '
    if result is not None:
      num_bad = len(loader.bad_examples['test'])
      skipped = f' ({num_bad:,} more cannot be read)' if num_bad else ''
      text = f'test {_accuracy(result)}{skipped}, test loss {result.loss:.4f}'
      self.print(start + text)
    groups: dict[str, list[str]] = {}
    for key, value in metrics.items():
      name, _, metric = key.partition('/')
      if name != 'test':
        groups.setdefault(name, []).append(format_metric(metric, value))
    for name, texts in groups.items():
      self.print(f'{start}{name}: {", ".join(texts)}')

  def print_end(
    self,
    result: Result,
    class_names: Sequence[str],
    model: epath.Path,
    best_model: str,
    data: DataConfig,
  ) -> None:
    """Prints the last lines: the result, where the model is, what to try next."""
    flags = '' if data.test.split == 'test' else f' --split={shlex.quote(data.test.split)}'
    flags += ' --on_bad_example=skip' if data.on_bad_example == 'skip' else ''
    source, name = shlex.quote(data.test_source) + flags, shlex.quote(str(model))
    seconds = tqdm.tqdm.format_interval(time.monotonic() - self._start)
    done = f'\ndone: test {_accuracy(result)}'
    if isinstance(result, MaskedPatchResult):
      done += f', test loss {result.loss:.4f}'
      mistakes, after = '', f'python -m vit_jax.evaluate --eval=knn --model={name} --data={source}'
      other = f'python -m vit_jax.main --config=… --config.init_from={name}'
    else:
      mistakes = ''.join(f'{line}\n' for line in result.mistakes(class_names))
      after = f'python -m vit_jax.evaluate --model={name} --data={source}'
      other = f'python -m vit_jax.predict --model={name} IMAGE…'
    self.print(
      f'{done} after {self._total_steps:,} steps ({seconds} in this run)\n{mistakes}'
      f'model: {model}\n{best_model}next: {after}\n  or: {other}'
    )
