"""Fine-tunes a released ViT, or your own, as in the paper (arXiv 2010.11929, Table 4).

  python -m vit_jax.main --config=configs/finetune.py:b16,cifar10
  python -m vit_jax.main --config=configs/finetune.py:ti16,folder:/my/images

The argument is model,dataset: one of MODELS, and one of DATASETS or any data source (your own
images: docs/own_images.md). The released weights in MODELS are downloaded once;
--config.init_from=FILE uses others.

For DATASETS, Table 4: SGD with momentum 0.9, batch 512, cosine decay, no weight decay, clipping
at global norm 1, 384 px. The paper sweeps the learning rate (see DATASETS); the default here is
the third of the four. Test images are squashed to the size, bilinearly and without antialiasing,
as in the original code (google-research/vision_transformer, input_pipeline.py, line 213).

Published for the released ImageNet-21k checkpoints (README of google-research/vision_transformer,
dropout 0.0): B/16 CIFAR-10 99.02 %, CIFAR-100 92.06 %, ImageNet 84.53 %; L/16 99.13 %, 92.91 %,
84.47 %.
"""

from vit_jax.config import default_config

# name: (variant, pixels per token, units per ResNet stage of a hybrid, released file)
MODELS = {
  'ti16': ('Ti', 16, None, 'augreg/Ti_16'),
  's32': ('S', 32, None, 'augreg/S_32'),
  's16': ('S', 16, None, 'augreg/S_16'),
  'b32': ('B', 32, None, 'imagenet21k/ViT-B_32'),
  'b16': ('B', 16, None, 'imagenet21k/ViT-B_16'),
  'l32': ('L', 32, None, 'imagenet21k/ViT-L_32'),
  'l16': ('L', 16, None, 'imagenet21k/ViT-L_16'),
  'h14': ('H', 14, None, 'imagenet21k/ViT-H_14'),
  # Published as /16, but the stem and its 8 x 8 patches of features make it 32 pixels per token.
  'r_ti16': ('Ti', 32, (), 'augreg/R_Ti_16'),
  'r26_s32': ('S', 32, (2, 2, 2, 2), 'augreg/R26_S_32'),
  'r50_b16': ('B', 16, (3, 4, 9), 'imagenet21k/R50+ViT-B_16'),
  'r50_l32': ('L', 32, (3, 4, 6, 3), 'augreg/R50_L_32'),
  'r50x1': ('R50x1', 32, None, 'bit/BiT-M-R50x1'),
  'r101x3': ('R101x3', 32, None, 'bit/BiT-M-R101x3'),
  'r152x4': ('R152x4', 32, None, 'bit/BiT-M-R152x4'),
}

# name: (source, train split, test split, steps, the learning rates that the paper sweeps)
DATASETS = {
  'cifar10': ('tfds:cifar10', 'train', 'test', 10_000, (0.001, 0.003, 0.01, 0.03)),
  'cifar100': ('tfds:cifar100', 'train', 'test', 10_000, (0.001, 0.003, 0.01, 0.03)),
  'pets': ('tfds:oxford_iiit_pet', 'train', 'test', 500, (0.001, 0.003, 0.01, 0.03)),
  'flowers': (
    'tfds:oxford_flowers102',
    'train+validation',
    'test',
    500,
    (0.001, 0.003, 0.01, 0.03),
  ),
  'imagenet': ('tfds:imagenet2012', 'train', 'validation', 20_000, (0.003, 0.01, 0.03, 0.06)),
}


def start_from(model):
  """A config that starts from the released weights of a model."""
  config = default_config()
  variant, patch_size, resnet_blocks, config.init_from = MODELS[model]
  config.model.variant, config.model.patch_size = variant, patch_size
  if resnet_blocks is not None:
    config.model.resnet_width, config.model.resnet_blocks = 64, resnet_blocks
  return config


def custom_data(model, source):
  """A config for any data source: a small batch, and steps that follow from its size."""
  config = start_from(model)
  config.data.train.source = source
  config.total_steps, config.epochs = 0, 20.0
  config.batch_size = 32
  config.log_every = 10
  config.eval_every = config.checkpoint.every = 0  # ten times per run
  config.data.image_size = 224
  config.data.augment.area = (0.3, 1.0)
  config.optimizer.name = 'sgd'
  config.optimizer.b1 = 0.9
  config.optimizer.clip_norm = 1.0
  config.schedule.decay = 'cosine'
  config.schedule.learning_rate = 0.003
  return config


def get_config(argument='b16,cifar10'):
  model, _, dataset = argument.partition(',')
  if model not in MODELS:
    raise ValueError(f'the model is {model!r}; choose one of {", ".join(MODELS)}')
  if dataset not in DATASETS and ':' not in dataset and dataset != 'digits':
    raise ValueError(
      f'the dataset is {dataset!r}; choose one of {", ".join(DATASETS)}, or a source such as '
      'folder:/path'
    )
  if dataset not in DATASETS:
    return custom_data(model, dataset)
  source, train, test, steps, learning_rates = DATASETS[dataset]

  config = start_from(model)
  config.total_steps = steps
  config.batch_size = 512
  config.eval_every = max(steps // 10, 50)
  config.checkpoint.every = max(steps // 10, 50)
  # 14 does not divide 384
  config.data.image_size = 384 if config.model.patch_size != 14 else 392
  config.data.test.update(
    resize='squash', crop_fraction=1.0, interpolation='bilinear', antialias=False
  )
  config.data.train.source = source
  config.data.train.split, config.data.test.split = train, test
  config.optimizer.name = 'sgd'
  config.optimizer.b1 = 0.9
  config.optimizer.clip_norm = 1.0
  config.schedule.decay = 'cosine'
  config.schedule.learning_rate = learning_rates[2]
  config.schedule.warmup_steps = min(500, steps // 5) / steps  # a share of the run
  return config
