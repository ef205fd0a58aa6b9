"""The choices of a config field are the keys of the table that the field selects from."""

import typing

import jax.numpy as jnp
import pytest

from vit_jax.config import AugmentConfig, ModelConfig, OptimizerConfig, ScheduleConfig, StepConfig
from vit_jax.config.schema import Section
from vit_jax.data.augmentation.randaugment import POLICIES
from vit_jax.models.build import resolve_dtype
from vit_jax.models.dot_product_attention import choose_attention
from vit_jax.models.encoder_block import GELUS
from vit_jax.models.losses import LOSSES
from vit_jax.models.positions import ENTRIES, KINDS
from vit_jax.models.variants import DETR_VARIANTS, MIXER_VARIANTS, RESNET_VARIANTS, VARIANTS
from vit_jax.models.vit import REMAT
from vit_jax.training.optimizer import make_optimizer, make_schedule


def choices(section: type[Section], name: str) -> tuple[str, ...]:
  return typing.get_args(typing.get_type_hints(section)[name])


@pytest.mark.parametrize(
  ('section', 'name', 'table'),
  [
    (ModelConfig, 'variant', [*VARIANTS, *RESNET_VARIANTS, *MIXER_VARIANTS, *DETR_VARIANTS]),
    (ModelConfig, 'gelu', GELUS),
    (ModelConfig, 'remat', REMAT),
    (ModelConfig, 'position_embedding', KINDS),
    (ModelConfig, 'position_entry', ENTRIES),
    (AugmentConfig, 'randaugment', ['none', *POLICIES]),
    (StepConfig, 'loss', LOSSES),
  ],
)
def test_choices_are_the_keys_of_their_table(section, name, table):
  assert choices(section, name) == tuple(table)


@pytest.mark.parametrize('name', choices(ModelConfig, 'dtype'))
def test_every_dtype_resolves(name):
  assert resolve_dtype(name) in (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize('name', choices(ModelConfig, 'attention'))
def test_every_attention_exists(name):
  assert callable(choose_attention(name, 'cpu'))


@pytest.mark.parametrize('momentum_dtype', choices(OptimizerConfig, 'momentum_dtype'))
@pytest.mark.parametrize('name', choices(OptimizerConfig, 'name'))
@pytest.mark.parametrize('decay', choices(ScheduleConfig, 'decay'))
def test_every_optimizer_and_decay_exists(name, decay, momentum_dtype):
  schedule = make_schedule(ScheduleConfig(decay=decay), total_steps=10)
  optimizer = make_optimizer(OptimizerConfig(name=name, momentum_dtype=momentum_dtype), schedule)
  assert schedule(0) > 0
  optimizer.init({'kernel': jnp.ones((2, 2))})
