"""The record of a run's time: of real files, and of a real run that is killed and resumed."""

import json
import os
import pathlib
import signal
import time

import jax
import pytest
from etils import epath

from tests.helpers import TINY, start
from vit_jax import goodput
from vit_jax.errors import HangError, MachineError, NoProgressError, PreemptedError, UserError
from vit_jax.training.metrics import MetricsWriter
from vit_jax.training.phases import PhaseTimer
from vit_jax.training.run_history import RunHistory, read_records
from vit_jax.training.wall_time import account

ARGUMENTS = (
  *TINY,
  '--config=configs/quickstart.py',
  '--config.total_steps=80',
  '--config.checkpoint.every=30',
  '--config.eval_every=80',
  '--config.model.depth=1',
)


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def train(workdir, first_step, last_step, log_every=2):
  """A start of a run with a log after some of its steps; it ends as one that is killed."""
  history = RunHistory(workdir, first_step, PhaseTimer())
  with MetricsWriter(workdir, first_step, enabled=True) as writer:
    for step in range(first_step + log_every, last_step + 1, log_every):
      writer.write(step, history.log(step))
  return history


def test_nothing_that_was_recorded_is_lost_or_doubled(tmp_path):
  workdir = epath.Path(tmp_path)
  train(workdir, 0, 8)
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 9, "ti')  # cut short by a kill
  RunHistory(workdir, 4, PhaseTimer())  # killed before it drops lines from metrics.jsonl
  steps = [(record.start, record.step) for record in read_records(workdir)]
  assert steps == [*[(0, step) for step in (0, 2, 4, 6, 8)], (1, 4)]
  history = train(workdir, 4, 8)
  assert [line['step'] for line in lines(tmp_path / 'metrics.jsonl')] == [2, 4, 6, 8]
  with history:
    pass
  records = read_records(workdir)
  assert [(record.start, record.step) for record in records] == [
    *[(0, step) for step in (0, 2, 4, 6, 8)],
    (1, 4),
    *[(2, step) for step in (4, 6, 8, 8)],
  ]
  assert [record.is_finished for record in records] == [False] * 9 + [True]
  result = account(records)
  elapsed = records[-1].time - records[0].time + sum(records[0].seconds.values())
  assert result.total == pytest.approx(elapsed, abs=0.1)


def test_an_error_is_recorded_but_a_record_that_cannot_be_read_ends_no_run(tmp_path):
  (tmp_path / 'restarts.jsonl').write_text('[1]\n{"step": null}\nnothing\n')
  with pytest.raises(KeyError), RunHistory(epath.Path(tmp_path), 0, PhaseTimer()):
    raise KeyError
  assert [line.get('end') for line in lines(tmp_path / 'restarts.jsonl')] == [None, 'KeyError']


@pytest.mark.parametrize('ends', [None, MachineError, HangError])
def test_restarts_without_progress_are_limited(ends, tmp_path):
  workdir = epath.Path(tmp_path)

  def fail(step, error=ends):
    history = RunHistory(workdir, step, PhaseTimer(), max_restarts=2)
    if error is not None:
      with pytest.raises(error), history:
        raise error('a fault')

  for step in (0, 0, 4, 4, 4):  # a checkpoint resets the count
    fail(step)
  for _ in range(2):  # and it stays so
    with pytest.raises(NoProgressError, match='last 3 starts .* after step 4; .*, now 2') as ended:
      fail(4)
    assert ended.value.exit_code == 5
  assert RunHistory(workdir, 4, PhaseTimer(), max_restarts=3).start == 5
  fail(8)
  for error in (PreemptedError, KeyboardInterrupt, UserError) * 2:  # these count as no fault
    fail(8, error)


def test_lines_of_an_older_version_have_no_time(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 2, "train/loss": 1.0}\n')
  assert read_records(epath.Path(tmp_path)) == []
  train(epath.Path(tmp_path), 2, 4)
  assert [record.step for record in read_records(epath.Path(tmp_path))] == [2, 4]


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
  """The workdir of a run that was killed, then resumed, and times that a stopwatch measured.

  The second start, and the worker that reads its data, receive SIGUSR1 while it compiles.
  """
  workdir, times = tmp_path_factory.mktemp('killed') / 'run', {'begin': time.time()}
  env = {**os.environ, 'XLA_FLAGS': '--xla_backend_optimization_level=0'}  # compiles faster
  process = start('main', *ARGUMENTS, f'--workdir={workdir}', env=env)
  for line in process.stdout:
    times.setdefault('first line', time.time())
    if line.startswith('step 34/'):
      break
  process.kill()
  process.communicate()
  times['kill'] = time.time()
  times['restart'] = time.time()
  workers = ('--config.data.workers=1', '--config.profile.steps=(70,71)')
  process = start('main', *ARGUMENTS, f'--workdir={workdir}', *workers, env=env)
  out = []
  for line in process.stdout:
    out.append(line)
    if line.startswith('workdir '):
      process.send_signal(signal.SIGUSR1)
    if 'was compiled in' in line:
      children = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text()
      times['workers'] = len(children.split())
      for child in children.split():
        os.kill(int(child), signal.SIGUSR1)
  _, err = process.communicate()
  times['end'] = time.time()
  assert (process.returncode, err) == (0, '')  # no worker was replaced
  return workdir, times, ''.join(out)


def resumed_step(workdir):
  return next(record.step for record in read_records(epath.Path(workdir)) if record.start == 1)


def test_all_phases_and_the_lost_time_are_what_a_stopwatch_measures(killed, command):
  workdir, times, _ = killed
  code, out, err = command(goodput, workdir, '--json')
  assert (code, err) == (0, '')
  report = json.loads(out)
  # No tolerance is needed: each bound follows from the order in which things happen.
  exported = (workdir / 'model' / 'params.npz').stat().st_mtime
  assert exported - times['first line'] <= report['seconds'] <= times['end'] - times['begin']
  assert sum(report['phase_seconds'].values()) == pytest.approx(report['seconds'])
  assert sum(report['phase_shares'].values()) == pytest.approx(1)
  assert report['phase_seconds']['lost'] >= times['restart'] - times['kill']
  assert (report['restarts'], report['step']) == (1, 80)
  for phase in ('start', 'initialization', 'compile', 'data_wait', 'step', 'evaluation', 'save'):
    assert report['phase_seconds'][phase] > 0
  assert 0 < report['step_seconds']['p50'] <= report['step_seconds']['slowest']
  dropped = [line for line in lines(workdir / 'restarts.jsonl') if not {'hosts', 'end'} & {*line}]
  assert dropped and all(line['step'] > resumed_step(workdir) for line in dropped)
  replayed = sum(line['time/step'] for line in dropped)
  assert report['phase_seconds']['replayed'] == pytest.approx(replayed)


def test_each_line_of_metrics_has_the_time_since_the_one_before(killed):
  records = read_records(epath.Path(killed[0]))
  logs = [line for line in lines(killed[0] / 'metrics.jsonl') if 'time' in line]
  assert [line['step'] for line in logs] == list(range(2, 81, 2))
  for before, record in zip(records, records[1:], strict=False):
    if before.start == record.start:
      elapsed = sum(record.seconds.values())
      assert elapsed == pytest.approx(record.time - before.time, abs=1)
  last = logs[-1]
  until_then = account([each for each in records if each.time <= last['time']])
  assert last['train/goodput'] == pytest.approx(until_then.goodput, rel=1e-3)
  assert last['train/restarts'] == 1


def test_profiles_of_the_config_and_on_request(killed):
  workdir, times, out = killed
  assert times['workers'] >= 1
  steps = {}
  for path in workdir.glob('profile/step_*/plugins/profile/*/*.xplane.pb'):
    events = [
      event
      for plane in jax.profiler.ProfileData.from_file(str(path)).planes
      for line in plane.lines
      for event in line.events
    ]
    assert {'data_wait', 'evaluation', 'train'} <= {event.name for event in events}
    numbers = [dict(event.stats)['step_num'] for event in events if event.name == 'train']
    steps[path.parents[3].name] = numbers
  first = resumed_step(workdir) + 1
  assert steps == {f'step_{first}': [first, first + 1, first + 2], 'step_70': [70, 71]}
  assert f'profile: {workdir}/profile/step_70' in out
