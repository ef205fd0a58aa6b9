"""A run that diverges goes back, skips the batches, and does the same when it is restarted."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import TINY
from vit_jax.config import load_config
from vit_jax.errors import DivergedError, NonFiniteLossError, UserError
from vit_jax.training import loop
from vit_jax.training.rollback import fetch_sound

FLAGS = (
  *TINY,
  '--config.total_steps=12',
  '--config.checkpoint.every=4',
  '--config.eval_every=6',
  '--config.log_every=1',
  '--config.data.workers=0',
)


def config(*flags):
  return load_config('configs/quickstart.py', [*FLAGS, *flags])


def losses(workdir):
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return {line['step']: line['train/loss'] for line in lines if 'train/loss' in line}


def poisoned_fetch(bad_losses):
  """`fetch_sound`, of a run whose loss is not finite where it otherwise has one of these values."""

  def fetch(step, metrics, after_skipped):
    if float(metrics['train/loss']) in bad_losses:
      metrics = metrics | {'train/loss': jnp.float32(np.nan)}
    return fetch_sound(step, metrics, after_skipped)

  return fetch


def test_it_goes_back_and_equals_a_run_that_skipped_from_the_beginning(
  tmp_path, monkeypatch, capsys
):
  plain, run, expected = (tmp_path / name for name in ('plain', 'run', 'expected'))
  loop.train_and_evaluate(config(), plain)
  monkeypatch.setattr(loop, 'fetch_sound', poisoned_fetch({losses(plain)[7]}))
  with pytest.raises(NonFiniteLossError, match='nan at step 7'):
    loop.train_and_evaluate(config(), run)
  capsys.readouterr()
  result = loop.train_and_evaluate(config('--config.rollback.limit=1'), run)  # resumes, and again
  out = capsys.readouterr().out
  assert 'Going back to step 4; batches 4 to 6 of the data are skipped (rollback 1 of 1).' in out
  monkeypatch.undo()
  skipping = config('--config.data.skip_batches=((4,7),)')
  assert loop.train_and_evaluate(skipping, expected) == result
  assert losses(run) == losses(expected)
  # A restart has the same batches, without any flag.
  (rollback,) = json.loads((run / 'rollbacks.json').read_text())
  assert (rollback['checkpoint'], rollback['diverged_at_step']) == (4, 7)
  assert json.loads((run / 'config.json').read_text())['data']['skip_batches'] == [[4, 7]]
  assert loop.train_and_evaluate(config(), run) == result
  with pytest.raises(UserError, match='it can skip batches from 15 on'):
    loop.train_and_evaluate(config('--config.data.skip_batches=((9,10),)'), run)


def test_the_limit_ends_it(tmp_path, monkeypatch):
  calls = []

  def fetch(step, metrics, after_skipped):
    calls.append(step)
    return fetch_sound(step, metrics | {'train/loss': jnp.float32(np.inf)}, after_skipped)

  monkeypatch.setattr(loop, 'fetch_sound', fetch)
  with pytest.raises(NonFiniteLossError, match='inf at step 1'):
    loop.train_and_evaluate(config('--config.rollback.limit=2'), tmp_path)
  assert calls == [1, 1, 1]
  batches = [each['batches'] for each in json.loads((tmp_path / 'rollbacks.json').read_text())]
  assert batches == [[0, 1], [1, 2]]


def test_many_skipped_updates_in_a_row_are_a_divergence():
  names = ('train/loss', 'train/gradient_norm', 'train/parameter_norm')
  metrics = dict.fromkeys(names, jnp.float32(1)) | {'train/skipped_in_a_row': jnp.float32(3)}
  assert fetch_sound(7, metrics, 0) == fetch_sound(7, metrics, 4)
  with pytest.raises(DivergedError, match='3 steps in a row were skipped up to step 7') as caught:
    fetch_sound(7, metrics, 3)
  assert caught.value.step == 7 and caught.value.exit_code == 3


def test_a_damaged_record_is_a_sentence(tmp_path):
  for text in ('x', '{}1', '[{"batches": [3, 2]}]', '[1]'):
    (tmp_path / 'rollbacks.json').write_text(text)
    with pytest.raises(UserError, match='rollbacks.json cannot be read'):
      loop.train_and_evaluate(config(), tmp_path)
