"""A run that diverges goes back, skips the batches, and does the same when it is restarted."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tests.helpers import TINY
from vit_jax.config import load_config, write_config
from vit_jax.errors import DivergedError, NonFiniteLossError, UserError
from vit_jax.training import loop
from vit_jax.training.rollback import fetch_sound, skip_recorded, with_rollbacks

FLAGS = (
  *TINY,
  '--config.total_steps=12',
  '--config.checkpoint.every=4',
  '--config.eval_every=12',
  '--config.log_every=1',
  '--config.data.workers=0',
)


def config(*flags):
  return load_config('configs/quickstart.py', [*FLAGS, *flags])


def losses(workdir):
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return {line['step']: line['train/loss'] for line in lines if 'train/loss' in line}


def fail_once(number):
  """`fetch_sound`, of a run whose loss is not finite at a step the first time."""
  left = [number]

  def fetch(step, metrics, after_skipped):
    if [step] == left:
      left.clear()
      metrics = metrics | {'train/loss': jnp.float32(np.nan)}
    return fetch_sound(step, metrics, after_skipped)

  return fetch


def test_it_goes_back_and_equals_a_run_that_skipped_from_the_beginning(
  tmp_path, monkeypatch, capsys
):
  run, expected = tmp_path / 'run', tmp_path / 'expected'
  with monkeypatch.context() as patch:
    patch.setattr(loop, 'fetch_sound', fail_once(7))
    result = loop.train_and_evaluate(config('--config.rollback.limit=1'), run)
  out = capsys.readouterr().out
  assert 'Going back to step 4; batches 4 to 6 of the data are skipped (rollback 1 of 1).' in out
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


@pytest.mark.parametrize('limit', [0, 1, 2])
def test_the_limit_ends_it(limit, tmp_path):
  """Of an attempt that always diverges at its third step."""
  attempts = []

  @with_rollbacks
  def train(config, workdir, start):
    config = skip_recorded(config, workdir)
    write_config(config, workdir / 'config.json')
    attempts.append(config.data.skip_batches)
    raise NonFiniteLossError('train/loss is nan at step 3.', 3)

  flags = f'--config.rollback.limit={limit}', '--config.data.skip_batches=((1,2),)'
  with pytest.raises(NonFiniteLossError, match='nan at step 3'):
    train(config(*flags), epath.Path(tmp_path))
  # Three steps use the batches 0, 2, 3; then 4, 5, 6; then 7, 8, 9.
  assert attempts == [((1, 2),), ((0, 4),), ((0, 7),)][: limit + 1]


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
      skip_recorded(config(), epath.Path(tmp_path))
