"""What a run needs on a topology: its train step compiled for those devices, FLOPs and time."""

import dataclasses
from typing import Any, NamedTuple

from vit_jax.config import Config, replace_fields
from vit_jax.data.sources import open_source
from vit_jax.distributed import sharding
from vit_jax.errors import UserError
from vit_jax.models import flops
from vit_jax.models.build import count_parameters
from vit_jax.planning.collectives import Collective
from vit_jax.planning.compile import Memory, compile_program
from vit_jax.planning.cycles import CycleEstimate
from vit_jax.planning.step_time import StepTime, step_time
from vit_jax.planning.topologies import Topology, get_devices
from vit_jax.training.preflight import check_num_classes
from vit_jax.training.program import Program, build_program


class Labels(NamedTuple):
  """The labels of a data set; an example of a multi-label one can have several classes."""

  num_classes: int
  multi_label: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a config needs on a topology; counts and FLOPs are those of a step on all devices."""

  topology: Topology
  changes: dict[str, Any]  # {config field: value} that differ from the config that was asked for
  mesh: dict[str, int]  # {axis: devices along it}
  num_slices: int
  num_chips: int
  num_devices: int
  num_hosts: int
  parameters: int  # of the model, adapters included
  trained_parameters: int  # of these, not frozen: they alone have gradients and moments
  global_batch: int  # examples of a step
  host_batch: int  # of these, read by a host
  device_batch: int  # held by a device
  micro_batch: int  # computed with at once by a device
  memory: Memory  # of one device
  limit: int | None  # bytes of HBM that one device's program can use; None if unknown
  fits: bool | None  # None if no limit is known
  collectives: tuple[Collective, ...]  # of one device and step; empty if the step does not fit
  train_flops: int  # of a step: forward passes, backward of what is trained; two with SAM
  recomputed_flops: int  # what rematerialization adds
  step_time: StepTime  # predicted, and lower bounds
  cycles: CycleEstimate | None  # of one device and step, by part; None if the compiler gives none
  hbm_bytes: int | None  # that one device moves in a step; None if the step does not fit
  total_steps: int  # of the run
  compile_seconds: float  # spent on lowering and compiling

  @property
  def bytes_over_limit(self) -> int | None:
    """Needed bytes minus the limit; None if either is unknown."""
    needed = self.memory.needed
    return None if needed is None or self.limit is None else needed - self.limit

  @property
  def min_step_seconds(self) -> float | None:
    """Lower bound, at the chips' peak FLOP/s; None if no peak is known."""
    return self.step_time.arithmetic

  @property
  def hours(self) -> float | None:
    """Lower bound of the run's time, in hours; None if no peak is known."""
    return self._hours(self.min_step_seconds)

  @property
  def chip_hours(self) -> float | None:
    """`hours` times the number of chips."""
    return self.hours and self.hours * self.num_chips

  @property
  def expected_hours(self) -> float | None:
    """The run's time by the compiler's cycles and what published runs take beyond them."""
    return self._hours(self.step_time.expected)

  @property
  def expected_chip_hours(self) -> float | None:
    """`expected_hours` times the number of chips."""
    return self.expected_hours and self.expected_hours * self.num_chips

  @property
  def mfu(self) -> float | None:
    """Share of the chips' peak FLOP/s in the predicted step, without recomputation."""
    if self.topology.chip is None or self.step_time.predicted is None:
      return None
    peak = self.topology.chip.peak_flops * self.num_chips
    return self.train_flops / peak / self.step_time.predicted

  def _hours(self, step_seconds: float | None) -> float | None:
    return step_seconds and step_seconds * self.total_steps / 3600

  @property
  def flags(self) -> str:
    """The changes as command-line flags."""
    return ' '.join(f'--config.{name}={value}' for name, value in self.changes.items())


def read_labels(config: Config) -> Labels:
  """The labels of the training data.

  Where the data cannot be opened, `config.data.num_classes` counts, with one class an example.

  Raises:
    UserError: if that is not set either, or is not what the data has.
  """
  try:
    train = open_source(config.data.train.source, config.data.train.split)
  except UserError as error:
    if config.data.num_classes:
      return Labels(config.data.num_classes)
    raise UserError(
      'The training data cannot be opened to count its classes; set their number with '
      f'--config.data.num_classes=N. ({error})'
    ) from None
  check_num_classes(config.data.num_classes, train)
  return Labels(train.num_classes, train.multi_label)


def resolve_steps(config: Config) -> Config:
  """`config.resolve_steps`; opens the training data only if the length is given in epochs."""
  train = config.data.train
  return config.resolve_steps(open_source(train.source, train.split).size if config.epochs else 0)


def build_for(config: Config, topology: Topology, labels: Labels) -> Program:
  """The program of a run of `config` on `topology`; nothing is compiled.

  Raises:
    UserError: for a config that cannot run on it.
  """
  devices = get_devices(topology, config.mesh.num_slices)
  mesh = sharding.make_mesh(config.mesh, devices)
  sharding.check_batch_size(mesh, config.eval_batch_size, 'eval_batch_size')
  sections = (config.model, config.optimizer, config.schedule, config.step)
  return build_program(mesh, *sections, config.data.image_shape, *labels, lora=config.lora)


def make_plan(
  config: Config,
  topology: Topology,
  labels: Labels,
  limit: int | None = None,
  changes: dict[str, Any] | None = None,
) -> Plan:
  """Compiles the train step of `config` for `topology`.

  Args:
    config: after `resolve_steps`.
    topology: after `topologies.prepare_backend`.
    labels: of the training data.
    limit: bytes of HBM that one device's program can use; None: those of the topology.
    changes: {field: value} to set in `config` first.

  Raises:
    UserError: for a config that cannot run on it.
  """
  changes = changes or {}
  config = replace_fields(config, changes)
  program = build_for(config, topology, labels)
  step = compile_program(program, topology)
  limit, needed = topology.usable_bytes if limit is None else limit, step.memory.needed
  fits = None if limit is None or needed is None else needed <= limit
  num_slices = 1 if topology.chip is None else config.mesh.num_slices
  num_chips = topology.num_chips * num_slices
  image_size = program.image_shape[:2]
  num_images = config.batch_size * config.step.gradients_per_step  # that a step passes through
  is_fused = 'tpu_custom_call' in step.stablehlo  # the attention
  recomputed_flops = num_images * flops.recomputed_flops(
    program.model, image_size, is_fused, program.trained_names
  )
  times = step_time(
    topology.chip,
    num_chips,
    program.train_flops + recomputed_flops,
    step.hbm_bytes,
    sum(collective.bytes for collective in step.collectives),
    step.cycles,
  )
  batch_sizes = sharding.batch_sizes(program.mesh, config.batch_size, config.accumulation_steps)
  devices = list(program.mesh.devices.flat)
  return Plan(
    topology=topology,
    changes=changes,
    mesh=dict(program.mesh.shape),
    num_slices=num_slices,
    num_chips=num_chips,
    num_devices=len(devices),
    num_hosts=len({device.process_index for device in devices}),
    parameters=count_parameters(program.abstract_state.params),
    trained_parameters=program.num_trained,
    global_batch=batch_sizes['global'],
    host_batch=batch_sizes['host'],
    device_batch=batch_sizes['device'],
    micro_batch=batch_sizes['micro'],
    memory=step.memory,
    limit=limit,
    fits=fits if step.refusal is None else False,
    collectives=step.collectives,
    train_flops=program.train_flops,
    recomputed_flops=recomputed_flops,
    step_time=times,
    cycles=step.cycles,
    hbm_bytes=step.hbm_bytes,
    total_steps=config.total_steps,
    compile_seconds=step.seconds,
  )
