"""The benchmark of checkpoints, at toy size."""

import csv

from benchmarks import checkpoint_cost

TOY = (
  '--models=Ti/4@8',
  '--rounds=1',
  '--num_classes=5',
  '--config.batch_size=8',
  '--config.model.width=16',
  '--config.model.depth=1',
  '--config.model.mlp_dim=32',
  '--config.model.num_heads=2',
)


def test_a_model_is_a_row(command, tmp_path):
  code, _, err = command(checkpoint_cost, *TOY, f'--workdir={tmp_path / "w"}', f'--out={tmp_path}')
  assert code == 0, err
  (path,) = tmp_path.glob('checkpoint_cost_*.csv')
  with path.open(newline='') as file:
    (row,) = csv.DictReader(file)
  assert 0 < float(row['stall_seconds']) <= float(row['write_seconds'])
  assert float(row['restore_seconds']) > 0 and float(row['files_gb']) > 0
  assert not list((tmp_path / 'w').iterdir())


def test_a_wrong_flag_is_one_sentence(command, tmp_path):
  code, out, err = command(checkpoint_cost, '--models=B/16,nonsense+', f'--out={tmp_path}')
  assert (code, out) == (2, '') and 'is not a model such as B/16' in err
