"""Fine-tunes a released ViT, or your own, as in the paper (arXiv 2010.11929, Table 4).

  python -m vit_jax.main --config=configs/finetune.py:b16,cifar10
  python -m vit_jax.main --config=configs/finetune.py:l16,imagenet,paper    as in Table 2
  python -m vit_jax.main --config=configs/finetune.py:ti16,folder:/my/images
  python -m vit_jax.main --config=configs/finetune.py:dinov2_b14,folder:/my/images
  python -m vit_jax.main --config=configs/finetune.py:/my/weights,folder:/my/images

The argument is model,dataset: one of recipes.MODELS, of foundation.FAMILIES, or the weights of any
ViT, whose tensors give config.model (docs/foundation_weights.md); and one of recipes.FINE_TUNING or
any data source (your own images: docs/own_images.md). The weights in RELEASED are downloaded once;
--config.init_from=FILE uses others. With ,paper ImageNet is fine-tuned at the size of Table 2, 512
px for L/16 and 518 px for H/14, and the average of the parameters is evaluated; the other data sets
of that table are fine-tuned as without it.

configs/recipes.py has Table 4, and what holds for all its rows. The paper tries several learning
rates; the default here is the third one. Test images are squashed to the size, bilinearly and
without antialiasing, as in the original code (google-research/vision_transformer,
input_pipeline.py, line 213).

Published results, and the command for each: results/published.csv. For the released ImageNet-21k
checkpoints (README of google-research/vision_transformer, dropout 0.0): B/16 CIFAR-10 99.02 %,
CIFAR-100 92.06 %, ImageNet 84.53 %; L/16 99.13 %, 92.91 %, 84.47 %. For the released ImageNet-21k
Mixers (the same README, at 224 px, which is the only size that a Mixer fits; rate 0.03): B/16
CIFAR-10 96.82 %, L/16 98.34 %.
"""

import dataclasses

from configs import foundation, recipes
from vit_jax.config import default_config
from vit_jax.models.model_fields import model_fields
from vit_jax.weights.load import open_weights

# The weights that a run starts from; for other models of recipes.MODELS your own, by default those
# of configs/pretrain.py on JFT.
RELEASED = {
  'ti16': 'augreg/Ti_16',
  's32': 'augreg/S_32',
  's16': 'augreg/S_16',
  'b32': 'imagenet21k/ViT-B_32',
  'b16': 'imagenet21k/ViT-B_16',
  'l32': 'imagenet21k/ViT-L_32',
  'l16': 'imagenet21k/ViT-L_16',
  'h14': 'imagenet21k/ViT-H_14',
  'r_ti16': 'augreg/R_Ti_16',
  'r26_s32': 'augreg/R26_S_32',
  'r26_b32': 'imagenet21k/R26+ViT-B_32',
  'r50_b16': 'imagenet21k/R50+ViT-B_16',
  'r50_l32': 'augreg/R50_L_32',
  'r50x1': 'bit/BiT-M-R50x1',
  'r101x1': 'bit/BiT-M-R101x1',
  'r101x3': 'bit/BiT-M-R101x3',
  'r152x2': 'bit/BiT-M-R152x2',
  'r152x4': 'bit/BiT-M-R152x4',
  'mixer_b16': 'mixer/imagenet21k/Mixer-B_16',
  'mixer_l16': 'mixer/imagenet21k/Mixer-L_16',
}


def start_from(model):
  """A config that starts from the released weights of a model."""
  config = default_config()
  variant, patch_size, resnet_blocks = recipes.MODELS[model]
  config.model.variant = variant
  if not variant.startswith('R'):  # a ResNet has no patches
    config.model.patch_size = patch_size
  if resnet_blocks is not None:
    config.model.resnet_width, config.model.resnet_blocks = 64, resnet_blocks
  config.init_from = RELEASED.get(model, f'runs/pretrain-{model}-jft/model')
  return config


def custom_data(config, source):
  """Sets any data source: a small batch, and steps that follow from its size."""
  config.data.train.source = source
  if source in recipes.FINE_TUNING:
    set_splits(config, recipes.FINE_TUNING[source])
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


def from_foundation(name, dataset):
  """A config that starts from a row of foundation.FAMILIES, with its recipe."""
  row = foundation.FAMILIES[name]
  config = custom_data(default_config(), dataset)
  config.init_from, config.data.image_size = row.weights, row.image_size
  config.batch_size = foundation.BATCH_SIZE
  config.model.update(row.fields)
  with config.unlocked():
    config.update_from_flattened_dict(foundation.RECIPES[row.recipe])
  return config


def from_weights(path, source):
  """A config whose model is that of the weights at a path."""
  config = custom_data(default_config(), source)
  weights = open_weights(path)
  config.init_from = path
  config.model.update(model_fields(weights.model))
  patch = getattr(weights.model, 'patch_size', 1)
  config.data.image_size = 224 // patch * patch
  if (preprocessing := weights.metadata.preprocessing) is not None:
    config.data.test.update(dataclasses.asdict(preprocessing))
  return config


def set_splits(config, row):
  """Sets the data of a row of recipes.FINE_TUNING."""
  config.data.train.source = row.source
  config.data.train.split, config.data.test.split = row.train_split, row.test_split


def select(argument):
  """(model, data set or source, whether as in Table 2) of 'l16,imagenet,paper'."""
  model, _, dataset = argument.partition(',')
  if model not in recipes.MODELS and model not in foundation.FAMILIES and '/' not in model:
    names = ', '.join([*recipes.MODELS, *foundation.FAMILIES])
    raise ValueError(f'the model is {model!r}; choose one of {names}, or name a path of weights')
  name, _, paper = dataset.partition(',')
  if name in recipes.FINE_TUNING and paper in ('', 'paper'):
    if paper and model not in recipes.MODELS:
      raise ValueError(f'{model} is not a model of the paper; leave ,paper out')
    if paper and name == 'imagenet' and model not in recipes.TABLE_2:
      raise ValueError(f'Table 2 has {" and ".join(recipes.TABLE_2)} on ImageNet, not {model}')
    return model, name, bool(paper)
  if ':' not in dataset and dataset != 'digits':
    raise ValueError(
      f'the dataset is {dataset!r}; choose one of {", ".join(recipes.FINE_TUNING)}, optionally '
      'followed by ,paper, or a source such as folder:/path'
    )
  return model, dataset, False


def paper_grid(argument):
  """What the paper tries for one model and data set, and where it chooses (Appendix B.1.1).

  Returns:
    ({'schedule.learning_rate': (0.001, …)}, train split, split on which the best one is chosen).
  """
  model, dataset, _ = select(argument)
  if dataset not in recipes.FINE_TUNING or model not in recipes.MODELS:
    raise ValueError(f'the paper has no grid for {model} on {dataset}')
  row = recipes.FINE_TUNING[dataset]
  return {'schedule.learning_rate': row.learning_rates}, row.part_to_train, row.part_to_choose


def get_config(argument='b16,cifar10'):
  model, dataset, paper = select(argument)
  if model in foundation.FAMILIES:
    return from_foundation(model, dataset)
  if model not in recipes.MODELS:
    return from_weights(model, dataset)
  if dataset not in recipes.FINE_TUNING:
    return custom_data(start_from(model), dataset)
  row = recipes.FINE_TUNING[dataset]
  config = start_from(model)
  config.total_steps = row.steps
  config.batch_size = 512
  config.eval_every = config.checkpoint.every = max(row.steps // 10, 50)
  # 14 does not divide 384, of which the original code makes 27 x 27 patches and drops the rest.
  config.data.image_size = 384 if config.model.patch_size != 14 else 378
  if config.model.variant.startswith('Mixer'):  # which fits the size of its pretraining only
    config.data.image_size = 224
  if paper and dataset == 'imagenet':
    config.data.image_size, config.ema_decay = recipes.TABLE_2[model]
  config.data.test.update(
    resize='squash', crop_fraction=1.0, interpolation='bilinear', antialias=False
  )
  set_splits(config, row)
  config.optimizer.name = 'sgd'
  config.optimizer.b1 = 0.9
  config.optimizer.clip_norm = 1.0
  config.schedule.decay = 'cosine'
  config.schedule.learning_rate = row.learning_rates[min(2, len(row.learning_rates) - 1)]
  config.schedule.warmup_steps = row.warmup_steps / row.steps  # a share of the run
  return config
