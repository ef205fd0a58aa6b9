"""Topologies by name, collectives parsed from compiled programs, and refusals for memory."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax.config import MeshConfig, ModelConfig, OptimizerConfig, ScheduleConfig, StepConfig
from vit_jax.distributed import sharding
from vit_jax.errors import UserError
from vit_jax.planning.collectives import Collective, count_collectives
from vit_jax.planning.compile import argument_bytes, compile_program
from vit_jax.planning.hlo import parse
from vit_jax.planning.topologies import get_devices, parse_topology
from vit_jax.training.program import build_program

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason='written for eight devices')


@pytest.mark.parametrize(
  ('name', 'shape', 'num_chips'),
  [
    ('v5e:16x16', (16, 16), 256),
    ('v4:4x4x8', (4, 4, 8), 128),
    ('cpu:8', (8,), 8),
    # Slices as in the tables of docs.cloud.google.com/tpu/docs/{v3,v4,v5p,v5e,v6e}.
    ('v2-8', (2, 2), 4),
    ('v3-32', (4, 4), 16),
    ('v3-256', (8, 16), 128),
    ('v3-2048', (32, 32), 1024),
    ('v4-8', (2, 2, 1), 4),
    ('v4-16', (2, 2, 2), 8),
    ('v4-32', (2, 2, 4), 16),
    ('v4-128', (4, 4, 4), 64),
    ('v5p-64', (2, 4, 4), 32),
    ('v5p-128', (4, 4, 4), 64),
    ('v5p-256', (4, 4, 8), 128),
    ('v5e-1', (1, 1), 1),
    ('v5litepod-16', (4, 4), 16),
    ('v5e-256', (16, 16), 256),
    ('v6e-8', (2, 4), 8),
    ('v6e-64', (8, 8), 64),
    ('tpu7x:4x4x4', (4, 4, 4), 64),
  ],
)
def test_a_name_gives_the_shape_and_number_of_chips(name, shape, num_chips):
  topology = parse_topology(name)
  assert (topology.shape, topology.num_chips) == (shape, num_chips)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('v9:2x2', 'not a topology; use v2, v3, v4, v5e, v5p, v6e'),
    ('v5e', 'not a topology; use'),
    ('cpu:0', 'not a topology; use'),
    ('', 'not a topology; use'),
    ('v5e:4x4x4', '2 dimensions'),
    ('v4:4x4', '3 dimensions'),
    ('v5e:3x4', 'the first two of them even'),
    ('v5e:0x4', 'the first two of them even'),
    ('v5e-48', 'power of two'),
    ('v4-4', 'two a chip'),
    ('v5e:32x32', 'the largest slice of v5e has 256'),
  ],
)
def test_a_wrong_topology_is_one_sentence(name, message):
  with pytest.raises(UserError, match=message):
    parse_topology(name)


def test_cpu_topologies_use_the_devices_of_this_process():
  with pytest.raises(UserError, match='cpu:9 needs more than the 8 CPU devices'):
    get_devices(parse_topology('cpu:9'))
  assert get_devices(parse_topology('cpu:3')) == jax.devices()[:3]


def compiled(function, *shapes):
  """The optimized HLO of `function`, which maps over the rows of (8, …) arrays, one a device."""
  mesh = jax.make_mesh((2, 4), ('a', 'b'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  by_row = NamedSharding(mesh, P(('a', 'b')))
  mapped = jax.shard_map(
    function, mesh=mesh, in_specs=P(('a', 'b')), out_specs=P(('a', 'b')), check_vma=False
  )
  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=by_row) for shape in shapes]
  return parse(jax.jit(mapped).lower(*arrays).compile().as_text())


def test_each_kind_of_collective_is_counted_with_its_bytes():
  def function(x):  # (1, 1000) a device
    gathered = jax.lax.all_gather(x, ('a', 'b'), tiled=True)  # (8, 1000)
    scattered = jax.lax.psum_scatter(gathered, 'b', tiled=True)  # (2, 1000), over groups of 4
    permuted = jax.lax.ppermute(scattered, 'a', [(0, 1), (1, 0)])
    return jax.lax.psum(permuted, 'a')

  rows = {row.kind: row for row in count_collectives(compiled(function, (8, 1000)), 8)}
  assert rows == {
    'all-gather': Collective('all-gather', 1, 7 * 4000),
    'reduce-scatter': Collective('reduce-scatter', 1, 32_000 * 3 // 4),
    'collective-permute': Collective('collective-permute', 1, 8000),
    'all-reduce': Collective('all-reduce', 1, 2 * 8000 // 2),
  }


def test_collectives_in_loops_count_once_an_iteration():
  def inner(x, _):
    return jnp.sin(jax.lax.psum(x, 'b')), None

  def outer(x, _):
    x = jax.lax.scan(inner, x, length=5)[0]
    return jnp.sin(jax.lax.psum(x, ('a', 'b'))), None

  def function(x):
    return jax.lax.scan(outer, x, length=3)[0]

  (row,) = count_collectives(compiled(function, (8, 1000)), 8)
  assert row.count == 3 * (5 + 1)
  assert row.bytes == 3 * (5 * 2 * 4000 * 3 // 4 + 2 * 4000 * 7 // 8)


def test_a_program_without_collectives_has_no_rows():
  assert count_collectives(compiled(jnp.sin, (8, 1000)), 8) == ()


# Collectives as the TPU compiler (libtpu 0.0.42.1) prints them: an asynchronous all-gather that is
# named again by each fusion that computes meanwhile; one on a SparseCore; a reduce-scatter that is
# a fusion; a loop whose number of iterations is only in its condition.
TPU_TEXT = """
HloModule jit_step, is_scheduled=true

%start (p.1: bf16[4,8]) -> (bf16[4,8], bf16[16,8], u32[]) {
  %p.1 = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.1 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=7, replica_groups=mesh['x'=16,'y'=1,'z'=4], device_ids=([4,16]T(1,0)) {'z'}, dimensions={0}
  ROOT %custom-call.1 = (bf16[4,8]{1,0}, bf16[16,8]{1,0}, u32[]{:S(2)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p.2: bf16[4,8], p.3: bf16[16,8]) -> bf16[16,8] {
  %p.2 = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%p.2), channel_id=7, replica_groups=mesh['x'=16,'y'=1,'z'=4], device_ids=([4,16]T(1,0)) {'z'}, dimensions={0}
}

%add (x.1: f32[], y.1: f32[]) -> f32[] {
  %x.1 = f32[] parameter(0)
  %y.1 = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%x.1, %y.1)
}

%all-reduce-scatter.1 (input_0: bf16[16,8], input_1: bf16[32]) -> (bf16[1,8], bf16[2]) {
  %input_0 = bf16[16,8]{1,0} parameter(0)
  %input_1 = bf16[32]{0} parameter(1)
  %all-reduce.1 = (bf16[16,8]{1,0}, /*index=1*/bf16[32]{0}) all-reduce(%input_0, /*index=1*/%input_1), channel_id=1, replica_groups=[4,16]<=[16,4]T(1,0), to_apply=%add
  ROOT %tuple.9 = (bf16[1,8]{1,0}, bf16[2]{0}) tuple(%all-reduce.1)
}

%body (p.4: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p.4 = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %gte.1 = bf16[4,8]{1,0} get-tuple-element(%p.4), index=1
  %start.1 = (bf16[4,8]{1,0}, bf16[16,8]{1,0}, u32[]) fusion(%gte.1), kind=kCustom, calls=%start
  %step.1 = bf16[16,8]{1,0} fusion(%gte.1, %start.1), kind=kOutput, calls=%async_collective_fusion.1
  %scatter.1 = (bf16[1,8]{1,0}, bf16[2]{0}) fusion(%step.1, %x), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %tuple.1 = (s32[], bf16[4,8]{1,0}) tuple(%gte.0, %gte.1)
}

%called (p.7: bf16[4,8]) -> bf16[16,8] {
  %p.7 = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.7 = bf16[16,8]{1,0} all-gather(%p.7), channel_id=9, replica_groups=mesh['x'=4,'y'=16] {'x'}, dimensions={0}
}

%condition (p.5: (s32[], bf16[4,8])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(12)
  %p.5 = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %gte.5 = s32[]{:T(128)} get-tuple-element(%p.5), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%gte.5, %constant.1), direction=LT
}

ENTRY %main (p.6: bf16[4,8]) -> bf16[4,8] {
  %p.6 = bf16[4,8]{1,0} parameter(0)
  %while.1 = (s32[], bf16[4,8]{1,0}) while(%tuple.0), condition=%condition, body=%body
  %call-start.1 = ((bf16[4,8]{1,0}, token[]), bf16[16,8]{1,0}) call-start(%p.6), async_execution_thread="sparsecore", to_apply=%called
  %call-done.1 = bf16[16,8]{1,0} call-done(%call-start.1)
  %loss.1 = f32[]{:T(128)} constant(0)
  %all-reduce-start.1 = f32[]{:T(128)} all-reduce-start(%loss.1), channel_id=3, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %all-reduce-done.1 = f32[]{:T(128)} all-reduce-done(%all-reduce-start.1)
}
"""  # noqa: E501


def test_collectives_of_a_tpu_program():
  assert count_collectives(parse(TPU_TEXT), 64) == (
    Collective('reduce-scatter', 12, 12 * (256 + 64) * 15 // 16),
    Collective('all-gather', 13, 13 * 3 * 64),
    Collective('all-reduce', 1, 4),
  )


def tiny_program(accumulation_steps: int = 1, momentum_dtype: str = 'auto', **mesh: int):
  mesh_config = MeshConfig(**mesh)
  return build_program(
    sharding.make_mesh(mesh_config, get_devices(parse_topology('cpu:8'), mesh_config.num_slices)),
    ModelConfig(width=64, depth=1, mlp_dim=256, num_heads=2, patch_size=4),
    OptimizerConfig(momentum_dtype=momentum_dtype),
    ScheduleConfig(),
    StepConfig(batch_size=64, accumulation_steps=accumulation_steps),
    image_shape=(8, 8, 3),
    num_classes=10,
  )


def test_a_bfloat16_first_moment_halves_its_memory_on_each_device():
  exact, rounded = (tiny_program(fsdp=4, momentum_dtype=x) for x in ('auto', 'bfloat16'))
  moment = sum(
    2 * math.prod(leaf.sharding.shard_shape(leaf.shape))
    for leaf in jax.tree.leaves(rounded.abstract_state.opt_state)
    if leaf.dtype == jnp.bfloat16
  )
  assert argument_bytes(exact) - argument_bytes(rounded) == moment > 0
  shardings = [
    [leaf.sharding.spec for leaf in jax.tree.leaves(program.abstract_state)]
    for program in (exact, rounded)
  ]
  assert shardings[0] == shardings[1]


def test_a_compiled_step_has_programs_memory_and_collectives():
  program = tiny_program(fsdp=4)
  step = compile_program(program)
  assert step.refusal is None and step.seconds > 0
  assert 'stablehlo' in step.stablehlo and 'ENTRY' in step.hlo
  memory = step.memory
  # The arguments may include the step's key; the new state reuses most of their memory.
  assert 0 <= memory.arguments - argument_bytes(program) <= 16
  assert memory.temporaries > 0
  assert 0 <= memory.outputs - memory.aliased < memory.arguments / 10
  assert memory.needed > memory.arguments + memory.temporaries - 1
  assert {row.kind for row in step.collectives} >= {'all-gather', 'all-reduce'}


def test_accumulation_adds_up_gradients_over_devices_once():
  received = {}
  for count in (1, 4):
    step = compile_program(tiny_program(accumulation_steps=count))
    received[count] = sum(row.bytes for row in step.collectives)
  assert 0 < received[4] < 1.1 * received[1]


class Refused:
  """A program that the compiler refuses with a certain message."""

  def __init__(self, message: str):
    program = tiny_program()
    self.abstract_state, self.abstract_batch = program.abstract_state, program.abstract_batch
    self.mesh, self.message = program.mesh, message

  def lower(self):
    return self

  def as_text(self) -> str:
    return ''

  def compile(self):
    raise jax.errors.JaxRuntimeError(self.message)


@pytest.mark.parametrize(
  ('message', 'temporaries', 'with_arguments'),
  [
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO '
      'temporaries (19.50G) exceeds available HBM (15.75G).',
      19.5 * 2**30,
      False,
    ),
    (
      'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 19.00G of 15.75G '
      'hbm. Exceeded hbm capacity by 3.25G.',
      19 * 2**30,
      True,
    ),
    ('RESOURCE_EXHAUSTED: something else', None, False),
  ],
)
def test_a_refusal_for_memory_gives_its_sizes(message, temporaries, with_arguments):
  program = Refused(message)
  step = compile_program(program)
  arguments = argument_bytes(program)
  assert step.refusal == message
  assert step.memory.arguments == arguments > 0
  if temporaries is None:
    assert step.memory.needed is None
  else:
    assert step.memory.needed == temporaries + (0 if with_arguments else arguments)


def test_other_failures_of_the_compiler_are_user_errors():
  with pytest.raises(UserError, match='The compiler failed: INTERNAL: unknown opcode'):
    compile_program(Refused('INTERNAL: unknown opcode'))
