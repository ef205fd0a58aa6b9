"""A plan of a 7B model, some blocks of it: sharded, and frozen parameters cost what they should."""

import functools

import jax
import pytest

from vit_jax.config import load_config
from vit_jax.distributed.sharding import sharded_bytes
from vit_jax.models.build import count_parameters
from vit_jax.planning.plan_report import page
from vit_jax.planning.planner import Labels, Plan, build_for, make_plan
from vit_jax.planning.topologies import parse_topology

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason='written for eight devices')
TOPOLOGY, LABELS = parse_topology('cpu:8'), Labels(10)
FLAGS = (
  '--config.model.depth=1',
  '--config.mesh.fsdp=8',
  '--config.batch_size=8',
  '--config.eval_batch_size=8',
  '--config.data.image_size=32',
)
TRAINED = {
  'all': ('--config.optimizer.backbone_lr_multiplier=1', '--config.optimizer.name=adamw'),
  'head': ('--config.optimizer.name=adamw',),
  'adapters': (
    '--config.optimizer.backbone_lr_multiplier=1',
    '--config.optimizer.name=adamw',
    '--config.lora.rank=16',
  ),
}


def load(trained: str):
  flags = [*FLAGS, *TRAINED[trained]]
  return load_config('configs/finetune.py:dinov3_7b16,digits', flags).resolve_steps(1000)


@functools.cache
def plan(trained: str) -> Plan:
  return make_plan(load(trained), TOPOLOGY, LABELS)


def test_the_whole_model_has_its_published_size_and_shards():
  whole = build_for(
    load_config('configs/finetune.py:dinov3_7b16,digits', FLAGS[1:]).resolve_steps(9),
    TOPOLOGY,
    LABELS,
  )
  params = whole.abstract_state.params
  assert count_parameters(params) / 1e6 == pytest.approx(6716, rel=0.001)
  sizes = sharded_bytes(params)
  assert sizes['replicated'] < sizes['sharded'] / 1000


@pytest.mark.parametrize('trained', ['head', 'adapters'])
def test_frozen_parameters_have_no_moments_and_no_gradients(trained):
  few, whole = plan(trained), plan('all')
  head = (2 * 4096 + 1) * 10
  adapters = 2 * 16 * 2 * 4096  # of query and value
  assert few.trained_parameters == head + (adapters if trained == 'adapters' else 0)
  assert whole.trained_parameters == whole.parameters
  # Adam has two moments of each parameter, which all eight devices share.
  saved = 2 * 4 * (whole.parameters - few.trained_parameters) / 8
  assert whole.memory.arguments - few.memory.arguments == pytest.approx(saved, rel=0.01)
  assert few.memory.temporaries < whole.memory.temporaries
  # Forward alone; with adapters also gradients of activations, but few of weights.
  share = few.train_flops / whole.train_flops
  assert share == pytest.approx(1 / 3, rel=0.01) if trained == 'head' else 0.4 < share < 0.7
  reduced = [sum(x.bytes for x in each.collectives if 'reduce' in x.kind) for each in (few, whole)]
  assert reduced[0] < reduced[1] / 2
  assert f'{few.parameters:,}, {few.trained_parameters:,} of them trained' in page(few)
  assert 'of them trained' not in page(whole)


@pytest.mark.parametrize('trained', ['all', 'head'])
def test_flops_are_those_that_xla_counts(trained):
  program = build_for(load(trained), TOPOLOGY, LABELS)
  counted = program.lower().cost_analysis()['flops']  # with the update, 3 % of that of all
  assert program.train_flops == pytest.approx(counted, rel=0.05)
