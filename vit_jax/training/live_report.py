"""`workdir/report.html`, renewed while a run goes.

A thread of process 0 reads, draws and writes, so that steps wait neither for it nor for the
storage. What fails is one warning.
"""

import json
import queue
import sys
import threading
from collections.abc import Callable, Mapping

import jax
from etils import epath

from vit_jax.data.loading.loader import Stream
from vit_jax.errors import first_line
from vit_jax.evaluation.classification import Result
from vit_jax.files import write_text
from vit_jax.retries import with_retries
from vit_jax.run_metrics import stream_metrics
from vit_jax.run_report.curves import Curves
from vit_jax.run_report.run_files import COMPILED_STEP, read_with_curves
from vit_jax.run_report.run_page import render
from vit_jax.run_report.saved_pictures import FIRST_BATCH, FOLDER, MISTAKES, write_pictures
from vit_jax.training import report_pictures
from vit_jax.training.program import CompiledStep, Program

REPORT = 'report.html'
_END_SECONDS = 10.0  # for the last page to be written


class LiveReport:
  """The report of a run, on process 0; on others nothing happens.

  As a context manager it writes the page once more at the end.
  """

  def __init__(
    self, workdir: epath.Path, first_step: int, program: Program, streams: Mapping[str, Stream]
  ):
    """`streams` are 'train' and 'test'."""
    self._workdir, self._first_step = workdir, first_step
    self._program, self._streams = program, streams
    self._curves = Curves()
    self._is_stale = self._has_failed = False
    self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
    # Storage may stop it for ever: the process must be able to end without it.
    self._thread = threading.Thread(target=self._run, name='report', daemon=True)
    self._enabled = jax.process_index() == 0

  def __enter__(self) -> 'LiveReport':
    if self._enabled:
      self._tasks.put(self._begin)
      self._thread.start()
    return self

  def __exit__(self, *unused: object) -> None:
    if not self._enabled:
      return
    self.renew()
    self._tasks.put(None)
    self._thread.join(_END_SECONDS)
    if self._thread.is_alive():
      self._warn(f'it is not written after {_END_SECONDS:g} s')

  def add(self, step: int, metrics: Mapping[str, float]) -> None:
    """Adds metrics to the curves."""
    self._put(lambda: self._curves.add({**metrics, 'step': step}))

  def add_compiled(self, compiled: CompiledStep) -> None:
    """Records the bytes and FLOPs of the train step."""
    self._put(lambda: self._write_compiled(compiled))

  def renew(self, step: int = 0, result: object = None) -> None:
    """Has the page written, with the mistakes of a classification after a step."""
    if isinstance(result, Result):
      self._put(lambda: self._write_mistakes(step, result))
    self._put(self._set_stale)

  def _put(self, task: Callable[[], None]) -> None:
    if self._enabled:
      self._tasks.put(task)

  def _run(self) -> None:
    while task := self._tasks.get():
      self._try(task)
      if self._is_stale and self._tasks.empty():
        self._try(self._write_page)
    if self._is_stale:
      self._try(self._write_page)

  def _try(self, task: Callable[[], None]) -> None:
    try:
      with_retries(task)
    except Exception as error:  # noqa: BLE001 - no report is worth a run
      self._warn(first_line(error))

  def _warn(self, reason: str) -> None:
    if not self._has_failed:
      self._has_failed = True
      path = self._workdir / REPORT
      text = f'report: {path} is not complete ({reason.rstrip(".")}); training continues'
      print(text, file=sys.stderr, flush=True)

  def _set_stale(self) -> None:
    self._is_stale = True

  def _begin(self) -> None:
    for line in stream_metrics(self._workdir):
      self._curves.add(line)
    path, step = self._workdir / FOLDER / FIRST_BATCH, self._program.step
    is_first = self._first_step == 0 or not path.exists()
    self._set_stale()
    if is_first and self._first_step < step.total_steps:
      stream = self._streams['train']
      pictures = report_pictures.first_batch(stream, self._program.model, step, self._first_step)
      write_pictures(path, pictures)

  def _write_compiled(self, compiled: CompiledStep) -> None:
    program, memory = self._program, compiled.call.memory_analysis()
    device, count = program.mesh.devices.flat[0].device_kind, program.mesh.size
    content = {'devices': f'{count} x {device}', 'flops': program.train_flops}
    if memory is not None:
      content['bytes'] = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    path = self._workdir / FOLDER / COMPILED_STEP
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content) + '\n')

  def _write_mistakes(self, step: int, result: Result) -> None:
    pictures = report_pictures.mistakes(self._streams['test'], result, step)
    if pictures is not None:
      write_pictures(self._workdir / FOLDER / MISTAKES, pictures)

  def _write_page(self) -> None:
    self._is_stale = False
    write_text(self._workdir / REPORT, render(read_with_curves(self._workdir, self._curves)))
