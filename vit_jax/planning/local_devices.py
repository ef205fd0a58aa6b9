"""Batches in parts that the devices of this machine hold, found before a run by its compiler."""

import dataclasses

from vit_jax.config import Config
from vit_jax.distributed import sharding
from vit_jax.errors import DeviceMemoryError
from vit_jax.hardware import device_memory
from vit_jax.planning.compile import compile_program
from vit_jax.planning.planner import Labels
from vit_jax.text import plural
from vit_jax.training.program import build_program


@dataclasses.dataclass(frozen=True)
class Fit:
  """A config that fits the devices of this machine.

  Attributes:
    config: with the `accumulation_steps` that it needs.
    micro_batch: images that one device computes with at once.
    needed: bytes of one device; None where the compiler does not say.
    limit: bytes that it has; None if unknown.
  """

  config: Config
  micro_batch: int
  needed: int | None
  limit: int | None

  def __str__(self) -> str:
    text = f'a batch has {self.config.batch_size:,} images; a device computes with '
    text += f'{self.micro_batch:,} at once'
    if self.needed is not None:
      text += f', in {self.needed / 2**30:.1f} GiB'
      text += '' if self.limit is None else f' of {self.limit / 2**30:.1f} GiB'
    return text


def fit_local_devices(config: Config, labels: Labels, limit: int | None = None) -> Fit:
  """Divides the batches of a run into as few parts as fit the devices of this machine.

  The train step is compiled with the `accumulation_steps` of the config, then with twice as many,
  until it fits. They change no result, only the time.

  Args:
    config: after `resolve_steps`.
    labels: of the training data, as `planner.read_labels` returns them.
    limit: bytes of one device; None: what it has.

  Raises:
    DeviceMemoryError: if not even the smallest part fits.
    UserError: for a config that cannot run on these devices.
  """
  mesh = sharding.make_mesh(config.mesh)
  if limit is None:
    limit = device_memory(mesh.devices.flat[0])
  while True:
    sections = (config.model, config.optimizer, config.schedule, config.step)
    shape = config.data.image_shape
    program = build_program(mesh, *sections, shape, *labels, lora=config.lora)
    needed = compile_program(program).memory.needed
    micro = sharding.batch_sizes(mesh, config.batch_size, config.accumulation_steps)['micro']
    if needed is None or limit is None or needed <= limit:
      return Fit(config, micro, needed, limit)
    if micro % 2:
      raise DeviceMemoryError(
        f'A device does not hold {plural(micro, "image")} of a batch; choose a smaller model or '
        'image size, or a batch size that can be halved more often.'
      )
    config = dataclasses.replace(config, accumulation_steps=2 * config.accumulation_steps)
