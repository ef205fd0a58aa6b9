"""The compiled parts of a run: its model, what its state looks like on a mesh, its jitted steps.

Building a program allocates and compiles nothing, so the same one runs on the devices of this
machine (training/loop.py) or is compiled for a pod that is not at hand (planning/).
"""

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding

from vit_jax.compiler import compiler_options, init_compiler_options
from vit_jax.config import (
  NO_LORA,
  LoraConfig,
  ModelConfig,
  OptimizerConfig,
  ScheduleConfig,
  StepConfig,
)
from vit_jax.distributed import sharding
from vit_jax.errors import UserError
from vit_jax.evaluation.eval_step import make_eval_step
from vit_jax.evaluation.masked_patch_scores import make_masked_eval_step
from vit_jax.models import build, flops
from vit_jax.models.lora import has_adapters, merge_adapters
from vit_jax.models.masked_patches import MaskedPatchPredictor, with_prediction_head
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.resnet import BiTResNet
from vit_jax.models.vit import VisionTransformer
from vit_jax.training.optimizer import make_optimizer, make_schedule
from vit_jax.training.parameter_groups import check_groups, trained_params
from vit_jax.training.sharpness import make_rho
from vit_jax.training.step import TrainState, init_state, make_train_step


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """A compiled train step: `call` as `Program.train_step`, and the seconds of its compilation."""

  call: jax.stages.Compiled
  seconds: float


@dataclasses.dataclass(frozen=True)
class Program:
  """What a config means on a mesh."""

  mesh: Mesh
  model: build.Model
  step: StepConfig  # length, batch and loss of the run
  image_shape: tuple[int, int, int]  # (H, W, C) of a batch's images
  abstract_state: Any  # a `TrainState` of `ShapeDtypeStruct`s with their shardings
  param_shardings: Any  # `NamedSharding`s of the parameters that the model takes
  trained_names: frozenset[str]  # of the parameters that are not frozen, adapters included
  num_trained: int  # how many numbers they hold
  abstract_batch: dict[str, jax.ShapeDtypeStruct]  # a global batch, as `train_step` takes it
  init: Any  # (params or None) -> TrainState, jitted; the parameters are donated
  train_step: Any  # (state, batch, key) -> (state, metrics), jitted; the state is donated
  eval_step: Any  # (params, batch) -> scores, jitted
  gather: Any  # parameters, or their average -> as the model takes and shards them; jitted

  @property
  def state_shardings(self) -> Any:
    """A `TrainState` of `NamedSharding`s."""
    return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)

  @property
  def train_flops(self) -> int:
    """FLOPs of a step on all devices: forward passes, and backward passes of what is trained."""
    images = self.step.batch_size * self.step.gradients_per_step
    return images * flops.train_flops(self.model, self.image_shape[:2], self.trained_names)

  def eval_params(self, state: TrainState) -> Any:
    """`state.eval_params` as the model takes them; the arrays of `state` where they are that.

    Adapters are merged; the average of kernels with adapters is that of their factors.
    """
    wanted, params = self.param_shardings, state.eval_params
    if has_adapters(params):
      return self.gather(params)

    def is_sharded(array: jax.Array, sharding: NamedSharding) -> bool:
      return array.sharding.is_equivalent_to(sharding, array.ndim)

    return params if jax.tree.all(jax.tree.map(is_sharded, params, wanted)) else self.gather(params)

  def random_key(self) -> jax.Array:
    """The key of the run, which each step folds its number into; on all devices."""
    make_key = functools.partial(jax.random.key, self.step.seed)
    return jax.jit(make_key, out_shardings=sharding.replicated(self.mesh))()

  def lower(self) -> jax.stages.Lowered:
    """The train step, lowered for the mesh's devices, which need not exist here."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return self.train_step.lower(self.abstract_state, self.abstract_batch, key)

  def compile(self) -> CompiledStep:
    """Compiles the train step for the mesh's devices, which need not exist here."""
    start = time.monotonic()
    return CompiledStep(self.lower().compile(), time.monotonic() - start)

  def start_compiling(self) -> concurrent.futures.Future[CompiledStep]:
    """Compiles the train step in a thread, while the caller makes or restores the state."""
    executor = concurrent.futures.ThreadPoolExecutor(1, 'compile')
    compiling = executor.submit(self.compile)
    executor.shutdown(wait=False)  # the thread ends with its only task
    return compiling


def build_program(
  mesh: Mesh,
  model_config: ModelConfig,
  optimizer_config: OptimizerConfig,
  schedule_config: ScheduleConfig,
  step: StepConfig,
  image_shape: tuple[int, int, int],
  num_classes: int,
  multi_label: bool = False,
  lora: LoraConfig = NO_LORA,
) -> Program:
  """Builds the program of a run.

  Args:
    mesh: axes data, fsdp and tensor, as `make_mesh` makes it.
    model_config, optimizer_config, schedule_config, step: of the run.
    image_shape: (H, W, C) of the images.
    num_classes: of the training data.
    multi_label: labels are (B, C) uint8 rather than (B,) int32.
    lora: of the run.

  Raises:
    UserError: for values that do not go together, or that the mesh does not divide.
  """
  is_supervised = step.objective == 'supervised'
  if is_supervised and multi_label and step.loss == 'softmax':
    raise UserError(
      'The data has several labels per image, but config.loss=softmax expects one; set '
      '--config.loss=sigmoid.'
    )
  schedule = make_schedule(schedule_config, step.total_steps)
  optimizer = make_optimizer(optimizer_config, schedule)
  replicated, batch_sharding = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  model, train_model = _build_models(mesh, model_config, step, image_shape, num_classes)
  select_trained = functools.partial(trained_params, optimizer_config)
  init = functools.partial(
    init_state,
    model,
    optimizer,
    image_shape,
    step.seed,
    use_ema=step.ema_decay > 0,
    lora=lora,
    select_trained=select_trained,
  )
  abstract = jax.eval_shape(init)
  check_groups(optimizer_config, abstract.params)
  trained = select_trained(abstract.params)
  merge = functools.partial(merge_adapters, scale=lora.scale)
  param_shardings = sharding.state_shardings(jax.eval_shape(merge, abstract.params), mesh)
  shardings = sharding.state_shardings(abstract, mesh)
  platform = mesh.devices.flat[0].platform
  options = compiler_options(platform)
  label = ((num_classes,), jnp.uint8) if multi_label else ((), jnp.int32)
  return Program(
    mesh=mesh,
    model=model,
    step=step,
    image_shape=image_shape,
    abstract_state=sharding.with_shardings(abstract, shardings),
    init=jax.jit(
      init,
      out_shardings=shardings,
      donate_argnums=0,
      compiler_options=init_compiler_options(platform),
    ),
    train_step=jax.jit(
      make_train_step(
        train_model,
        optimizer,
        schedule,
        step,
        make_rho(step, schedule_config, schedule),
        sharding.gradient_shardings(trained, mesh),
        select_trained,
        lora.scale,
      ),
      in_shardings=(shardings, batch_sharding, replicated),
      out_shardings=(shardings, replicated),
      donate_argnums=0,
      compiler_options=options,
    ),
    eval_step=jax.jit(
      _make_eval_step(model, step.loss),
      in_shardings=(param_shardings, batch_sharding),
      out_shardings=replicated,
      compiler_options=options,
    ),
    gather=jax.jit(merge, out_shardings=param_shardings),
    param_shardings=param_shardings,
    trained_names=_names(trained),
    num_trained=build.count_parameters(trained),
    abstract_batch={
      name: jax.ShapeDtypeStruct((step.batch_size, *shape), dtype, sharding=batch_sharding)
      for name, (shape, dtype) in {'image': (image_shape, jnp.uint8), 'label': label}.items()
    },
  )


def _make_eval_step(model: Any, loss: str) -> Callable[..., Any]:
  """The scores of a batch, by the objective that the model is trained for."""
  if isinstance(model, MaskedPatchPredictor):
    return make_masked_eval_step(model)
  return make_eval_step(model, loss)


def _names(trained: Any) -> frozenset[str]:
  """'head/kernel', … of the leaves that are not None."""
  flat = traverse_util.flatten_dict(trained, sep='/')
  return frozenset(name for name, x in flat.items() if x is not None)


def _build_models(
  mesh: Mesh,
  config: ModelConfig,
  step: StepConfig,
  image_shape: tuple[int, int, int],
  num_classes: int,
) -> tuple[build.Model, build.Model]:
  """The model for evaluation, and the one for `train_step`.

  With accumulation the latter sees one part of the axis `data`.
  """
  is_supervised = step.objective == 'supervised'

  def build_model(batch_axes: Sequence[str]) -> build.Model:
    platform = mesh.devices.flat[0].platform
    classes = num_classes if is_supervised else 0
    model = build.model_from_config(config, classes, platform, mesh, batch_axes)
    _check_mesh(mesh, model, step, image_shape)
    if is_supervised or not isinstance(model, VisionTransformer):
      return model
    return with_prediction_head(model, step.masked_target, image_shape)

  model = build_model(sharding.BATCH_AXES)
  return model, model if step.accumulation_steps == 1 else build_model(('fsdp',))


def _check_mesh(
  mesh: Mesh, model: build.Model, step: StepConfig, image_shape: tuple[int, int, int]
) -> None:
  """Raises `UserError` unless images, batch, heads and MLP divide as they must."""
  build.check_image_size(image_shape[:2], model, 'data.image_size')
  build.check_channels(image_shape[2], model)
  sharding.check_batch_size(mesh, step.batch_size, 'batch_size')
  micro = step.batch_size // step.accumulation_steps
  sharding.check_batch_size(mesh, micro, 'the micro-batch (batch_size / accumulation_steps)')
  shards = mesh.shape['tensor']
  if shards == 1:
    return
  if isinstance(model, BiTResNet):
    raise UserError(
      f'mesh.tensor is {shards}, but a ResNet has no heads and MLPs to split; set it to 1.'
    )
  names = ('token_mlp_dim', 'mlp_dim') if isinstance(model, MlpMixer) else ('num_heads', 'mlp_dim')
  for name in names:
    if (size := getattr(model, name)) % shards:
      raise UserError(f'model.{name} is {size}, which mesh.tensor={shards} does not divide.')
