"""Pretrains ViT-g/14 or G/14 as "Scaling Vision Transformers" (arXiv 2106.04560) did on JFT-3B.

  python -m vit_jax.main --config=configs/vit_g14.py --config.data.train.source=…
  python -m vit_jax.main --config=configs/vit_g14.py:G --config.data.train.source=…

The argument is the size, g (the default) or G. Values of google-research/big_vision
(configs/proj/scaling_laws/train_vit_g.py): Adafactor with a bfloat16 momentum and no limit of the
updates, batch 16,384, a million steps, the learning rate 8e-4 with 10,000 steps of warmup, decay by
the inverse square root and 50,000 steps of cooldown, weight decay 0.03 and a hundred times that in
the head, gradients clipped at global norm 1, attention pooling, sigmoid loss, crop and flip only.
There 32 images fit a TPU v3 core. JFT-3B is not public, and data of your own will need another
length.

Mesh, remat and scan are ours: by `plan`, g/14 then takes 3.64 GiB of each of 256 v5e chips (with
remat=dots 18.03 GiB of 15.75). Published for G/14, fine-tuned on ImageNet: 90.45 % (abstract).
"""

from configs import recipes
from vit_jax.config import default_config

NUM_CLASSES = 29_593  # of JFT-3B, in that file


def get_config(size='g'):
  if size not in ('g', 'G'):
    raise ValueError(f'the size is {size!r}; choose g or G')
  config = default_config()
  config.total_steps = 1_000_000
  config.batch_size = 4 * recipes.BATCH_SIZE
  config.eval_every = 10_000
  config.checkpoint.every = 1000
  config.loss = 'sigmoid'  # several labels per image
  config.mesh.fsdp = 16

  config.model.variant, config.model.patch_size = size, 14
  config.model.pool = 'map'
  config.model.head_bias_init = -10.0  # each class starts with probability e^-10
  config.model.remat, config.model.scan_blocks = 'full', True

  config.optimizer.name = 'adafactor'
  config.optimizer.max_update_rms = 0.0
  config.optimizer.weight_decay, config.optimizer.head_decay_multiplier = 0.03, 100.0
  config.optimizer.clip_norm = 1.0
  config.schedule.decay = 'rsqrt'
  config.schedule.learning_rate, config.schedule.timescale = 8e-4, 10_000.0
  config.schedule.warmup_steps = recipes.WARMUP_STEPS
  config.schedule.cooldown_steps = 50_000

  config.data.image_size = recipes.IMAGE_SIZE
  config.data.num_classes = NUM_CLASSES
  config.data.train.source = 'array_record:data/jft3b'
  config.data.test.split = 'validation'
  return config
