"""`python -m vit_jax.main` trains models with attention through config fields."""

import sys

import numpy as np
import pytest

import vit_jax
from tests.helpers import NO_TRANSFORMER, TINY
from vit_jax import command_line, main
from vit_jax.models import build
from vit_jax.weights.layouts.released import flatten


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    (
      'variant=R50x1 resnet_spatial=local resnet_window=3 num_heads=2 non_local_stages=(1,)',
      dict(spatial='local', window=3, num_heads=2, non_local_stages=(1,)),
    ),
    (
      'variant=R50x1 resnet_spatial=axial num_heads=2',
      dict(spatial='axial', window=111, num_heads=2),
    ),
    (
      'variant=DETR-R50 width=16 depth=2 mlp_dim=32 num_heads=2',
      dict(width=16, depth=2, mlp_dim=32, num_heads=2),
    ),
  ],
)
def test_a_run_trains_and_its_model_loads(fields, expected, tmp_path, monkeypatch):
  arguments = [
    'vit_jax.main',
    '--config=configs/quickstart.py',
    *TINY,
    *NO_TRANSFORMER,
    f'--workdir={tmp_path}',
    '--config.total_steps=2',
    '--config.schedule.warmup_steps=0',
    '--config.optimizer.weight_decay=0.0',
    '--config.model.resnet_width=32',
    '--config.model.resnet_blocks=(1,)',
    *(f'--config.model.{field}' for field in fields.split()),
  ]
  monkeypatch.setattr(sys, 'argv', arguments)
  with pytest.raises(SystemExit) as stopped:
    command_line.run(main.main)
  assert stopped.value.code == 0
  vit = vit_jax.load(tmp_path)
  architecture = build.architecture(vit.model)
  assert expected.items() <= architecture.items()
  assert all(np.isfinite(x).all() for x in flatten(vit.params).values())
  if 'non_local_stages' in expected:
    assert np.any(vit.params['block1']['non_local']['norm']['scale'])
