"""Configs that need less memory, for a run that does not fit its topology."""

from collections.abc import Iterator
from typing import Any

from vit_jax.config import Config, MeshConfig, flatten, replace_fields
from vit_jax.errors import UserError
from vit_jax.models.model_options import READ_FIELDS, kind_of
from vit_jax.models.vit import REMAT
from vit_jax.planning.compile import argument_bytes
from vit_jax.planning.planner import Labels, Plan, build_for, make_plan
from vit_jax.planning.topologies import Topology

_MAX_DOUBLINGS = 4  # of fsdp and of accumulation_steps


def fallback_configs(
  config: Config, topology: Topology, labels: Labels, limit: int
) -> Iterator[dict[str, Any]]:
  """Yields changes to `config` that need less memory, in ascending order of their cost.

  More rematerialization; then more shards of the parameters (fsdp); then smaller micro-batches.
  Where the arguments alone exceed `limit`, they are sharded first. Changes that cannot run are
  left out.
  """

  def can_run(changes: dict[str, Any]) -> bool:
    try:
      program = build_for(replace_fields(config, changes), topology, labels)
    except UserError:
      return False
    return argument_bytes(program) < limit

  meshes = [mesh for mesh in _doubled_fsdp(config.mesh) if can_run(mesh)]
  if not meshes:
    return
  remats = [{}]
  if 'remat' in READ_FIELDS[kind_of(config.model.variant)]:
    names = list(REMAT)  # in ascending order of recomputation
    remats = [{'model.remat': name} for name in names[names.index(config.model.remat) :]]
  candidates = [meshes[0] | remat for remat in remats]
  candidates += [mesh | remats[-1] for mesh in meshes[1:]]
  for i in range(1, _MAX_DOUBLINGS + 1):
    candidates.append(candidates[-1] | {'accumulation_steps': config.accumulation_steps * 2**i})
  fields = flatten(config)
  for candidate in candidates:
    changes = {name: value for name, value in candidate.items() if value != fields[name]}
    if changes and can_run(changes):
      yield changes


def fallback_plans(
  config: Config, topology: Topology, labels: Labels, limit: int
) -> Iterator[Plan]:
  """Yields the plans of the fallback configs, up to the first that fits; see `make_plan`."""
  for changes in fallback_configs(config, topology, labels, limit):
    plan = make_plan(config, topology, labels, limit, changes)
    yield plan
    if plan.fits:
      return


def _doubled_fsdp(mesh: MeshConfig) -> Iterator[dict[str, int]]:
  """Yields fsdp as it is, doubled, doubled again, …, at the expense of the data axis."""
  for i in range(_MAX_DOUBLINGS + 1):
    changes = {'mesh.fsdp': mesh.fsdp * 2**i}
    if mesh.data > 0:
      if mesh.data % 2**i:
        return
      changes['mesh.data'] = mesh.data // 2**i
    yield changes
