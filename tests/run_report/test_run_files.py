"""What the folder of a run tells, whatever is in its files."""

import json
import time

import pytest
from etils import epath

from vit_jax.errors import UserError
from vit_jax.run_report import saved_pictures
from vit_jax.run_report.run_files import read_run
from vit_jax.run_report.saved_pictures import Picture, Pictures, read_pictures, write_pictures

START = {'step': 0, 'train/restarts': 0, 'hosts': ['a']}


def write(folder, history=(), metrics=({'step': 5, 'train/loss': 1.0},), total_steps=10):
  for name, lines in (('restarts.jsonl', history), ('metrics.jsonl', metrics)):
    if lines:
      (folder / name).write_text(''.join(json.dumps(line) + '\n' for line in lines))
  if total_steps:
    (folder / 'config.json').write_text(json.dumps({'total_steps': total_steps}))
  return epath.Path(folder)


@pytest.mark.parametrize(
  ('end', 'name', 'word'),
  [
    ('finished', 'complete', ''),
    ('PreemptedError', 'stopped', 'SIGTERM'),
    ('NonFiniteLossError', 'failed', 'finite'),
    ('<script>', 'failed', '<script>'),
  ],
)
def test_the_end_of_a_run(tmp_path, end, name, word):
  history = [START | {'time': 1.0}, {'step': 5, 'time': 2.0, 'train/restarts': 0, 'end': end}]
  state = read_run(write(tmp_path, history)).state
  assert state.name == name and word in state.reason and state.restarts == ()


def test_a_run_without_an_end_is_running_or_was_killed(tmp_path):
  now = time.time()
  assert read_run(write(tmp_path, [START | {'time': now - 60}])).state.name == 'running'
  state = read_run(write(tmp_path, [START | {'time': now - 7200}])).state
  assert (state.name, '2.0 h' in state.reason) == ('unknown', True)


def test_the_last_start_counts(tmp_path):
  history = [
    START | {'time': 1.0},
    {'step': 5, 'time': 2.0, 'train/restarts': 0, 'end': 'PreemptedError'},
    {'step': 4, 'time': time.time(), 'train/restarts': 1, 'hosts': ['b']},
  ]
  state = read_run(write(tmp_path, history)).state
  assert (state.name, state.restarts) == ('running', (4,))


def test_a_run_of_an_older_version(tmp_path):
  assert read_run(write(tmp_path, total_steps=5)).state.name == 'complete'
  assert read_run(write(tmp_path, total_steps=50)).state.name == 'unknown'


def test_a_torn_line_and_lines_of_something_else(tmp_path):
  write(tmp_path)
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('[1]\n{"step": "7"}\n\xff\n{"step": 6, "train/loss": 2.0}\n{"step": 7, "train/lo')
  curve = read_run(epath.Path(tmp_path)).curves.curves['train/loss']
  assert curve.segments() == [[(5, 1.0), (6, 2.0)]]


def test_metrics_alone(tmp_path):
  path = write(tmp_path) / 'metrics.jsonl'
  assert read_run(path).config is not None  # those of the folder that it is in
  other = path.rename(tmp_path / 'other.jsonl')
  run = read_run(other)
  assert (run.name, run.config, run.state.name) == ('other.jsonl', None, 'unknown')


def test_a_config_and_no_metrics_yet(tmp_path):
  run = read_run(write(tmp_path, [START | {'time': time.time()}], metrics=()))
  assert run.curves.names() == [] and run.state.name == 'running'


def test_no_run_is_refused(tmp_path):
  for path in (tmp_path, tmp_path / 'none', tmp_path / 'none.jsonl'):
    with pytest.raises(UserError, match='has no metrics.jsonl'):
      read_run(epath.Path(path))


@pytest.mark.parametrize('content', ['', '[]', '{"model": 3}', '{"new_field": 1}', '\x00'])
def test_a_config_that_cannot_be_read_is_said(tmp_path, content):
  write(tmp_path)
  (tmp_path / 'config.json').write_text(content)
  run = read_run(epath.Path(tmp_path))
  assert run.config is None and 'config.json' in run.note and run.curves.step == 5


@pytest.mark.parametrize('content', ['', '[]', '{}', '{"pictures": 3}', '{"pictures": [{}]}'])
def test_files_of_anything_else_are_left_out(tmp_path, content):
  folder = write(tmp_path)
  (folder / 'report').mkdir()
  for name in ('plan.json', 'report/compiled_step.json', 'report/mistakes.json'):
    (folder / name).write_text(content)
  run = read_run(folder)
  assert run.mistakes is None and isinstance(run.plan, dict)


def test_pictures_are_kept(tmp_path):
  picture = Picture('data:image/png;base64,AAAA', 'a', [('x', 0.25)], ('y', 0.75))
  path = epath.Path(tmp_path) / 'report' / 'x.json'
  write_pictures(path, Pictures(3, 'note', [picture] * 20))
  assert read_pictures(path) == Pictures(3, 'note', [picture] * saved_pictures.MAX_PICTURES)


@pytest.mark.parametrize('uri', ['http://x/y.png', 'data:text/html;base64,AA', 'data:image/png,"'])
def test_only_pictures_are_pictures(tmp_path, uri):
  path = epath.Path(tmp_path) / 'x.json'
  write_pictures(path, Pictures(3, '', [Picture(uri, 'a', [])]))
  assert read_pictures(path) is None
