"""Profiles of some steps, of the config or on request: traces of `jax.profiler`."""

import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from etils import epath

from vit_jax import signals
from vit_jax.errors import first_line
from vit_jax.files import is_remote
from vit_jax.training.phases import PhaseTimer

_STEPS_ON_REQUEST = 3


class Profiler:
  """Writes `workdir/profile/step_<N>/`, where N is the first step of the profile.

  The steps of the config are those of process 0; a SIGUSR1 asks the process that receives it for
  its next three, in `step_<N>_process_<i>` unless it is process 0. As a context manager it ends a
  profile with the run. A profile that cannot be written is no reason to end the run.
  """

  def __init__(
    self, steps: Sequence[int], workdir: epath.Path, timer: PhaseTimer, show: Callable[[str], None]
  ):
    """`steps`: (first, last), or (); `show` prints a line."""
    self._planned = range(0)
    if steps and jax.process_index() == 0:
      self._planned = range(steps[0], steps[1] + 1)
    self._workdir, self._timer, self._show = workdir, timer, show
    self._last_step: int | None = None  # of the profile in progress
    self._target, self._local = workdir, workdir  # its folder, and where JAX writes it

  def __enter__(self) -> 'Profiler':
    return self

  def __exit__(self, *unused: Any) -> None:
    self._stop()

  @contextlib.contextmanager
  def step(self, step: int, state: Any) -> Iterator[None]:
    """The block that dispatches a step; `state` is the one before it."""
    if self._last_step is not None and step > self._last_step:
      jax.block_until_ready(state)
      self._stop()
    if self._last_step is None:
      self._start_if_due(step)
    with jax.profiler.StepTraceAnnotation('train', step_num=step):
      yield

  def _start_if_due(self, step: int) -> None:
    if not signals.take_profile_request() and step not in self._planned:
      return
    process = jax.process_index()
    name = f'step_{step}' + (f'_process_{process}' if process else '')
    self._target = self._workdir / 'profile' / name
    is_temporary = is_remote(self._workdir)
    self._local = epath.Path(tempfile.mkdtemp()) if is_temporary else self._target
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # calls of Python functions would hide the rest
    with self._reported():
      jax.profiler.start_trace(str(self._local), profiler_options=options)
      self._last_step = step + _STEPS_ON_REQUEST - 1
      if step in self._planned:
        self._last_step = self._planned[-1]

  def _stop(self) -> None:
    """Ends the profile in progress, if there is one."""
    if self._last_step is None:
      return
    self._last_step = None
    with self._reported():
      jax.profiler.stop_trace()
      if self._local != self._target:
        _copy(pathlib.Path(self._local), self._target)
        self._local.rmtree()
      self._show(f'profile: {self._target}')

  @contextlib.contextmanager
  def _reported(self) -> Iterator[None]:
    try:
      with self._timer.phase('profile'):
        yield
    except (OSError, RuntimeError, ValueError) as error:
      self._planned = range(0)
      self._show(f'the profile {self._target} cannot be written: {first_line(error)}')


def _copy(source: pathlib.Path, target: epath.Path) -> None:
  for file in source.rglob('*'):
    if file.is_file():
      copy = target / str(file.relative_to(source))
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_bytes(file.read_bytes())
