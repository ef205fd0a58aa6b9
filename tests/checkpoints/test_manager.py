"""Checkpoints: damage of any kind is noticed, and the newest intact one is used."""

import errno
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from vit_jax.checkpoints import manifest
from vit_jax.checkpoints.manager import Checkpointer, find_step, has_checkpoint, read_step
from vit_jax.errors import UserError


def state(step):
  rng = np.random.default_rng(step)
  return {
    'params': {'kernel': rng.normal(size=(64, 300)).astype(np.float32)},
    'step': np.int32(step),
  }


def restored(checkpointer, step):
  return checkpointer.restore(
    step,
    jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
      ),
      state(0),
    ),
  )


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  workdir = epath.Path(tmp_path_factory.mktemp('saved'))
  with Checkpointer(workdir, keep=3) as checkpointer:
    for step in (1, 2, 4, 6):
      checkpointer.save(step, state(step), accuracy={1: 0.9, 4: 0.5}.get(step))
  assert checkpointer.notes == []
  return workdir


@pytest.fixture
def workdir(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'run')
  return epath.Path(tmp_path / 'run')


def files(step):
  return sorted(path for path in pathlib.Path(step).rglob('*') if path.is_file())


def test_every_damage_to_every_file_is_noticed(saved, tmp_path):
  step = tmp_path / '6'
  shutil.copytree(saved / 'checkpoints/6', step)
  assert manifest.verify(epath.Path(step)) is None
  listed = json.loads((step / 'manifest.json').read_text())
  rng = np.random.default_rng(0)
  not_listed = set()
  for path in files(step):
    name, whole = str(path.relative_to(step)), path.read_bytes()
    if name not in listed and name != 'manifest.json':
      not_listed.add(name)
      continue
    flipped = bytearray(whole)
    flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
    for damaged in (bytes(flipped), whole[: len(whole) // 2], b'', whole + b'\0', None):
      path.unlink() if damaged is None else path.write_bytes(damaged)
      assert manifest.verify(epath.Path(step)), (name, damaged)
      path.write_bytes(whole)
  # Orbax writes these after the manifest (the second in newer versions); nothing needs them.
  assert not_listed <= {'_CHECKPOINT_METADATA', 'commit_success.txt'}
  assert manifest.verify(epath.Path(step)) is None
  shutil.rmtree(step)
  step.mkdir()
  assert manifest.verify(epath.Path(step)) == 'it has no manifest.json'


@pytest.mark.parametrize('change', ['garbage', 'gone'])
def test_files_that_are_not_listed_do_not_matter(change, workdir):
  for name in ('_CHECKPOINT_METADATA', 'commit_success.txt'):
    path = workdir / 'checkpoints/6' / name
    path.write_text('garbage') if change == 'garbage' else path.unlink(missing_ok=True)
  with Checkpointer(workdir, keep=3) as checkpointer:
    assert checkpointer.latest_step() == 6 and checkpointer.notes == []
    np.testing.assert_array_equal(
      restored(checkpointer, 6)['params']['kernel'], state(6)['params']['kernel']
    )


def biggest(step):
  return max(files(step), key=lambda path: path.stat().st_size)


def damage(workdir, step):
  path = biggest(workdir / 'checkpoints' / str(step))
  path.write_bytes(path.read_bytes()[:-1] + b'?')
  return path.name


def test_the_newest_intact_one_is_used(workdir):
  folder = workdir / 'checkpoints'
  name = damage(workdir, 6)
  shutil.rmtree(folder / '4/default/ocdbt.process_0')
  (folder / '8.orbax-checkpoint-tmp/default').mkdir(parents=True)
  np.testing.assert_array_equal(
    read_step(find_step(workdir))['kernel'], state(2)['params']['kernel']
  )
  with Checkpointer(workdir, keep=3) as checkpointer:
    assert checkpointer.latest_step() == 2
    first, second, third = checkpointer.notes
    assert first == '8.orbax-checkpoint-tmp was cut short; going on without it'
    assert name in second and 'checkpoint 6 is damaged' in second and 'one is 2' in second
    assert 'checkpoint 4 is damaged' in third and 'is missing' in third
    np.testing.assert_array_equal(
      restored(checkpointer, 2)['params']['kernel'], state(2)['params']['kernel']
    )
    assert {child.name for child in folder.iterdir()} == {'1', '2', '4.damaged', '6.damaged'}
    # The run goes on and writes these steps again.
    checkpointer.save(4, state(4), None)
    checkpointer.save(6, state(6), None)
  damage(workdir, 6)
  with Checkpointer(workdir, keep=3) as checkpointer:
    assert checkpointer.latest_step() == 4
    assert not checkpointer.is_best(0.8) and checkpointer.is_best(0.95)  # step 1 had 0.9
  assert {child.name for child in folder.iterdir()} == {'1', '2', '4', '4.damaged', '6.damaged'}


def test_without_an_intact_one_nothing_starts_from_the_beginning(workdir):
  for step in (1, 2, 4, 6):
    damage(workdir, step)
  for _ in range(2):
    assert has_checkpoint(workdir)
    with pytest.raises(UserError, match='No checkpoint in .* is intact .*6: .*; 4: '):
      Checkpointer(workdir, keep=3)
  with pytest.raises(UserError, match='No checkpoint'):
    find_step(workdir)


def test_an_old_damage_does_not_disturb(workdir):
  (workdir / 'checkpoints/1/metrics/metrics').write_text('{')
  shutil.rmtree(workdir / 'checkpoints/2')
  (workdir / 'checkpoints/2').mkdir()
  with Checkpointer(workdir, keep=3) as checkpointer:
    assert checkpointer.latest_step() == 6
    assert len(checkpointer.notes) == 2


def test_checkpoints_without_manifests_are_taken_as_they_are(workdir):
  for path in workdir.glob('checkpoints/*/manifest.json'):
    path.unlink()
  assert find_step(workdir).parent.name == '6'
  with Checkpointer(workdir, keep=3) as checkpointer:
    assert checkpointer.latest_step() == 6
    (note,) = checkpointer.notes
    assert 'taken as they are' in note


def test_what_cannot_be_read_is_not_called_damaged(workdir, monkeypatch):
  def fail(path):
    raise OSError(errno.EIO, 'Input/output error')

  monkeypatch.setattr(manifest, '_size', fail)
  with pytest.raises(UserError, match='cannot be read: Input/output error'):
    Checkpointer(workdir, keep=3)
  assert not list(workdir.glob('checkpoints/*.damaged'))


@pytest.mark.skipif(os.getuid() != 0, reason='only root can give files away')
def test_owners_without_a_name(workdir):
  for path in pathlib.Path(workdir).rglob('*'):
    os.chown(path, 54321, 54321)
  assert manifest.verify(epath.Path(workdir / 'checkpoints/6')) is None


def test_a_checkpoint_of_another_model_is_refused(workdir):
  with Checkpointer(workdir, keep=3) as checkpointer:
    with pytest.raises(UserError, match='checkpoints/6 cannot be read'):
      checkpointer.restore(6, {'params': {'bias': jax.ShapeDtypeStruct((3,), np.float32)}})
