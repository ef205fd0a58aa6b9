"""Pretrains without labels by masked patch prediction (arXiv 2010.11929v2, Appendix B.1.2).

  python -m vit_jax.main --config=configs/masked_patches.py             B/16 on JFT, as in the paper
  python -m vit_jax.main --config=configs/masked_patches.py:downsized   another target
  python -m vit_jax.main --config=configs/masked_patches.py:mean_color,folder:/path/to/cifar10

The argument is target[,source]: the target one of mean_color (the paper's choice), downsized and
pixels; with a source model and data are those of configs/small_images.py:vit, at 32 px. What
the run leaves in model/ is fine-tuned through config.init_from, by the same config as a model from
scratch:

  python -m vit_jax.main --config=configs/small_images.py:vit,folder:/path/to/cifar10 \\
    --config.init_from=runs/masked_patches-mean_color-folder-path-to-cifar10/model

Published (Section 4.6): fine-tuned on ImageNet B/16 reaches 79.9 %, 2 points more than from scratch
and 4 fewer than after supervised pretraining. Weight decay and clipping are not published; here
there are none. The recipe for small images is our own.
"""

from configs import recipes, small_images
from vit_jax.config import default_config

TARGETS = ('mean_color', 'downsized', 'pixels')


def get_config(argument='mean_color'):
  target, _, source = argument.partition(',')
  if target not in TARGETS:
    raise ValueError(f'the target is one of {", ".join(TARGETS)}, not {target!r}')
  config = _small_config(source) if source else _paper_config()
  config.objective = 'masked_patches'
  config.masked_target = target
  return config


def _paper_config():
  config = default_config()
  config.batch_size = recipes.BATCH_SIZE
  config.total_steps = 1_000_000  # about 14 epochs
  config.eval_every = 5000
  config.checkpoint.every = 1000
  config.model.variant, config.model.patch_size = 'B', 16
  config.data.image_size = recipes.IMAGE_SIZE
  config.data.num_classes = recipes.NUM_CLASSES['jft']
  config.data.train.source = 'array_record:data/jft'
  config.data.test.split = 'validation'
  config.optimizer.name, config.optimizer.clip_norm = 'adamw', 0.0
  config.schedule.learning_rate, config.schedule.decay = 2e-4, 'cosine'
  config.schedule.warmup_steps = recipes.WARMUP_STEPS
  return config


def _small_config(source):
  config = small_images.get_config(f'vit,{source}')
  # What only the labels need.
  config.label_smoothing = config.mixup_alpha = config.cutmix_alpha = 0.0
  return config
