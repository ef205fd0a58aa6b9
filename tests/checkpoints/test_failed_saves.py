"""Saves that fail: skipped with a warning, three in a row or the last of a run end it."""

import errno

import numpy as np
import pytest
from etils import epath

from vit_jax import retries
from vit_jax.checkpoints import manifest
from vit_jax.checkpoints.manager import Checkpointer
from vit_jax.errors import MachineError, UserError

EIO = OSError(errno.EIO, 'Input/output error')
FULL = OSError(errno.ENOSPC, 'No space left on device')


def state(step):
  return {'kernel': np.full((64, 64), step, np.float32)}


@pytest.fixture
def failures(monkeypatch):
  """The errors of the next commits, None for one that succeeds."""
  errors, write = [], manifest.write_manifest

  def flaky(folder):
    error = errors.pop(0) if errors else None
    if error is not None:
      raise error
    write(folder)

  monkeypatch.setattr(manifest, 'write_manifest', flaky)
  monkeypatch.setattr(retries, '_TOTAL_SECONDS', 0)
  return errors


@pytest.fixture
def workdir(tmp_path):
  return epath.Path(tmp_path)


def steps(workdir):
  return sorted(path.name for path in (workdir / 'checkpoints').iterdir())


def test_a_save_that_fails_is_skipped(workdir, failures, capsys):
  failures += [None, EIO, EIO, None]
  with Checkpointer(workdir, keep=9) as checkpointer:
    for step in (1, 2, 3, 4):
      checkpointer.save(step, state(step), 0.9 if step == 2 else None)
      assert checkpointer.is_best(0.8) == (step != 2)  # the best one was not saved
    checkpointer.save(5, state(5), None, is_last=True)
  assert steps(workdir) == ['1', '4', '5']  # nothing is left of the others
  first, second = capsys.readouterr().err.splitlines()
  assert first.startswith('warning: the checkpoint of step 2 is skipped (')
  assert 'Input/output error' in first and 'of step 3 is skipped' in second


def test_three_in_a_row_end_the_run(workdir, failures):
  failures += [None, EIO, None, EIO, EIO, EIO]
  checkpointer = Checkpointer(workdir, keep=9)
  with pytest.raises(MachineError, match='step 6 is lost.* rerun the same command') as ended:
    with checkpointer:
      for step in range(1, 9):
        checkpointer.save(step, state(step), None)
  assert ended.value.exit_code == 77
  assert steps(workdir) == ['1', '3']


@pytest.mark.parametrize(('errors', 'is_saved'), [([EIO], True), ([EIO, EIO], False)])
def test_the_last_save_is_repeated_and_never_skipped(errors, is_saved, workdir, failures):
  failures += errors
  checkpointer = Checkpointer(workdir, keep=9)

  def save():
    with checkpointer:
      checkpointer.save(1, state(1), None, is_last=True)

  if is_saved:
    save()
    assert manifest.verify(workdir / 'checkpoints/1') is None
    return
  with pytest.raises(MachineError, match='step 1 is lost'):
    save()
  assert steps(workdir) == []


def test_lack_of_space_ends_the_run_at_once(workdir, failures):
  failures += [None, FULL]
  checkpointer = Checkpointer(workdir, keep=9)
  with pytest.raises(UserError, match='no space left.*the earlier ones are intact'):
    with checkpointer:
      for step in (1, 2, 3):
        checkpointer.save(step, state(step), None)


@pytest.mark.parametrize('has_started', [False, True])
def test_a_save_that_cannot_even_start_is_repeated(has_started, workdir, monkeypatch, capsys):
  with Checkpointer(workdir, keep=9) as checkpointer:
    save, errors = checkpointer._manager.save, [EIO, EIO, EIO]

    def flaky(step, **kwargs):
      if not errors:
        return save(step, **kwargs)
      if has_started:  # Orbax writes metadata when its thread writes the arrays already
        save(step, **kwargs)
      raise errors.pop()

    monkeypatch.setattr(checkpointer._manager, 'save', flaky)
    checkpointer.save(1, state(1), None)  # fails twice
    checkpointer.save(2, state(2), None)  # fails once
  assert steps(workdir) == ['2']
  assert capsys.readouterr().err.count('is skipped') == 1


def test_another_error_is_the_one_to_report(workdir, failures):
  failures += [EIO]
  with pytest.raises(KeyError):
    with Checkpointer(workdir, keep=9) as checkpointer:
      checkpointer.save(1, state(1), None)
      raise KeyError


def test_the_hook_runs_before_the_checkpoint_is_complete(workdir):
  complete = []

  def hook():
    complete.append((workdir / 'checkpoints/1').exists())

  with Checkpointer(workdir, keep=9) as checkpointer:
    checkpointer.save(1, state(1), None, before_commit=hook)
  assert complete == [False] and steps(workdir) == ['1']
