"""Checkpoints: damage of any kind is detected, and the newest intact one is used."""

import errno
import json
import os
import pathlib
import resource
import shutil
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from vit_jax import retries
from vit_jax.checkpoints import manifest
from vit_jax.checkpoints.damage import has_checkpoint
from vit_jax.checkpoints.manager import Checkpointer
from vit_jax.checkpoints.stored_params import find_checkpoint, read_params
from vit_jax.config import MeshConfig, OptimizerConfig
from vit_jax.distributed import sharding
from vit_jax.errors import MachineError, UserError
from vit_jax.models.vit import VisionTransformer
from vit_jax.training.optimizer import make_optimizer
from vit_jax.training.step import init_state


def make_state(step):
  rng = np.random.default_rng(step)
  return {
    'params': {'kernel': rng.normal(size=(64, 300)).astype(np.float32)},
    'step': np.int32(step),
  }


def restore(checkpointer, step):
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), make_state(0)
  )
  return checkpointer.restore(step, abstract)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  workdir = epath.Path(tmp_path_factory.mktemp('saved'))
  with Checkpointer(workdir, keep=3) as checkpointer:
    for step in (1, 2, 4, 6):
      checkpointer.save(step, make_state(step), score={1: 0.9, 4: 0.5}.get(step))
  assert checkpointer.warnings == []
  return workdir


@pytest.fixture
def workdir(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'run')
  return epath.Path(tmp_path / 'run')


def files(step):
  return sorted(path for path in pathlib.Path(step).rglob('*') if path.is_file())


def test_damage_to_any_file_is_detected(saved, tmp_path):
  step = tmp_path / '6'
  shutil.copytree(saved / 'checkpoints/6', step)
  assert manifest.verify(epath.Path(step)) is None
  listed = json.loads((step / 'manifest.json').read_text())
  rng = np.random.default_rng(0)
  not_listed = set()
  for path in files(step):
    name, content = str(path.relative_to(step)), path.read_bytes()
    if name not in listed and name != 'manifest.json':
      not_listed.add(name)
      continue
    flipped = bytearray(content)
    flipped[rng.integers(len(content))] ^= 1 << rng.integers(8)
    for damaged in (bytes(flipped), content[: len(content) // 2], b'', content + b'\0', None):
      path.unlink() if damaged is None else path.write_bytes(damaged)
      assert manifest.verify(epath.Path(step)), (name, damaged)
      path.write_bytes(content)
  # Orbax writes these after the manifest (newer versions the second); a restore ignores them.
  assert not_listed <= {'_CHECKPOINT_METADATA', 'commit_success.txt'}
  assert manifest.verify(epath.Path(step)) is None
  shutil.rmtree(step)
  step.mkdir()
  assert manifest.verify(epath.Path(step)) == 'it has no manifest.json'


@pytest.mark.parametrize('change', ['garbage', 'removed'])
def test_files_outside_the_manifest_may_be_damaged(change, workdir):
  for name in ('_CHECKPOINT_METADATA', 'commit_success.txt'):
    path = workdir / 'checkpoints/6' / name
    path.write_text('garbage') if change == 'garbage' else path.unlink(missing_ok=True)
  with Checkpointer(workdir, keep=3) as checkpointer:
    assert checkpointer.latest_step() == 6 and checkpointer.warnings == []
    np.testing.assert_array_equal(
      restore(checkpointer, 6)['params']['kernel'], make_state(6)['params']['kernel']
    )


def largest_file(step):
  return max(files(step), key=lambda path: path.stat().st_size)


def damage(workdir, step):
  path = largest_file(workdir / 'checkpoints' / str(step))
  content = bytearray(path.read_bytes())
  content[-1] ^= 1  # it differs from run to run, so a constant may be the byte that is there
  path.write_bytes(content)
  return path.name


def test_the_newest_intact_checkpoint_is_used(workdir):
  folder = workdir / 'checkpoints'
  name = damage(workdir, 6)
  shutil.rmtree(folder / '4/default/ocdbt.process_0')
  (folder / '8.orbax-checkpoint-tmp/default').mkdir(parents=True)
  np.testing.assert_array_equal(
    read_params(find_checkpoint(workdir))['kernel'], make_state(2)['params']['kernel']
  )
  with Checkpointer(workdir, keep=3) as checkpointer:
    assert checkpointer.latest_step() == 2
    first, second, third = checkpointer.warnings
    assert first == 'the save 8.orbax-checkpoint-tmp was interrupted and is ignored'
    assert name in second and 'checkpoint 6 is damaged' in second and 'one is 2' in second
    assert 'checkpoint 4 is damaged' in third and 'is missing' in third
    np.testing.assert_array_equal(
      restore(checkpointer, 2)['params']['kernel'], make_state(2)['params']['kernel']
    )
    names = {child.name for child in folder.iterdir()}
    names.discard('8.orbax-checkpoint-tmp')  # Orbax removes it in the background, before a save
    assert names == {'1', '2', '4.damaged', '6.damaged'}
    # The resumed run writes these steps again.
    checkpointer.save(4, make_state(4), None)
    checkpointer.save(6, make_state(6), None)
  damage(workdir, 6)
  with Checkpointer(workdir, keep=3) as checkpointer:
    assert checkpointer.latest_step() == 4
    assert not checkpointer.is_best(0.8) and checkpointer.is_best(0.95)  # step 1 had 0.9
  assert {child.name for child in folder.iterdir()} == {'1', '2', '4', '4.damaged', '6.damaged'}


def test_a_run_without_an_intact_checkpoint_does_not_start_over(workdir):
  for step in (1, 2, 4, 6):
    damage(workdir, step)
  for _ in range(2):
    assert has_checkpoint(workdir)
    with pytest.raises(UserError, match='No checkpoint in .* is intact .*6: .*; 4: '):
      Checkpointer(workdir, keep=3)
  with pytest.raises(UserError, match='No checkpoint'):
    find_checkpoint(workdir)


def test_damage_to_an_older_checkpoint_does_not_matter(workdir):
  (workdir / 'checkpoints/1/metrics/metrics').write_text('{')
  shutil.rmtree(workdir / 'checkpoints/2')
  (workdir / 'checkpoints/2').mkdir()
  with Checkpointer(workdir, keep=3) as checkpointer:
    assert checkpointer.latest_step() == 6
    assert len(checkpointer.warnings) == 2


def test_checkpoints_without_manifests_are_used_without_verification(workdir):
  for path in workdir.glob('checkpoints/*/manifest.json'):
    path.unlink()
  assert find_checkpoint(workdir).parent.name == '6'
  with Checkpointer(workdir, keep=3) as checkpointer:
    assert checkpointer.latest_step() == 6
    (warning,) = checkpointer.warnings
    assert warning.endswith('have no manifest.json, so they are used without verification')


def test_an_unreadable_checkpoint_does_not_count_as_damaged(workdir, monkeypatch):
  def fail(path):
    raise OSError(errno.EIO, 'Input/output error')

  monkeypatch.setattr(manifest, '_size', fail)
  monkeypatch.setattr(retries, '_TOTAL_SECONDS', 0)
  with pytest.raises(MachineError, match=r'cannot be read \(Input/output error\) on .*; rerun'):
    Checkpointer(workdir, keep=3)
  assert not list(workdir.glob('checkpoints/*.damaged'))


@pytest.mark.skipif(os.getuid() != 0, reason='only root can give files away')
def test_files_of_an_owner_without_a_user_name_can_be_verified(workdir):
  for path in pathlib.Path(workdir).rglob('*'):
    os.chown(path, 54321, 54321)
  assert manifest.verify(epath.Path(workdir / 'checkpoints/6')) is None


def test_a_checkpoint_of_another_model_is_refused(workdir):
  with Checkpointer(workdir, keep=3) as checkpointer:
    with pytest.raises(
      UserError, match='checkpoints/6 cannot be read although its files are intact'
    ):
      checkpointer.restore(6, {'params': {'bias': jax.ShapeDtypeStruct((3,), np.float32)}})


@pytest.mark.parametrize('change', [{'shape': [2**20, 2**20]}, {'chunks': [2**20, 2**20]}])
def test_arrays_that_the_files_cannot_hold_are_not_allocated(change, tmp_path):
  folder = epath.Path(tmp_path / 'x')
  with ocp.PyTreeCheckpointer(use_ocdbt=False) as checkpointer:
    checkpointer.save(folder, make_state(1))
  assert read_params(folder)['kernel'].shape == (64, 300)
  file = folder / 'params.kernel' / '.zarray'
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(UserError, match='declares 4,398,046,511,104 bytes of arrays in ') as caught:
    read_params(folder)
  assert '\n' not in str(caught.value)
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


def test_a_pipe_among_the_files_is_not_read(tmp_path):
  with Checkpointer(epath.Path(tmp_path), keep=1) as checkpointer:
    checkpointer.save(1, make_state(1), None)
  metadata = tmp_path / 'checkpoints' / '1' / 'default' / '_METADATA'
  metadata.unlink()
  os.mkfifo(metadata)
  with pytest.raises(UserError, match='is intact'):
    find_checkpoint(epath.Path(tmp_path))
  (tmp_path / 'checkpoints' / '1' / manifest.MANIFEST).unlink()
  with pytest.raises(UserError, match='_METADATA is a pipe or a device'):
    read_params(epath.Path(metadata.parent))


@flax.struct.dataclass
class OldTrainState:
  """The state of older versions, whose moving average had another name."""

  step: Any
  params: Any
  opt_state: Any
  average: Any


@pytest.mark.skipif(jax.device_count() != 8, reason='written for eight devices')
@pytest.mark.parametrize('use_ema', [True, False])
def test_the_state_of_an_older_version_is_restored(use_ema, tmp_path):
  optimizer = make_optimizer(OptimizerConfig(), lambda step: jnp.float32(0.1))
  model = VisionTransformer(4, 64, 1, 256, 4, num_classes=3)
  state = init_state(model, optimizer, (8, 8, 3), seed=0, use_ema=use_ema)
  state = jax.tree.map(lambda x: x + x.size, state)  # moments and average differ, too
  if use_ema:
    state = state.replace(ema_params=jax.tree.map(lambda x: 2 * x, state.params))
  old_state = OldTrainState(state.step, state.params, state.opt_state, state.ema_params)
  with Checkpointer(epath.Path(tmp_path), keep=1) as checkpointer:
    checkpointer.save(1, old_state, score=None)
  mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  shardings = sharding.state_shardings(state, mesh)
  with Checkpointer(epath.Path(tmp_path), keep=1) as checkpointer:
    restored = checkpointer.restore(1, sharding.with_shardings(state, shardings))
  assert type(restored) is type(state)
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  assert jax.tree.map(lambda x: x.sharding, restored) == shardings
  params = read_params(find_checkpoint(epath.Path(tmp_path)))
  np.testing.assert_array_equal(params['head/bias'], state.eval_params['head']['bias'])


def test_the_accuracy_of_an_older_version_is_its_score(workdir):
  path = workdir / 'checkpoints' / '1' / 'metrics' / 'metrics'
  path.write_text(path.read_text().replace('score', 'accuracy'))
  manifest.write_manifest(path.parent.parent)
  with Checkpointer(workdir, keep=3) as checkpointer:
    assert checkpointer.warnings == []
    assert not checkpointer.is_best(0.89) and checkpointer.is_best(0.91)


def test_processes_make_and_verify_a_manifest_together(saved, tmp_path):
  folder = epath.Path(tmp_path / '6')
  shutil.copytree(saved / 'checkpoints/6', folder)
  expected = json.loads((folder / 'manifest.json').read_text())
  names = ('default/ocdbt.process_1/d/x', 'default/ocdbt.process_10/d/y')
  for name in names:
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text(name)
  for process in (0, 1, 10):
    manifest.write_part(folder, process)
  part = json.loads((folder / 'manifest.process_1.json').read_text())
  assert list(part) == [names[0]]
  # Process 0 takes the entries of a part, and does not read its files again.
  part[names[0]]['crc32'] += 1
  (folder / 'manifest.process_1.json').write_text(json.dumps(part))
  manifest.write_manifest(folder)
  entries = json.loads((folder / 'manifest.json').read_text())
  assert entries.keys() - {'commit_success.txt'} == expected.keys() | set(names)
  assert entries | expected == entries and entries[names[0]] == part[names[0]]
  assert not list(folder.glob('manifest.process_*'))
  problems = [manifest.verify(folder, share=(i, 3)) for i in range(3)]
  assert [problem for problem in problems if problem] == [manifest.verify(folder)]
  assert names[0] in manifest.verify(folder)
