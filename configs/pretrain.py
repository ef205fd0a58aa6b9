"""Pretrains with the hyperparameters of the paper's Table 3 (configs/recipes.py).

  python -m vit_jax.main --config=configs/pretrain.py:l16,jft
  python -m vit_jax.main --config=configs/pretrain.py:l16,jft,7     7 epochs instead of 14

The argument is model,data[,epochs]: data jft, imagenet21k or imagenet, and a model of its rows in
recipes.PRETRAINING. Neither JFT-300M nor the splits of ImageNet-21k are public under one name: set
--config.data.train.source to your own. configs/vit_b16.py, vit_l16.py and vit_h14.py are short
names of three models.

How the paper evaluated pretraining is not published; here by the defaults of config.data.test
(shorter side to 256, bilinear and antialiased, cropped to 224). Mesh and remat are the cheapest
that fit all slices of benchmarks/plans/: for most models the defaults, in which every device holds
a full model and keeps all activations. Published results and the whole way to them:
results/published.csv, docs/reproduce.md.
"""

from configs import recipes
from vit_jax.config import default_config


def select(argument):
  """(model, data, epochs) of 'l16,jft' or 'l16,jft,7'."""
  model, data, epochs = (argument.split(',') + [''] * 3)[:3]
  if data not in recipes.PRETRAINING or argument.count(',') > 2:
    raise ValueError(
      f'the argument is {argument!r}, not model,data[,epochs]; the data is one of '
      f'{", ".join(recipes.PRETRAINING)}'
    )
  rows = recipes.PRETRAINING[data]
  if model not in rows:
    raise ValueError(f'on {data} the model is one of {", ".join(rows)}, not {model!r}')
  choices = [str(number) for number in rows[model].epochs]
  if epochs and epochs not in choices:
    raise ValueError(
      f'the paper trains {model} on {data} for {" or ".join(choices)} epochs; for {epochs!r} set '
      'config.total_steps'
    )
  return model, data, int(epochs or choices[0])


def get_config(argument='b16,imagenet21k'):
  model, data, epochs = select(argument)
  row = recipes.PRETRAINING[data][model]
  config = default_config()
  config.batch_size = recipes.BATCH_SIZE
  config.total_steps = epochs * recipes.EXAMPLES[data] // recipes.BATCH_SIZE
  config.eval_every = 5000
  config.checkpoint.every = 1000

  variant, patch_size, resnet_blocks = recipes.MODELS[model]
  config.model.variant = variant
  if not variant.startswith('R'):  # a ResNet has no patches
    config.model.patch_size = patch_size
  if resnet_blocks is not None:
    config.model.resnet_width, config.model.resnet_blocks = 64, resnet_blocks
  # In pretraining the head of a Transformer has one hidden layer (Section 3.1), as wide as in the
  # released models.
  config.model.pre_logits = {'B': 768, 'L': 1024, 'H': 1280}.get(variant, 0)
  config.model.dropout_rate = row.dropout_rate
  if variant == 'H':  # fewer than 16 chips need another fsdp
    config.mesh.fsdp, config.model.remat = 16, 'dots'

  config.data.image_size = recipes.IMAGE_SIZE
  config.data.num_classes = recipes.NUM_CLASSES[data]
  config.data.train.source = (
    'tfds:imagenet2012' if data == 'imagenet' else f'array_record:data/{data}'
  )
  config.data.test.split = 'validation'
  if data != 'imagenet':
    config.loss = 'sigmoid'  # several labels per image
    config.model.head_bias_init = -10.0  # each class starts with probability e^-10

  config.optimizer.name = 'adamw'
  config.optimizer.weight_decay = row.weight_decay
  config.optimizer.clip_norm = 1.0 if data == 'imagenet' else 0.0
  config.schedule.learning_rate, config.schedule.decay = row.learning_rate, row.decay
  config.schedule.warmup_steps = recipes.WARMUP_STEPS
  return config
