"""What a run would need on given devices: its train step, compiled for them, and arithmetic."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from vit_jax.config import Config, MeshConfig, flatten, replace_fields
from vit_jax.data.sources import open_source
from vit_jax.distributed import sharding
from vit_jax.errors import UserError
from vit_jax.models import flops
from vit_jax.models.build import count_parameters
from vit_jax.models.variants import VARIANTS
from vit_jax.models.vit import REMAT
from vit_jax.planning import topologies
from vit_jax.planning.collectives import Collective
from vit_jax.planning.compile import Memory, argument_bytes, compile_program
from vit_jax.planning.topologies import Topology
from vit_jax.training.preflight import check_num_classes
from vit_jax.training.program import Program, build_program

_REMAT = tuple(REMAT)  # in the order of what they compute again, the least first
_DOUBLINGS = 4  # of fsdp and of accumulation_steps, at most


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a config means on a topology.

  Attributes:
    topology: the devices.
    changes: config fields that differ from what was asked for, with their values.
    mesh: {axis: devices along it}.
    num_slices, num_chips, num_devices, num_hosts: of the whole run.
    parameters: of the model.
    global_batch, host_batch, device_batch, micro_batch: examples a step; that a host reads; that
      a device holds; that it computes with at once.
    memory: bytes of one device.
    limit: bytes of HBM a device's program can have; None: not known.
    fits: whether it has room; None where no limit is known.
    collectives: of one device and step, a row a kind; empty when it does not fit.
    train_flops, recomputed_flops: of a step on all devices, forward and backward; and what
      rematerialisation adds.
    min_step_seconds: a step takes at least this long, for its matrix products alone at the chips'
      peak; None where no peak is known.
    total_steps: of the run.
    compile_seconds: lowering and compiling, here.
    text: the lowered train step (StableHLO).
  """

  topology: Topology
  changes: dict[str, Any]
  mesh: dict[str, int]
  num_slices: int
  num_chips: int
  num_devices: int
  num_hosts: int
  parameters: int
  global_batch: int
  host_batch: int
  device_batch: int
  micro_batch: int
  memory: Memory
  limit: int | None
  fits: bool | None
  collectives: tuple[Collective, ...]
  train_flops: int
  recomputed_flops: int
  min_step_seconds: float | None
  total_steps: int
  compile_seconds: float
  text: str

  @property
  def bytes_over_limit(self) -> int | None:
    """Bytes over the limit; None when the compiler gave up before it knew."""
    needed = self.memory.needed
    return None if needed is None or self.limit is None else needed - self.limit

  @property
  def hours(self) -> float | None:
    """The run takes at least this long."""
    return self.min_step_seconds and self.min_step_seconds * self.total_steps / 3600

  @property
  def flags(self) -> str:
    """The changes, as flags of a command."""
    return ' '.join(f'--config.{name}={value}' for name, value in self.changes.items())


def classes_of(config: Config) -> tuple[int, bool]:
  """(number of classes, whether an example can have several) of the training data.

  Where there is no such data here the config names the number, and an example has one.

  Raises:
    UserError: when neither tells.
  """
  try:
    train = open_source(config.data.train.source, config.data.train.split)
  except UserError as error:
    if config.data.num_classes:
      return config.data.num_classes, False
    raise UserError(
      'The training data cannot be opened to count its classes; name them with '
      f'--config.data.num_classes=N. ({error})'
    ) from None
  check_num_classes(config.data.num_classes, train)
  return train.num_classes, train.multi_label


def resolve_steps(config: Config) -> Config:
  """The config with its steps; the training data is opened only if they are given in epochs."""
  size = 0
  if config.epochs > 0:
    size = open_source(config.data.train.source, config.data.train.split).size
  return config.resolve_steps(size)


def build_for(config: Config, topology: Topology, classes: tuple[int, bool]) -> Program:
  """The program that a run of `config` on `topology` would build; nothing is compiled.

  Raises:
    UserError: for a config that cannot run there.
  """
  devices = topologies.devices(topology, config.mesh.num_slices)
  mesh = sharding.make_mesh(config.mesh, devices)
  sharding.check_batch_size(mesh, config.eval_batch_size, 'eval_batch_size')
  return build_program(
    mesh,
    config.model,
    config.optimizer,
    config.schedule,
    config.step,
    config.data.image_shape,
    *classes,
  )


def make_plan(
  config: Config,
  topology: Topology,
  classes: tuple[int, bool],
  limit: int | None = None,
  changes: dict[str, Any] | None = None,
) -> Plan:
  """Compiles the train step of `config` for `topology`.

  Args:
    config: all fields of configs/default.py.
    topology: after `topologies.prepare`.
    classes: see `classes_of`.
    limit: bytes a device has; None: as the topology says.
    changes: fields of `config` to set first.

  Raises:
    UserError: for a config that cannot run there.
  """
  changes = changes or {}
  config = replace_fields(config, changes)
  program = build_for(config, topology, classes)
  step = compile_program(program)
  devices = list(program.mesh.devices.flat)
  slices = 1 if topology.chip is None else config.mesh.num_slices
  limit = topology.usable_bytes if limit is None else limit
  per_image = (flops.train_flops, flops.recomputed_flops)
  train, again = (f(program.model, program.image_shape[:2]) * config.batch_size for f in per_image)
  chips = topology.num_chips * slices
  peak = topology.chip and topology.chip.peak_flops * chips
  batch = sharding.batch_sizes(program.mesh, config.batch_size, config.accumulation_steps)
  if step.refusal is not None:
    fits = False
  else:
    fits = None if limit is None else step.memory.needed <= limit
  return Plan(
    topology=topology,
    changes=changes,
    mesh=dict(program.mesh.shape),
    num_slices=slices,
    num_chips=chips,
    num_devices=len(devices),
    num_hosts=len({device.process_index for device in devices}),
    parameters=count_parameters(program.abstract_state.params),
    **{f'{what}_batch': size for what, size in batch.items()},
    memory=step.memory,
    limit=limit,
    fits=fits,
    collectives=step.collectives,
    train_flops=train,
    recomputed_flops=again,
    min_step_seconds=None if peak is None else (train + again) / peak,
    total_steps=config.total_steps,
    compile_seconds=step.seconds,
    text=step.text,
  )


def fallback_configs(
  config: Config, topology: Topology, classes: tuple[int, bool], limit: int
) -> Iterator[dict[str, Any]]:
  """Changes that need less memory, by what they cost, the least first.

  More rematerialisation; then parameters split further (fsdp); then smaller micro-batches. Where
  the arguments alone do not fit, they are split first. Only what can run is named.
  """

  def runs(changes: dict[str, Any]) -> bool:
    return _arguments_fit(config, changes, topology, classes, limit)

  splits = [split for split in _splits(config.mesh) if runs(split)]
  if not splits:
    return
  remats = [{}]  # a ResNet has none
  if config.model.variant in VARIANTS:
    remats = [{'model.remat': name} for name in _REMAT[_REMAT.index(config.model.remat) :]]
  ways = [splits[0] | remat for remat in remats]
  ways += [split | remats[-1] for split in splits[1:]]
  for i in range(1, _DOUBLINGS + 1):
    ways.append(ways[-1] | {'accumulation_steps': config.accumulation_steps * 2**i})
  fields = flatten(config)
  for way in ways:
    changes = {name: value for name, value in way.items() if value != fields[name]}
    if changes and runs(changes):
      yield changes


def first_that_fits(
  config: Config,
  topology: Topology,
  classes: tuple[int, bool],
  limit: int,
  say: Callable[[Plan], None] = lambda plan: None,
) -> Plan | None:
  """Compiles the fallback_configs of a config that does not fit, and gives the first that does."""
  for changes in fallback_configs(config, topology, classes, limit):
    plan = make_plan(config, topology, classes, limit, changes)
    say(plan)
    if plan.fits:
      return plan
  return None


def _splits(mesh: MeshConfig) -> Iterator[dict[str, int]]:
  """fsdp as it is, doubled, doubled again…; data makes room for it."""
  for i in range(_DOUBLINGS + 1):
    split = {'mesh.fsdp': mesh.fsdp * 2**i}
    if mesh.data > 0:
      if mesh.data % 2**i:
        return
      split['mesh.data'] = mesh.data // 2**i
    yield split


def _arguments_fit(
  config: Config, changes: dict[str, Any], topology: Topology, classes: tuple[int, bool], limit: int
) -> bool:
  """Whether the state and the batch have room, which takes no compiling; False: it cannot run."""
  try:
    program = build_for(replace_fields(config, changes), topology, classes)
  except UserError:
    return False
  return argument_bytes(program) < limit
