"""Profiles of steps: which, where, and what happens when they cannot be written."""

import gzip
import json

import jax.numpy as jnp
import pytest
from etils import epath

from vit_jax import signals
from vit_jax.config import Config, replace_fields
from vit_jax.errors import UserError
from vit_jax.training import profiling
from vit_jax.training.phases import PhaseTimer
from vit_jax.training.profiling import Profiler


def run_steps(workdir, steps, num_steps=6, on_step=lambda step: None):
  """Runs empty steps; returns what is shown, and the steps in each profile."""
  shown, timer = [], PhaseTimer()
  with Profiler(steps, epath.Path(workdir), timer, shown.append) as profiler:
    for step in range(1, num_steps + 1):
      on_step(step)
      with profiler.step(step, jnp.zeros(3)):
        pass
      with timer.phase('save'):
        pass
  profiles = {}
  for path in workdir.glob('profile/*/plugins/profile/*/*.trace.json.gz'):
    events = json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
    names = [event.get('name') for event in events]
    assert names.count('save') >= 1
    numbers = [int(e['args']['step_num']) for e in events if e.get('name') == 'train']
    profiles[path.relative_to(workdir / 'profile').parts[0]] = sorted(numbers)
  return shown, profiles


def test_steps_of_the_config(tmp_path):
  shown, profiles = run_steps(tmp_path, (2, 3))
  assert profiles == {'step_2': [2, 3]}
  assert shown == [f'profile: {tmp_path}/profile/step_2']


def test_a_profile_ends_with_the_run(tmp_path):
  assert run_steps(tmp_path, (5, 100))[1] == {'step_5': [5, 6]}
  assert run_steps(tmp_path / 'other', ())[1] == {}


def test_a_request_is_for_three_steps_once(tmp_path):
  def request(step):
    if step == 2:
      signals._profile_requested.set()

  assert run_steps(tmp_path, (), on_step=request)[1] == {'step_2': [2, 3, 4]}


def test_other_processes_profile_on_request_only(tmp_path, monkeypatch):
  monkeypatch.setattr(profiling.jax, 'process_index', lambda: 3)
  signals._profile_requested.set()
  assert run_steps(tmp_path, (5, 6))[1] == {'step_1_process_3': [1, 2, 3]}


def test_a_remote_workdir_gets_a_copy(tmp_path, monkeypatch):
  monkeypatch.setattr(profiling, 'is_remote', lambda path: True)
  monkeypatch.setattr(profiling.tempfile, 'tempdir', str(tmp_path / 'temporary'))
  (tmp_path / 'temporary').mkdir()
  assert run_steps(tmp_path / 'run', (2, 3))[1] == {'step_2': [2, 3]}
  assert not list((tmp_path / 'temporary').iterdir())


def test_a_profile_that_cannot_be_written_ends_no_run(tmp_path):
  (tmp_path / 'profile').write_text('a file where the folder should be')
  (shown,) = run_steps(tmp_path, (2, 3))[0]
  assert 'step_2 cannot be written' in shown


@pytest.mark.parametrize('steps', [(3,), (0, 3), (4, 3), (1, 2, 3), ('a', 'b')])
def test_steps_out_of_range_are_refused(steps):
  with pytest.raises(UserError, match='config.profile.steps'):
    replace_fields(Config(), {'profile.steps': steps})
  assert replace_fields(Config(), {'profile.steps': (3, 3)}).profile.steps == (3, 3)
