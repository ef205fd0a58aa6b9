"""Trains a small ViT from scratch on a folder of small images (32 px); no accelerator needed.

  python -m vit_jax.main --config=configs/small_images.py:folder:/path/to/cifar10

On CIFAR-10: 67.78 % after 8,000 steps (20 epochs), an hour on two CPU cores (results/README.md).
The recipe is our own; it evaluates the central square of an image, at 32 px.
"""

from vit_jax.config import default_config


def get_config(source='folder:data/cifar10'):
  config = default_config()
  config.total_steps = 8000
  config.batch_size = 128
  config.eval_every = 1000
  config.checkpoint.every = 500
  config.label_smoothing = 0.1

  config.model.variant = 'Ti'
  config.model.patch_size = 4
  config.model.width = 128
  config.model.depth = 6
  config.model.mlp_dim = 256
  config.model.num_heads = 4
  config.model.pool = 'gap'

  config.data.train.source = source
  config.data.image_size = 32
  config.data.test.crop_fraction = 1.0
  config.data.augment.crop = 'resize'
  config.data.augment.shift = 0.125
  config.data.augment.scale = 0.1

  config.optimizer.weight_decay = 0.05
  config.schedule.learning_rate = 1e-3
  config.schedule.warmup_steps = 1 / 16  # a share of the run
  return config
