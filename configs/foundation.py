"""Foundation weights that configs/finetune.py starts from, and how their authors train on them.

FAMILIES has a row for each model: the name of its weights on huggingface.co, the fields of
config.model, and a recipe of RECIPES. What a recipe does not set is as in finetune.custom_data.
"""

from typing import NamedTuple


class Foundation(NamedTuple):
  """A model.

  Attributes:
    weights: on huggingface.co.
    recipe: a key of RECIPES.
    fields: of config.model.
    image_size: of its pretraining, in pixels.
  """

  weights: str
  recipe: str
  fields: dict
  image_size: int = 224


BATCH_SIZE = 32  # for one device; the recipes scale rates by batch / 256 where their authors do

# Frozen features and a linear head, as both papers evaluate them. SGD, momentum 0.9, no weight
# decay, cosine, no warmup, 10 epochs of random crops; class token and mean of the patches:
# facebookresearch/dinov2, dinov2/eval/linear.py, which chooses of 13 rates from 1e-5 to 0.1, times
# batch / 256. The one here, 0.01, is our choice, and so is the head of zeros.
_LINEAR = {
  'epochs': 10.0,
  'optimizer.name': 'sgd',
  'optimizer.b1': 0.9,
  'optimizer.clip_norm': 0.0,
  'optimizer.backbone_lr_multiplier': 0.0,
  'schedule.learning_rate': 0.01 * BATCH_SIZE / 256,
  'model.pool': 'token_gap',
  'data.augment.area': (0.08, 1.0),
  'data.test.interpolation': 'bicubic',  # to 256 pixels, of which the central 224 are taken
}

# What the two recipes below share: AdamW of all parameters, and their augmentation.
_FINE_TUNING = {
  'optimizer.name': 'adamw',
  'optimizer.weight_decay': 0.05,
  'optimizer.clip_norm': 0.0,
  'label_smoothing': 0.1,
  'model.pool': 'gap',
  'model.class_token': True,
  'data.augment.area': (0.08, 1.0),
  'data.augment.randaugment': 'timm_increasing',
  'data.augment.randaugment_magnitude': 9.0,
  'data.augment.randaugment_std': 0.5,
  'data.augment.erase_probability': 0.25,
  'data.test.interpolation': 'bicubic',
}


def _mae(epochs, base_rate, layer_decay, drop_path):
  """facebookresearch/mae, FINETUNE.md and main_finetune.py (arXiv 2111.06377, Appendix A.2).

  There the batch is 1024, and the rate grows linearly with it. The mean of the patches is pooled,
  after the pretrained LayerNorm and not, as there, before a new one.
  """
  return _FINE_TUNING | {
    'epochs': float(epochs),
    'mixup_alpha': 0.8,
    'cutmix_alpha': 1.0,
    'schedule.learning_rate': base_rate * BATCH_SIZE / 256,
    'schedule.warmup_steps': 5 / epochs,  # five epochs
    'optimizer.layer_decay': layer_decay,
    'model.stochastic_depth_rate': drop_path,
  }


def _clip(epochs, warmup_epochs, rate, layer_decay):
  """LightDXY/FT-CLIP, scripts/ and run_class_finetuning.py (arXiv 2212.06138).

  There the batch is 2048; that the rate shrinks with it is our choice. The patch embedding is
  frozen, and the mean of the patches is pooled, after the pretrained LayerNorm and not, as there,
  after a new one. Their moving average (0.9998) is left out: it suits runs of many steps.
  """
  return _FINE_TUNING | {
    'epochs': float(epochs),
    'schedule.learning_rate': rate * BATCH_SIZE / 2048,
    'schedule.warmup_steps': warmup_epochs / epochs,
    'optimizer.layer_decay': layer_decay,
    'optimizer.freeze': ('embedding/.*',),
  }


# SigLIP's paper does not fine-tune all parameters. Rate and epochs are those that arXiv 2109.01903
# has for CLIP on ImageNet with a batch of 512 (mlfoundations/wise-ft, README.md), as is clipping
# (src/models/finetune.py); weight decay and warmup are our choice.
_SIGLIP_RECIPE = {
  'epochs': 10.0,
  'optimizer.name': 'adamw',
  'optimizer.weight_decay': 0.1,
  'optimizer.clip_norm': 1.0,
  'schedule.learning_rate': 3e-5,
  'schedule.warmup_steps': 0.02,
  'data.test.crop_fraction': 1.0,
  'data.test.interpolation': 'bicubic',
  'data.test.resize': 'squash',
}

RECIPES = {
  'linear': _LINEAR,
  'mae_b': _mae(100, 5e-4, 0.65, 0.1),
  'mae_l': _mae(50, 1e-3, 0.75, 0.2),
  'mae_h': _mae(50, 1e-3, 0.75, 0.3),
  'clip_b': _clip(50, 10, 6e-4, 0.6),  # published for B/16
  'clip_l': _clip(30, 5, 4e-4, 0.65),
  'siglip': _SIGLIP_RECIPE,
}

# Of pixels: facebookresearch/dinov2 (dinov2/data/transforms.py) and mae (timm's constants), and
# openai/CLIP (clip.py). SigLIP's are 0.5.
_IMAGENET = {'pixel_mean': (0.485, 0.456, 0.406), 'pixel_std': (0.229, 0.224, 0.225)}
_DINO = {'gelu': 'exact', 'layer_scale': 1e-5, **_IMAGENET}
_DINOV3 = _DINO | {
  'patch_size': 16,
  'registers': 4,
  'rotary': 'dinov3',
  'position_embedding': 'none',
  'layer_norm_epsilon': 1e-5,
  'qkv_bias': 'query_value',
}
_CLIP = {
  'pre_norm': True,
  'patch_bias': False,
  'gelu': 'quick',
  'layer_norm_epsilon': 1e-5,
  'pixel_mean': (0.48145466, 0.4578275, 0.40821073),
  'pixel_std': (0.26862954, 0.26130258, 0.27577711),
}
_SIGLIP = {'pool': 'map'}


def _dinov2():
  sizes = {'s': ('S', 'small'), 'b': ('B', 'base'), 'l': ('L', 'large'), 'g': ('DINOv2-g', 'giant')}
  for letter, (variant, size) in sizes.items():
    fields = _DINO | {'variant': variant, 'patch_size': 14}
    if letter == 'g':
      fields['mlp'] = 'swiglu'
    name, registers = f'dinov2_{letter}14', {'registers': 4}
    yield name, Foundation(f'facebook/dinov2-{size}', 'linear', fields)
    weights = f'facebook/dinov2-with-registers-{size}'
    yield f'{name}_reg', Foundation(weights, 'linear', fields | registers)


def _dinov3():
  names = {'S': 'vits16', 'S+': 'vits16plus', 'B': 'vitb16', 'L': 'vitl16', 'H+': 'vith16plus'}
  for variant, name in (names | {'7B': 'vit7b16'}).items():
    fields = _DINOV3 | {'variant': variant}
    if variant in ('S+', 'H+', '7B'):
      fields['mlp'] = 'swiglu'
    if variant == '7B':
      fields['qkv_bias'] = 'none'
    weights = f'facebook/dinov3-{name}-pretrain-lvd1689m'
    yield f'dinov3_{name.removeprefix("vit")}', Foundation(weights, 'linear', fields)


FAMILIES = {
  **dict(_dinov2()),
  **dict(_dinov3()),
  **{
    f'mae_{letter}{patch}': Foundation(
      f'facebook/vit-mae-{size}',
      f'mae_{letter}',
      {
        'variant': letter.upper(),
        'patch_size': patch,
        'gelu': 'exact',
        'layer_norm_epsilon': 1e-12,
        **_IMAGENET,
      },
    )
    for letter, patch, size in (('b', 16, 'base'), ('l', 16, 'large'), ('h', 14, 'huge'))
  },
  **{
    f'clip_{letter}{patch}': Foundation(
      f'openai/clip-vit-{size}-patch{patch}',
      f'clip_{letter}',
      _CLIP | {'variant': letter.upper(), 'patch_size': patch},
    )
    for letter, patch, size in (('b', 32, 'base'), ('b', 16, 'base'), ('l', 14, 'large'))
  },
  'siglip_b16': Foundation(
    'google/siglip-base-patch16-224', 'siglip', _SIGLIP | {'variant': 'B', 'patch_size': 16}
  ),
  'siglip_l16': Foundation(
    'google/siglip-large-patch16-256',
    'siglip',
    _SIGLIP | {'variant': 'L', 'patch_size': 16},
    image_size=256,
  ),
  'siglip_so400m14': Foundation(
    'google/siglip-so400m-patch14-224', 'siglip', _SIGLIP | {'variant': 'So400m', 'patch_size': 14}
  ),
}
