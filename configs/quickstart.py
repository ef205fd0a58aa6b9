"""Trains a small ViT from scratch on scikit-learn's handwritten digits (1,437 train, 360 test).

  python -m vit_jax.main --config=configs/quickstart.py

For a quick try, add --config.total_steps=20 --workdir=runs/try (the warmup is a share of the run).

Expected: 99.4 to 100 % of the 360 test digits, in about a minute on two CPU cores (three seeds,
results/README.md). The recipe is our own; it evaluates whole images, at 16 px.
"""

from vit_jax.config import default_config


def get_config():
  config = default_config()
  config.total_steps = 1200
  config.batch_size = 128
  config.eval_every = 400
  config.checkpoint.every = 400

  config.model.variant = 'Ti'
  config.model.patch_size = 4
  config.model.width = 64
  config.model.depth = 4
  config.model.mlp_dim = 128
  config.model.num_heads = 4
  config.model.pool = 'gap'

  config.data.train.source = 'digits'
  config.data.image_size = 16
  config.data.test.crop_fraction = 1.0
  config.data.augment.crop = 'resize'
  config.data.augment.flip = False
  config.data.augment.shift = 0.1
  config.data.augment.scale = 0.15
  config.data.augment.rotate = 12.0

  config.optimizer.weight_decay = 0.05
  config.schedule.learning_rate = 2e-3
  config.schedule.warmup_steps = 1 / 12  # a share of the run
  return config
