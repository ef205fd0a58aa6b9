"""Pretrains as in AugReg (arXiv 2106.10270); offers its augmentation presets to any config.

  python -m vit_jax.main --config=configs/augreg.py:b16
  python -m vit_jax.main --config=configs/augreg.py:b16,light1,imagenet --config.data.train.source=…

The argument is model[,preset[,data]]: one of MODELS, one of PRESETS (or best), imagenet21k or
imagenet. To use a preset in another config: `augreg.apply(config, 'medium1')`.

Adam, batch 4096, 300 epochs, 10,000 warmup steps, cosine decay from 1e-3, gradients clipped at
global norm 1, sigmoid loss (big_vision/configs/vit_i21k.py, vit_i1k.py). The best preset and
weight decay on ImageNet-21k are those in the names of the released files (README of
google-research/vision_transformer), on ImageNet those of vit_i1k.py. Test images are resized by
averaging over areas, the shorter side to 256, and cropped to 224 (lines 86 and 105 there).

Published for those files, fine-tuned on ImageNet at 384 px: Ti/16 78.22 %, S/32 79.58 %, S/16
83.73 %, B/32 83.59 %, B/16 85.49 %, L/16 85.59 %.
"""

from typing import Any

import ml_collections

from configs import recipes
from vit_jax.config import default_config

# name: (layers and magnitude of RandAugment, alpha of mixup). light1 is not the identity: at
# magnitude 0, colors and sharpness change the most.
PRESETS = {
  'none': (0, 0, 0.0),
  'light1': (2, 0, 0.0),
  'light2': (2, 10, 0.2),
  'medium1': (2, 15, 0.2),
  'medium2': (2, 15, 0.5),
  'strong1': (2, 20, 0.5),
  'strong2': (2, 20, 0.8),
}

# name: (variant, patch size, preset and weight decay on ImageNet-21k, preset on ImageNet)
MODELS = {
  'ti16': ('Ti', 16, 'none', 0.03, 'light1'),
  's32': ('S', 32, 'none', 0.1, 'medium1'),
  's16': ('S', 16, 'light1', 0.03, 'medium2'),
  'b32': ('B', 32, 'light1', 0.1, 'medium2'),
  'b16': ('B', 16, 'medium1', 0.1, 'medium2'),
  'l16': ('L', 16, 'strong1', 0.1, 'medium2'),
}


def apply(config: Any, preset: str) -> ml_collections.ConfigDict:
  """Sets RandAugment and mixup of a config to one of PRESETS."""
  if preset not in PRESETS:
    raise ValueError(f'the preset is {preset!r}; choose one of {", ".join(PRESETS)}')
  layers, magnitude, config.mixup_alpha = PRESETS[preset]
  config.data.augment.randaugment = 'augreg' if layers else 'none'
  config.data.augment.randaugment_layers = layers
  config.data.augment.randaugment_magnitude = float(magnitude)
  return config


def get_config(argument='b16'):
  values = argument.split(',')
  model, preset, data = values + ['b16', 'best', 'imagenet21k'][len(values) :]
  if model not in MODELS or data not in ('imagenet21k', 'imagenet'):
    raise ValueError(
      f'the argument is {argument!r}, not model[,preset[,data]]; the models are '
      f'{", ".join(MODELS)}, the data imagenet21k or imagenet'
    )
  variant, patch_size, best_21k, weight_decay, best = MODELS[model]
  config = default_config()
  config.batch_size = recipes.BATCH_SIZE
  config.total_steps = 300 * recipes.EXAMPLES[data] // config.batch_size
  config.eval_every = 5000
  config.checkpoint.every = 1000
  config.loss = 'sigmoid'
  config.model.variant = variant
  config.model.patch_size = patch_size
  config.data.image_size = recipes.IMAGE_SIZE
  config.data.num_classes = recipes.NUM_CLASSES[data]
  config.schedule.learning_rate = 1e-3
  config.schedule.warmup_steps = recipes.WARMUP_STEPS
  if data == 'imagenet21k':
    source, preset = 'array_record:data/imagenet21k', best_21k if preset == 'best' else preset
    config.optimizer.weight_decay = weight_decay
    config.model.head_bias_init = -10.0  # each class starts with probability e^-10
  else:
    source, preset = 'tfds:imagenet2012', best if preset == 'best' else preset
    config.optimizer.weight_decay = 0.1
    config.model.head_bias_init = -6.9  # e^-6.9: 1/1000
  config.data.train.source = source
  config.data.test.split = 'validation'
  config.data.test.update(crop_fraction=224 / 256, interpolation='area', antialias=False)
  return apply(config, preset)
