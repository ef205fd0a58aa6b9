"""The state of another run is read into the layout of a changed optimizer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tests.helpers import assert_same_tree, rate
from vit_jax.checkpoints.manager import Checkpointer
from vit_jax.checkpoints.source_checkpoint import choose_step, restore_state
from vit_jax.config import OptimizerConfig
from vit_jax.errors import UserError
from vit_jax.training.optimizer import make_optimizer
from vit_jax.training.step import TrainState

PLAIN = OptimizerConfig(clip_norm=0.0)
RICH = OptimizerConfig(
  clip_norm=1.0,
  weight_decay=0.1,
  head_decay_multiplier=2.0,
  head_lr_multiplier=2.0,
  skip_factor=3.0,
  momentum_dtype='bfloat16',
)


def make_state(config: OptimizerConfig, use_ema: bool) -> TrainState:
  """A state whose arrays all differ."""
  params = {'kernel': jnp.zeros((4, 300)), 'bias': jnp.zeros(300)}
  optimizer = make_optimizer(config, rate)
  state = TrainState(jnp.int32(0), params, optimizer.init(params), params if use_ema else None)
  leaves, tree = jax.tree.flatten(state)
  return tree.unflatten([jnp.full_like(x, i + 1) for i, x in enumerate(leaves)])


def abstract(state: TrainState) -> TrainState:
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), state)


def save(state: TrainState, workdir: epath.Path) -> epath.Path:
  with Checkpointer(workdir, keep=1) as checkpointer:
    checkpointer.save(6, state, score=None)
  return workdir


def adam(state: TrainState):
  return next(entry for entry in state.opt_state if hasattr(entry, 'mu'))


def test_the_same_layout_is_read_as_it_is(tmp_path):
  state = make_state(RICH, use_ema=True)
  workdir = save(state, epath.Path(tmp_path))
  read = restore_state(workdir, choose_step(workdir, None), abstract(state))
  assert_same_tree(read, state)
  assert jax.tree.structure(read) == jax.tree.structure(state)


@pytest.mark.parametrize(('old', 'new'), [(PLAIN, RICH), (RICH, PLAIN)])
@pytest.mark.parametrize('use_ema', [False, True])
def test_parts_without_moments_come_and_go(old, new, use_ema, tmp_path):
  state, wanted = make_state(old, use_ema), abstract(make_state(new, not use_ema))
  read = restore_state(save(state, epath.Path(tmp_path)), 6, wanted)
  assert jax.tree.structure(read) == jax.tree.structure(wanted)
  assert jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype, read, wanted))
  assert_same_tree((read.step, read.params), (state.step, state.params))
  jax.tree.map(np.testing.assert_array_equal, tuple(adam(read)), tuple(adam(state)))
  count = next(x for x in read.opt_state if type(x).__name__ == 'ScaleByScheduleState').count
  assert count == next(
    x.count for x in state.opt_state if type(x).__name__ == 'ScaleByScheduleState'
  )
  if new.skip_factor:
    assert not any(map(np.any, read.opt_state[-1]))
  if not use_ema:
    assert_same_tree(read.ema_params, state.params)


def test_what_does_not_fit_is_a_sentence(tmp_path):
  state = make_state(PLAIN, use_ema=False)
  workdir = save(state, epath.Path(tmp_path))
  wider = dataclasses.replace(state, params={'kernel': jnp.zeros((5, 300)), 'bias': jnp.zeros(300)})
  sgd = make_state(OptimizerConfig(name='sgd'), use_ema=False)
  more = dataclasses.replace(state, params=state.params | {'scale': jnp.zeros(300)})
  for other in (wider, sgd, more):
    with pytest.raises(UserError, match='does not fit this config'):
      restore_state(workdir, 6, abstract(other))


def test_a_folder_without_checkpoints(tmp_path):
  with pytest.raises(UserError, match='has no checkpoints'):
    choose_step(epath.Path(tmp_path), None)
