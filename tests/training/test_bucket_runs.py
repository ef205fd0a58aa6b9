"""Real runs whose workdir is in a bucket, an emulated one, that fails and is slow."""

import os
import signal
import time

import pytest

pytest.importorskip('gcsfs')
pytest.importorskip('gcp_storage_emulator')

from tests.bucket_proxy import BUCKET, faulty_bucket
from tests.helpers import TINY, run, start

ARGUMENTS = (*TINY, '--config=configs/quickstart.py', '--config.total_steps=12')
ARGUMENTS += ('--config.eval_every=6', '--config.checkpoint.every=4', '--config.log_every=1')


@pytest.fixture
def bucket(monkeypatch):
  with faulty_bucket() as (environment, faults):
    for name, value in environment.items():
      monkeypatch.setenv(name, value)
    yield faults


def test_a_killed_run_resumes_to_the_same_metrics_over_faulty_storage(bucket, tmp_path):
  assert run('main', *ARGUMENTS, f'--workdir={tmp_path}').returncode == 0
  workdir = f'gs://{BUCKET}/run'
  process = start('main', *ARGUMENTS, f'--workdir={workdir}')
  while 'run/checkpoints/4/commit_success.txt' not in bucket.uploads and process.poll() is None:
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  bucket.latency = 0.01
  bucket.plan = ['503', '', '', 'torn', '', '', 'lost', '', ''] * 3
  resumed = run('main', *ARGUMENTS, f'--workdir={workdir}')
  assert resumed.returncode == 0, resumed.stderr
  assert 'resuming after step' in resumed.stdout
  assert min(bucket.counts[fault] for fault in ('503', 'torn', 'lost')) == 3
  compared = run('verify', workdir, f'--against={tmp_path}')
  assert compared.returncode == 0, compared.stdout + compared.stderr
  metrics = {name: sizes for name, sizes in bucket.uploads.items() if '/metrics/0' in name}
  whole = os.path.getsize(tmp_path / 'metrics.jsonl')
  assert metrics and max(max(sizes) for sizes in metrics.values()) < 2 * whole
  assert any('events.out.tfevents' in name for name in bucket.uploads)
  assert {'run/report.html', 'run/report/first_batch.json'} <= set(bucket.uploads)
  reported = run('report', workdir, f'--out={tmp_path}/page.html')
  assert reported.returncode == 0, reported.stderr
  assert '<b>complete</b>' in (tmp_path / 'page.html').read_text()
