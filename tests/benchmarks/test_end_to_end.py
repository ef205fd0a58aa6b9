"""The benchmark of a whole run beside its bare step, at toy size."""

import csv

from benchmarks import end_to_end

TOY = (
  '--model=Ti/4@8',
  '--images=16',
  '--log_every=2',
  '--intervals=1',
  '--rounds=1',
  '--config.batch_size=8',
  '--config.mesh.data=1',
  '--config.model.width=16',
  '--config.model.depth=1',
  '--config.model.mlp_dim=32',
  '--config.model.num_heads=2',
  '--config.data.workers=0',
)


def test_a_run_and_its_bare_step_are_a_row(command, tmp_path):
  code, _, err = command(end_to_end, *TOY, f'--out={tmp_path}')
  assert code == 0, err
  (path,) = tmp_path.glob('end_to_end_*.csv')
  with path.open(newline='') as file:
    (row,) = csv.DictReader(file)
  assert (row['data'], row['steps'], row['batch_size']) == ('16 JPEG files', '2', '8')
  ratio = float(row['bare_images_per_second']) / float(row['images_per_second'])
  assert abs(100 * (ratio - 1) - float(row['overhead_percent'])) < 0.1 * ratio
  assert 0 <= float(row['data_wait_percent']) <= 100


def test_a_wrong_flag_is_one_sentence(command, tmp_path):
  for flags, message in (
    (['--config.batch=1'], "no config field 'batch'"),
    (['--intervals=0'], "'0' is not a positive integer"),
    (['--data=folder:/no/such', *TOY], '/no/such'),
  ):
    code, out, err = command(end_to_end, *flags, f'--out={tmp_path}')
    assert (code, out) == (2, '') and message in err and len(err.splitlines()) == 1
