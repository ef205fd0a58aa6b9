"""The command `vit_jax.report`, and the report that a real run keeps."""

import json
import signal
import time

from tests.helpers import TINY, start, write_finished_run
from vit_jax import report

FLAGS = ('--config=configs/quickstart.py', *TINY)


def test_the_report_of_a_finished_run(tiny_run, command, tmp_path):
  written = (tiny_run / 'report.html').read_text()
  code, out, err = command(report, tiny_run, f'--out={tmp_path}/x.html')
  assert (code, err) == (0, '') and out == f'{tmp_path}/x.html: {len(written) / 1e6:.2f} MB\n'

  def without_date(page):
    return page[: page.index('Written ')] + page[page.index('; <code>') :]

  assert without_date((tmp_path / 'x.html').read_text()) == without_date(written)
  for words in (
    '<b>complete</b>',
    '<b>6</b>of 6 steps',
    'Images of step 1, as the model sees them',
    'Most confident mistakes after step 6',
    'digits (train), example',
    'arguments and temporaries of the compiled train step, on 1 x cpu',
  ):
    assert words in written, words
  assert written.count('<figure class="plot"') == 11


def test_several_runs_and_metrics_alone(tiny_run, command, tmp_path):
  write_finished_run(tmp_path / 'run', 0.5)  # of the same name, and of a version before
  out = tmp_path / 'both.html'
  code, _, err = command(report, tiny_run, tmp_path / 'run' / 'metrics.jsonl', f'--out={out}')
  assert (code, err) == (0, '')
  page = out.read_text()
  assert f'<bdi>{tiny_run}'[:60] in page and 'Config fields that differ' in page


def test_what_is_no_run_is_refused(command, tmp_path):
  for arguments, words in (
    ((tmp_path,), 'has no metrics.jsonl'),
    ((tmp_path / 'none',), 'has no metrics.jsonl'),
    (('xyz://a',), 'neither a local path nor one in a bucket'),
    ((tmp_path, f'--out={tmp_path}/x.txt'), 'ends in .html'),
    ((tmp_path, f'--out={tmp_path}/none/x.html'), 'in none that exists'),
  ):
    code, out, err = command(report, *arguments)
    assert (code, out) == (2, '') and words in err and err.count('\n') == 1, err


def read_lines(path):
  return [json.loads(line) for line in path.read_text().splitlines() if line.endswith('}')]


def test_a_killed_run_resumes_its_report_and_its_tracker(tmp_path, monkeypatch):
  """The tracker is a function that writes each call into a file."""
  workdir, tracked = tmp_path / 'run', tmp_path / 'tracked.jsonl'
  monkeypatch.setenv('VIT_JAX_TEST_TRACKED', str(tracked))
  flags = (*FLAGS, '--config.total_steps=2000', '--config.eval_every=4', '--config.log_every=1')
  flags += ('--config.tracker=tests.training.trackers_of_tests:append', f'--workdir={workdir}')
  process = start('main', *flags)
  page, metrics = workdir / 'report.html', workdir / 'metrics.jsonl'
  while process.poll() is None and not (page.exists() and 'test/accuracy' in page.read_text()):
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert '<b>running</b>' in page.read_text()
  kept = (workdir / 'report' / 'first_batch.json').read_bytes()
  process = start('main', *flags)
  while process.poll() is None and '"train/restarts": 1' not in metrics.read_text():
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=100)
  assert process.returncode == 75, err
  assert '<b>stopped</b>by SIGTERM' in page.read_text() and 'class="restart"' in page.read_text()
  assert (workdir / 'report' / 'first_batch.json').read_bytes() == kept
  lines = read_lines(metrics)
  assert f'<b>{lines[-1]["step"]:,}</b>of 2,000 steps' in page.read_text()
  calls = read_lines(tracked)
  assert all(line in calls for line in lines) and calls[-1] == lines[-1]
