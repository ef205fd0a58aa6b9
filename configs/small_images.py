"""Trains a small model from scratch on a folder of small images (32 px); no accelerator needed.

  python -m vit_jax.main --config=configs/small_images.py:folder:/path/to/cifar10
  python -m vit_jax.main --config=configs/small_images.py:vit,folder:/path/to/cifar10

The first is a hybrid (Section 3.1): a ResNet stem and three units, then two Transformer blocks on
8 x 8 tokens. `vit` has patches of 4 x 4 pixels and six blocks, and needs more data or time.

The recipe is our own. Images are moved by whole pixels and mirrored, which keeps training images as
sharp as test images. Tests take the central square of an image, at 32 px.
"""

from vit_jax.config import default_config

MODELS = ('hybrid', 'vit')


def get_config(argument='folder:data/cifar10'):
  model, _, source = argument.partition(',')
  if model not in MODELS:
    model, source = 'hybrid', argument
  config = default_config()
  config.total_steps = 5500
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
  if model == 'hybrid':
    config.model.resnet_width, config.model.resnet_blocks = 64, (3,)
    config.model.depth = 2

  config.data.train.source = source
  config.data.image_size = 32
  config.data.workers = 0  # threads suffice for small images
  config.data.test.crop_fraction = 1.0
  config.data.augment.crop = 'random'
  config.data.augment.pad = 4

  config.optimizer.weight_decay = 0.05
  config.schedule.learning_rate = 1.5e-3
  config.schedule.warmup_steps = 0.05  # a share of the run
  return config
