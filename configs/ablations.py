"""The ablations of the paper (arXiv 2010.11929, Appendix D), one name for each row.

  python -m vit_jax.main --config=configs/ablations.py:positions_2d          as in the paper, on JFT
  python -m vit_jax.main --config=configs/ablations.py:positions_2d,digits   a small model, 32 px

The argument is NAME[,data]. ABLATIONS has the names: a model of recipes.MODELS and what it changes.

With data of recipes.PRETRAINING (jft, imagenet21k, imagenet) the rest is that of
configs/pretrain.py, and for jft and imagenet21k config.evals.imagenet_5shot measures what Table 8
and Figures 8, 9 and 13 do. With any other source it is that of configs/small_images.py:vit, 128
wide, 6 deep, patches of a quarter of the pixels; shapes are an eighth of the paper's in width, MLP
and patches, ResNets half as wide. All fields can be set on top: --config.total_steps=200,
--config.model.depth=2. docs/ablations.md says what each name is.

What the paper does not state, and is ours: the learning rate and the heads (64 wide) of the shapes,
and the values along each dimension other than the base and the depths of 16 and 64; attention
pooling, which is arXiv 2106.04560's.

Table 7 compares ways of pretraining; fine-tune the results with configs/finetune.py:r50x1,cifar10
--config.init_from=runs/ablations-optimizer_sgd_r50x1/model. SGD has BiT's hyperparameters (arXiv
1912.11370, Section 3): momentum 0.9, learning rate 0.03 for each 256 examples of a batch, 5,000
steps of warmup. Two things differ: BiT divides the learning rate by ten at some epochs, of 40, and
here, where 7 epochs have no such table, it decays linearly; and BiT's weight decay of 1e-4 is taken
for an L2 penalty, whose gradient momentum adds up to ten times, so that the decoupled decay here
is 1e-3.
"""

from configs import pretrain, recipes, small_images
from vit_jax.config import default_config, eval_config

_SHAPE = {'model.depth': 8, 'model.width': 1024, 'model.mlp_dim': 2048, 'model.num_heads': 16}
_SGD = {
  'optimizer.name': 'sgd',
  'optimizer.b1': 0.9,
  'optimizer.clip_norm': 0.0,
  'optimizer.weight_decay': 1e-3,
}
_ADAM = {'optimizer.name': 'adamw'}


def _head(pool, learning_rate):
  # Without the class token a linear layer follows, without a hidden one (Appendix D.3).
  hidden = {} if pool == 'token' else {'model.pre_logits': 0}
  return 'b16', {'model.pool': pool, 'schedule.learning_rate': learning_rate, **hidden}


def _positions(kind, entry='stem'):
  return 'b16', {'model.position_embedding': kind, 'model.position_entry': entry}


def _shape(**changes):
  return 'b32', _SHAPE | {f'model.{name}': value for name, value in changes.items()}


# name: (model, {field: value})
ABLATIONS = {
  # Figure 9
  'head_token': _head('token', 8e-4),
  'head_gap': _head('gap', 3e-4),
  'head_gap_8e-4': _head('gap', 8e-4),
  'head_map': _head('map', 8e-4),
  # Table 8
  'positions_none': _positions('none'),
  'positions_1d': _positions('1d'),
  'positions_1d_layers': _positions('1d', 'layers'),
  'positions_1d_layers_shared': _positions('1d', 'layers_shared'),
  'positions_2d': _positions('2d'),
  'positions_2d_layers': _positions('2d', 'layers'),
  'positions_2d_layers_shared': _positions('2d', 'layers_shared'),
  'positions_relative': _positions('relative'),
  # Table 7
  'optimizer_adam_r50x1': ('r50x1', _ADAM),
  'optimizer_sgd_r50x1': ('r50x1', _SGD),
  'optimizer_adam_r152x2': ('r152x2', _ADAM),
  'optimizer_sgd_r152x2': ('r152x2', _SGD),
  # Figure 8
  'shape_base': _shape(),
  **{f'shape_depth_{n}': _shape(depth=n) for n in (2, 4, 16, 32, 64)},
  **{f'shape_width_{n}': _shape(width=n, num_heads=n // 64) for n in (512, 2048)},
  **{f'shape_mlp_{n}': _shape(mlp_dim=n) for n in (1024, 4096, 8192)},
  **{f'shape_patch_{n}': _shape(patch_size=n) for n in (8, 16)},
  # Figure 13
  'axial_b32': ('b32', {'model.axial': True, 'model.pool': 'gap', 'model.pre_logits': 0}),
  'axial_b16': ('b16', {'model.axial': True, 'model.pool': 'gap', 'model.pre_logits': 0}),
}


def _published(model, data):
  config = pretrain.get_config(f'{model},{data}')
  if data != 'imagenet':
    config.evals.imagenet_5shot = eval_config(
      'fewshot', source='tfds:imagenet2012', split='validation', shots=(5,)
    )
  return config


def _small(model, changes, source):
  """(config, changes) of a small model of the same kind."""
  config = small_images.get_config(f'vit,{source}')
  variant, patch_size, _ = recipes.MODELS[model]
  config.model.pool = 'token'
  if variant.startswith('R'):
    config.model.update(default_config().model)
    config.model.update(variant=variant, resnet_width=32 * int(variant[-1]))
  else:
    config.model.patch_size = patch_size // (8 if 'model.width' in changes else 4)
  eighths = ('model.width', 'model.mlp_dim', 'model.patch_size')
  changes = {name: x // 8 if name in eighths else x for name, x in changes.items()}
  if 'model.width' in changes:
    changes['model.num_heads'] = changes['model.width'] // 32
  return config, {name: x for name, x in changes.items() if name != 'model.pre_logits'}


def get_config(argument='positions_2d'):
  name, comma, data = argument.partition(',')
  if name not in ABLATIONS:
    raise ValueError(f'the ablation is {name!r}; choose one of {", ".join(ABLATIONS)}')
  if not comma:
    data = 'jft'
  model, changes = ABLATIONS[name]
  if data in recipes.PRETRAINING:
    if model not in recipes.PRETRAINING[data]:
      raise ValueError(
        f'{name} is a row for jft, because the paper trains its model, {model}, on nothing else; '
        f'use {name} alone, or a source of your own such as {name},folder:/path'
      )
    config = _published(model, data)
    config.model.pre_logits = changes.get('model.width', config.model.pre_logits)
  elif ':' in data or data == 'digits':
    config, changes = _small(model, changes, data)
  else:
    raise ValueError(
      f'the data is {data!r}; choose one of {", ".join(recipes.PRETRAINING)}, or a source such as '
      'folder:/path'
    )
  config.update_from_flattened_dict(changes)
  if changes.get('optimizer.name') == 'sgd':
    config.schedule.learning_rate = 0.03 * config.batch_size / 256
    if data in recipes.PRETRAINING:
      config.schedule.warmup_steps = 5000
  return config
