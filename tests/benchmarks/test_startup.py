"""The benchmark of startup: real processes, one of each kind."""

import csv
import os
import pathlib

from benchmarks import startup


def test_the_first_step_of_a_run_is_timed_and_the_run_ended(tmp_path):
  phases = {name: [] for name in startup._PHASES}
  small = ['--config.model.width=16', '--config.model.depth=1', '--config.batch_size=8']
  cache = pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR'])
  seconds = startup.run_first_step(
    [*small, '--config.model.num_heads=2', '--config.data.workers=0'], tmp_path, cache, phases
  )
  parts = [value for values in phases.values() for value in values]
  assert len(parts) == 3 and min(parts) >= 0 and abs(sum(parts) - seconds) < 1e-6
  assert not list(tmp_path.iterdir())


def test_loading_is_a_row(command, tmp_path):
  code, _, err = command(startup, '--cases=load', '--rounds=1', f'--out={tmp_path}')
  assert code == 0, err
  (path,) = tmp_path.glob('startup_*.csv')
  with path.open(newline='') as file:
    (row,) = csv.DictReader(file)
  assert (row['case'], row['model'], row['cache']) == ('load', 'Ti/16', '')
  assert 0 < float(row['seconds_lowest']) <= float(row['seconds'])


def test_a_wrong_flag_is_one_sentence(command, tmp_path):
  for flags, message in (
    (['--cases=sleep'], "'sleep' is not one of import_main"),
    (['--config.batch=1'], "no config field 'batch'"),
  ):
    code, out, err = command(startup, *flags, f'--out={tmp_path}')
    assert (code, out) == (2, '') and message in err and len(err.splitlines()) == 1
