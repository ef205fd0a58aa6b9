"""The compiled parts of a run: its model, what its state looks like on a mesh, its jitted steps.

Nothing is allocated and nothing is compiled here, so the same program can be run on the devices
there are (training/loop.py) or compiled for a pod that is not there (plan.py).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from vit_jax import config as config_lib
from vit_jax.models import build
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.training import optim
from vit_jax.training.step import init_state, make_eval_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
  """What a config means on a mesh.

  Attributes:
    mesh: the devices.
    model: the linen module.
    image_size: (height, width), pixels.
    abstract_state: a `TrainState` of `ShapeDtypeStruct`s with their shardings.
    init: (params or None) -> TrainState, jitted; the parameters are donated.
    train_step: (state, batch, key) -> (state, metrics), jitted; the state is donated.
    eval_step: (params, batch) -> sums, jitted.
    abstract_batch: a global batch of `ShapeDtypeStruct`s, as `train_step` takes it.
  """

  mesh: Mesh
  model: build.Model
  image_size: tuple[int, int]
  abstract_state: Any
  init: Any
  train_step: Any
  eval_step: Any
  abstract_batch: dict[str, jax.ShapeDtypeStruct]

  @property
  def state_shardings(self) -> Any:
    """A `TrainState` of `NamedSharding`s."""
    return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)

  def lower(self) -> jax.stages.Lowered:
    """The train step, lowered for the mesh's devices, which need not exist here."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return self.train_step.lower(self.abstract_state, self.abstract_batch, key)


  def compile(self) -> jax.stages.Compiled:
    """The train step, compiled for the mesh's devices."""
    return self.lower().compile()


def build_program(
    config: ml_collections.ConfigDict, mesh: Mesh, num_classes: int, multi_label: bool = False
) -> Program:
  """Builds the program of `config` on `mesh`.

  Args:
    config: all fields of configs/default.py.
    mesh: axes data, fsdp and tensor, as `make_mesh` makes it.
    num_classes: of the training data.
    multi_label: labels are (B, C) uint8 rather than (B,) int32.

  Raises:
    UserError: for values in the config that do not go together.
  """
  size = config_lib.image_size(config.data.image_size)
  replicated, batch_sharding = mesh_lib.replicated(mesh), mesh_lib.batch_sharding(mesh)
  model = build.model_from_config(
      config.model,
      num_classes,
      constrain=lambda tokens: jax.lax.with_sharding_constraint(tokens, batch_sharding),
      platform=mesh.devices.flat[0].platform,
  )
  schedule = optim.make_schedule(config.schedule, config.total_steps)
  optimizer = optim.make_optimizer(config.optimizer, schedule)
  init = functools.partial(
      init_state, model, optimizer, size, config.seed, config.polyak_decay > 0,
      channels=config.data.channels,
  )  # fmt: skip
  abstract = jax.eval_shape(init)
  shardings = mesh_lib.state_shardings(abstract, mesh)
  train_step = make_train_step(
      model,
      optimizer,
      schedule,
      loss=config.loss,
      label_smoothing=config.label_smoothing,
      mixup_alpha=config.mixup_alpha,
      cutmix_alpha=config.cutmix_alpha,
      accumulation_steps=config.accumulation_steps,
      polyak_decay=config.polyak_decay,
  )
  batch = {
      'image': ((*size, config.data.channels), jnp.uint8),
      'label': ((num_classes,), jnp.uint8) if multi_label else ((), jnp.int32),
  }
  return Program(
      mesh=mesh,
      model=model,
      image_size=size,
      abstract_state=mesh_lib.with_shardings(abstract, shardings),
      init=jax.jit(init, out_shardings=shardings, donate_argnums=0),
      train_step=jax.jit(
          train_step,
          in_shardings=(shardings, batch_sharding, replicated),
          out_shardings=(shardings, replicated),
          donate_argnums=0,
      ),
      eval_step=jax.jit(
          make_eval_step(model, config.loss),
          in_shardings=(shardings.params, batch_sharding),
          out_shardings=replicated,
      ),
      abstract_batch={
          name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=batch_sharding)
          for name, (shape, dtype) in batch.items()
      },
  )
