"""Programs of this package, compiled and ready to be timed: of a config, or of a model's name."""

import dataclasses
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vit_jax.compiler import compiler_options
from vit_jax.config import Config
from vit_jax.distributed import sharding
from vit_jax.errors import UserError
from vit_jax.models.pixels import scale_pixels
from vit_jax.training.program import Program, build_program

HYBRIDS = {'R26': (2, 2, 2, 2), 'R50': (3, 4, 9)}  # units of each ResNet stage


def model_flags(name: str) -> list[str]:
  """'R50+B/16@384' -> config flags.

  Raises:
    UserError: for another kind of name.
  """
  match = re.fullmatch(r'(?:(R26|R50)\+)?([\w-]+?)(?:/(\d{1,3}))?(?:@(\d{1,5}))?', name)
  if not match:
    raise UserError(f'{name[:40]!r} is not a model such as B/16, L/16@384 or R50+B/16.')
  hybrid, variant, patch_size, image_size = match.groups()
  fields = {'variant': variant, 'patch_size': patch_size or 16}
  if hybrid:
    fields |= {'resnet_width': 64, 'resnet_blocks': HYBRIDS[hybrid]}
  flags = [f'--config.model.{key}={value}' for key, value in fields.items()]
  return [*flags, f'--config.data.image_size={image_size or 224}']


def make_program(config: Config, num_classes: int) -> Program:
  """The program of a config, on all devices, or on the first ones if its mesh names all axes."""
  axes = (config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
  devices = jax.devices() if -1 in axes else jax.devices()[: math.prod(axes)]
  return build_program(
    sharding.make_mesh(config.mesh, devices),
    config.model,
    config.optimizer,
    config.schedule,
    config.step,
    config.data.image_shape,
    num_classes,
  )


@dataclasses.dataclass
class Runner:
  """A compiled program with a state and a batch on its devices.

  Attributes:
    program: what was compiled.
    compiled: the executable of each pass, 'forward' and 'step'.
    compile_seconds: of each pass.
    state: of the run; each step replaces it.
    batch: random images and labels.
    key: of the run.
    loss: of the last step; None before.
  """

  program: Program
  compiled: dict[str, jax.stages.Compiled]
  compile_seconds: dict[str, float]
  state: Any
  batch: dict[str, jax.Array]
  key: jax.Array
  loss: float | None = None

  def run(self, kind: str, calls: int) -> float:
    """Seconds a call of a pass."""
    result, metrics = None, {}
    start = time.perf_counter()
    for _ in range(calls):
      if kind == 'forward':
        result = self.compiled[kind](self.state.params, self.batch['image'])
      else:
        self.state, metrics = self.compiled[kind](self.state, self.batch, self.key)
    jax.block_until_ready((result, metrics, self.state))
    seconds = time.perf_counter() - start
    if metrics:
      self.loss = float(metrics['train/loss'])
    return seconds / calls


def open_runner(program: Program, num_classes: int, passes: Sequence[str]) -> Runner:
  """Compiles the passes, and makes a random state and a random batch."""
  batch_sharding = sharding.batch_sharding(program.mesh)

  def forward(params: Any, images: jax.Array) -> Any:
    return program.model.apply({'params': params}, scale_pixels(images))

  jitted = jax.jit(
    forward,
    in_shardings=(program.state_shardings.params, batch_sharding),
    compiler_options=compiler_options(program.mesh.devices.flat[0].platform),
  )
  params, images = program.abstract_state.params, program.abstract_batch['image']
  lower = {'forward': lambda: jitted.lower(params, images), 'step': program.lower}
  compiled, seconds = {}, {}
  for kind in passes:
    start = time.perf_counter()
    compiled[kind] = lower[kind]().compile()
    seconds[kind] = time.perf_counter() - start
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.integers(0, 256, images.shape, dtype=np.uint8),
    'label': rng.integers(0, num_classes, images.shape[0], dtype=np.int32),
  }
  batch = jax.device_put(batch, batch_sharding)
  return Runner(program, compiled, seconds, program.init(None), batch, program.random_key())
