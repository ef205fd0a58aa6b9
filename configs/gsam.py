"""Trains a ViT or MLP-Mixer on ImageNet from scratch with GSAM (arXiv 2203.08065), or with SAM.

  python -m vit_jax.main --config=configs/gsam.py:b32
  python -m vit_jax.main --config=configs/gsam.py:mixer_b16
  python -m vit_jax.main --config=configs/gsam.py:b32 --config.gsam_alpha=0 --config.sam_rho_min=0

The argument is one of MODELS; the last command is SAM with a constant radius. Values of
google-research/big_vision (configs/proj/gsam/vit_i1k_gsam_no_aug.py): crop and flip only, 300
epochs of 99 % of the data, batch 4096, Adam, 10,000 warmup steps, the learning rate linearly from
0.003 to a hundredth of it, weight decay 0.3 times the learning rate (the paper's, as a comment
there says), radius 0.6 to 0.1, alpha 0.6, sigmoid loss, average pooling. They are those of
ViT-B/32; for other models none are published there.

No accuracy is published beside that file. Its perturbation is that of each device's part of the
batch, the one here that of the whole batch, so that results need not agree (training/sharpness.py).
"""

from configs import recipes
from vit_jax.config import default_config

MODELS = ('s32', 's16', 'b32', 'b16', 'mixer_b16', 'mixer_l16')


def get_config(argument='b32'):
  if argument not in MODELS:
    raise ValueError(f'the model is {argument!r}; choose one of {", ".join(MODELS)}')
  config = default_config()
  config.batch_size = recipes.BATCH_SIZE
  config.total_steps = 300 * recipes.EXAMPLES['imagenet'] * 99 // 100 // config.batch_size
  config.eval_every = 5000
  config.checkpoint.every = 1000
  config.sam_rho, config.sam_rho_min, config.gsam_alpha = 0.6, 0.1, 0.6
  config.loss = 'sigmoid'
  config.model.variant, config.model.patch_size, _ = recipes.MODELS[argument]
  config.model.pool = 'gap'
  config.model.head_bias_init = -10.0  # each class starts with probability e^-10
  config.optimizer.name = 'adamw'
  config.optimizer.weight_decay = 0.3
  config.optimizer.clip_norm = 1.0
  config.schedule.decay = 'linear'
  config.schedule.learning_rate, config.schedule.end = 0.003, 0.00003
  config.schedule.warmup_steps = recipes.WARMUP_STEPS
  config.data.image_size = recipes.IMAGE_SIZE
  config.data.num_classes = recipes.NUM_CLASSES['imagenet']
  config.data.train.source, config.data.train.split = 'tfds:imagenet2012', 'train[:99%]'
  config.data.test.split = 'validation'
  config.data.test.update(crop_fraction=224 / 256, interpolation='area', antialias=False)
  return config
