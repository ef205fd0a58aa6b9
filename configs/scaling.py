"""The finding of the paper in miniature: models of about equal compute on a part of the data.

  python -m vit_jax.main --config=configs/scaling.py:vit,10%
  python -m vit_jax.experiments.scaling    # all models, parts and seeds; tables and a picture

The argument is MODEL,FRACTION[,strong]: one of MODELS, and the percentage of the training split to
train on. Slices of a folder are taken of one random order, so smaller parts are in larger ones.
All models see the same number of examples, 64 in each of 4,000 steps at 32 px, and need 8.6 to 10
MFLOPs for the forward pass of an image. By default the images are padded by 4 pixels, cropped and
mirrored; `strong` adds mixup and the RandAugment of DeiT (arXiv 2012.12877, Table 9). That of
AugReg moves images by up to 150 pixels, whatever their size.

10-shot accuracy (Section 4.1): the examples are drawn from one half of the test split, which no
model was trained on, and the other half is scored.

Some of the classes only: --config.data.train.source='folder:data/cifar10?pattern=^(cat|dog)/'.

The learning rates of ViT, hybrid and ResNet are the better ones of 0.001 and 0.003 in runs of 1,500
steps on all training images of CIFAR-10; axial_vit and detr take that of the ViT, the ResNets with
attention that of the ResNet. The recipe is our own, in the manner of Section 4.3 (Figures 3 and 4),
which varies JFT-300M from 9 million images to all, with fixed hyperparameters.
"""

import re

from vit_jax.config import default_config, eval_config

_TRANSFORMER = {'variant': 'Ti', 'patch_size': 8, 'num_heads': 4, 'pool': 'gap', 'depth': 2}
_RESNET = {'variant': 'R50x1', 'resnet_width': 32}
_RESNET_ATTENTION = {**_RESNET, 'resnet_blocks': (1, 1), 'num_heads': 4}

# name: (fields of config.model, peak learning rate)
MODELS = {
  'vit': ({**_TRANSFORMER, 'width': 128, 'mlp_dim': 256}, 1e-3),
  'hybrid': (
    {
      **_TRANSFORMER,
      'depth': 3,
      'width': 64,
      'mlp_dim': 128,
      'resnet_width': 32,
      'resnet_blocks': (1,),
    },
    3e-3,
  ),
  'resnet': ({**_RESNET, 'resnet_blocks': (1, 1)}, 3e-3),
  # Attention systems of related work: vit_jax/models/attention/.
  'axial_vit': ({**_TRANSFORMER, 'axial': True, 'width': 96, 'mlp_dim': 160}, 1e-3),
  'axial_resnet': ({**_RESNET_ATTENTION, 'resnet_spatial': 'axial', 'resnet_window': 15}, 3e-3),
  'local_resnet': ({**_RESNET_ATTENTION, 'resnet_spatial': 'local'}, 3e-3),
  'nonlocal_resnet': ({**_RESNET, 'resnet_blocks': (1,), 'non_local_stages': (1,)}, 3e-3),
  'detr': (
    {
      **_RESNET,
      'variant': 'DETR-R50',
      'resnet_blocks': (1,),
      'width': 64,
      'depth': 1,
      'mlp_dim': 64,
      'num_heads': 4,
    },
    1e-3,
  ),
}


def training_split(fraction):
  """'10%' -> 'train[:10%]'; raises `ValueError` for what is no percentage up to 100."""
  match = re.fullmatch(r'(\d+(?:\.\d+)?)%', fraction)
  percent = float(match[1]) if match else 0
  if not 0 < percent <= 100:
    raise ValueError(f'the fraction is {fraction!r}; it must be a percentage up to 100%, as in 10%')
  return 'train' if percent == 100 else f'train[:{percent:g}%]'


def get_config(argument='vit,100%'):
  model, fraction, *augmentation = (argument if ',' in argument else f'{argument},100%').split(',')
  if model not in MODELS or augmentation not in ([], ['strong']):
    raise ValueError(
      f'the argument is {argument!r}, not MODEL,FRACTION[,strong]; the models are '
      f'{", ".join(MODELS)}'
    )
  config = default_config()
  fields, learning_rate = MODELS[model]
  config.model.update(fields)
  config.schedule.learning_rate = learning_rate
  config.optimizer.weight_decay = 0.05

  config.total_steps = 4000
  config.batch_size = 64
  config.eval_batch_size = 500
  config.eval_every = 1_000_000_000  # at the end only
  config.log_every = 500
  config.checkpoint.update(every=1000, keep=1)
  config.schedule.warmup_steps = 0.1  # a share of the run

  config.data.image_size = 32
  config.data.workers = 0  # threads suffice for small images
  config.data.train.source = 'folder:data/cifar10'
  config.data.train.split = training_split(fraction)
  config.data.test.crop_fraction = 1.0
  config.data.augment.update(crop='random', pad=4)
  config.evals.fewshot = eval_config(
    'fewshot', shots=(10,), train_split='test[:50%]', split='test[50%:]'
  )
  if augmentation:
    config.data.augment.update(
      randaugment='timm_increasing', randaugment_magnitude=9.0, randaugment_std=0.5
    )
    config.mixup_alpha = 0.2
  return config
