"""The metrics of a run: lines of JSON, and events for TensorBoard."""

import json
import math
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence

from etils import epath
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from vit_jax import signals
from vit_jax.files import is_remote, read_text
from vit_jax.retries import storage_error
from vit_jax.run_metrics import (
  METRICS_FILE,
  PARTS_FOLDER,
  metrics_files,
  part_name,
  read_metrics,
  truncate_metrics,
)
from vit_jax.training.metrics_output import LocalFile, Output, Parts, Uploader, WriteFailures

Follower = Callable[[int, Mapping[str, float]], None]


class MetricsWriter:
  """Appends to the metrics of `workdir`; only one process of a run is enabled.

  A local workdir gets `metrics.jsonl` and a file of TensorBoard events; a bucket gets parts of
  bounded size, `metrics/<first step>.jsonl` and event files, uploaded by a thread. `followers` are
  called with each step and its metrics after these are written; they must not raise.

  Raises:
    MachineError, UserError: when the metrics of the run that is resumed cannot be read.
  """

  def __init__(
    self, workdir: epath.Path, first_step: int, enabled: bool, followers: Sequence[Follower] = ()
  ):
    self._workdir, self._enabled, self._followers = workdir, enabled, followers
    self._sinks: Sequence[LocalFile | Uploader] = ()  # what is flushed
    if not enabled:
      return
    self._failures = WriteFailures()
    try:
      truncate_metrics(workdir, first_step)
      open_outputs = self._open_parts if is_remote(workdir) else self._open_files
      self._lines, self._events = open_outputs()
    except (OSError, ValueError) as error:
      raise storage_error(f'The metrics of {workdir} cannot be resumed', error) from None
    if first_step:  # TensorBoard drops the events past the step that is resumed
      start = Event(step=first_step + 1, session_log={'status': 'START'})
      self._events.append(first_step, _record(start))

  def _open_files(self) -> tuple[Output, Output]:
    lines = LocalFile(self._workdir / METRICS_FILE, self._failures)
    events = LocalFile(self._workdir / _event_file_name(), self._failures)
    events.append(0, _EVENTS_HEADER)
    self._sinks = lines, events
    return lines, events

  def _open_parts(self) -> tuple[Output, Output]:
    folder, name, last = self._workdir / PARTS_FOLDER, _event_file_name(), None
    parts = [file for file in metrics_files(self._workdir) if file.parent.name == PARTS_FOLDER]
    if parts:
      last = int(parts[-1].stem), read_text(parts[-1]).encode()
    uploader = Uploader(self._failures)
    self._sinks = (uploader,)
    return (
      Parts(uploader, lambda step: folder / part_name(step), last=last),
      Parts(uploader, lambda step: self._workdir / f'{name}.{step:014}', header=_EVENTS_HEADER),
    )

  def has_evaluation(self, step: int) -> bool:
    """Whether the metrics of a step have others than those of training."""
    if not self._enabled or not metrics_files(self._workdir):
      return False
    names = (name for line in read_metrics(self._workdir) if line['step'] == step for name in line)
    return any('/' in name and not name.startswith(('train/', 'time/')) for name in names)

  def __enter__(self) -> 'MetricsWriter':
    return self

  def __exit__(self, *unused) -> None:
    if self._enabled:
      with signals.delayed(signal.SIGINT):
        self._failures.report_end(sum(sink.close() for sink in self._sinks))

  def flush(self) -> None:
    """Writes what has not been written yet, from any thread; waits for it, and never fails."""
    for sink in self._sinks:
      sink.flush()

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes one flat JSON object, in which NaN and infinity become null, and its events."""
    if not self._enabled:
      return
    values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    line = json.dumps({'step': step, **values}) + '\n'
    summaries = (scalar(name, value) for name, value in metrics.items())
    events = (Event(wall_time=time.time(), step=step, summary=summary) for summary in summaries)
    with signals.delayed(signal.SIGINT):  # no half of it
      self._lines.append(step, line.encode())
      self._events.append(step, b''.join(map(_record, events)))
    for follow in self._followers:
      follow(step, metrics)


def _event_file_name() -> str:
  """As TensorBoard looks for it; runs that are resumed add files in the order of their time."""
  return f'events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}'


def _record(event: Event) -> bytes:
  """An event in a TFRecord file: length and content, each with its checksum."""
  content = event.SerializeToString()
  length = struct.pack('<Q', len(content))
  checksums = (struct.pack('<I', masked_crc32c(data)) for data in (length, content))
  return length + next(checksums) + content + next(checksums)


_EVENTS_HEADER = _record(Event(wall_time=time.time(), file_version='brain.Event:2'))
