"""The steps whose states are saved, by number and by time, and the models that a run leaves."""

import json

import pytest

from tests.helpers import TINY, replace_clock, run
from vit_jax.config import CheckpointConfig, load_config
from vit_jax.training import save_schedule
from vit_jax.training.loop import train_and_evaluate


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'every': 8}, [8, 16, 24]),
    ({'every': 8, 'keep_every': 12}, [8, 12, 16, 24]),
    ({'every': 100, 'every_minutes': 0.5}, [6, 12, 18, 24]),  # looks at every third step
    ({'every': 8, 'every_minutes': 0.75}, [8, 16, 24]),  # each within 0.8 minutes
    ({'every': 100, 'every_minutes': 1.0}, [12, 24]),
  ],
  ids=str,
)
def test_due_steps(fields, expected, monkeypatch):
  clock = replace_clock(monkeypatch, save_schedule)
  saves = save_schedule.SaveSchedule(CheckpointConfig(**fields), log_every=3)
  due = []
  for step in range(1, 25):
    clock.now += 6
    if saves.is_due(step):
      due.append(step)
  assert due == expected


def test_milestones_are_kept_and_the_best_model_is_exported(tmp_path, capsys):
  flags = (
    *TINY,
    '--config.total_steps=24',
    '--config.checkpoint.keep=1',
    '--config.checkpoint.keep_every=5',
    '--config.optimizer.clip_norm=0',
    '--config.schedule.learning_rate=0.1',  # so high that the last step is not the best
  )
  train_and_evaluate(load_config('configs/quickstart.py', list(flags)), tmp_path)
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  accuracies = {x['step']: x['test/accuracy'] for x in lines if 'test/accuracy' in x}
  best = max(accuracies, key=lambda step: (accuracies[step], step))
  assert best < 24
  kept = {int(path.name) for path in (tmp_path / 'checkpoints').iterdir()}
  assert kept == {5, 10, 15, 20, best, 24}
  assert f'best_model (step {best}, score {accuracies[best]:.4f})' in capsys.readouterr().out
  for name, step in (('model', 24), ('best_model', best)):
    result = run('evaluate', f'--model={tmp_path}/{name}', '--data=digits', '--json')
    assert json.loads(result.stdout)['accuracy'] == pytest.approx(accuracies[step], abs=1e-6)
