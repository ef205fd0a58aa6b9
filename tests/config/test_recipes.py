"""The recipes of the paper: every row of both tables is a config that can be run."""

import jax
import pytest

from configs import finetune, recipes
from tests.helpers import make_program
from vit_jax import config as config_lib
from vit_jax.config import Config, replace_fields
from vit_jax.data.sources.splitting import splits
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.weights import registry

PRETRAINING = [
  f'{model},{data},{epochs}'
  for data, rows in recipes.PRETRAINING.items()
  for model, row in rows.items()
  for epochs in row.epochs
]
FINE_TUNING = [f'{model},imagenet' for model in recipes.MODELS]
FINE_TUNING += [f'b16,{data}' for data in recipes.FINE_TUNING if data != 'imagenet']
TABLE_2 = [f'{model},imagenet,paper' for model in recipes.TABLE_2]


def load(name: str, *overrides: str) -> Config:
  return config_lib.load_config(f'configs/{name}', overrides).resolve_steps(0)


@pytest.mark.parametrize('argument', PRETRAINING)
def test_every_row_of_table_3_is_a_config(argument):
  config = load(f'pretrain.py:{argument}')
  model, data, epochs = argument.split(',')
  row = recipes.PRETRAINING[data][model]
  assert config.total_steps == int(epochs) * recipes.EXAMPLES[data] // 4096
  assert (config.batch_size, config.data.image_size) == (4096, 224)
  assert (config.schedule.warmup_steps, config.schedule.decay) == (10_000, row.decay)
  assert config.model.dropout_rate == row.dropout_rate
  assert (config.optimizer.clip_norm > 0) == (data == 'imagenet')
  build.check_image_size((224, 224), build.model_from_config(config.model, 10), 'image_size')


@pytest.mark.parametrize('argument', FINE_TUNING + TABLE_2)
def test_every_row_of_table_4_and_every_model_is_a_config(argument):
  config = load(f'finetune.py:{argument}')
  model = build.model_from_config(config.model, 10)
  build.check_image_size(config.data.height_width, model, 'image_size')
  optimizer = config.optimizer
  assert (config.batch_size, optimizer.name, optimizer.weight_decay) == (512, 'sgd', 0)
  assert config.ema_decay == (0.9999 if argument in TABLE_2 else 0)
  assert config.schedule.learning_rate in finetune.paper_grid(argument)[0]['schedule.learning_rate']


@pytest.mark.parametrize(
  ('data', 'models', 'epochs', 'rate', 'decay', 'weight_decay', 'dropout'),
  [
    ('jft', ('b32', 'b16', 'r50_b32', 'r50_b16'), 7, 8e-4, 'linear', 0.1, 0),
    ('jft', ('l32',), 7, 6e-4, 'linear', 0.1, 0),
    ('jft', ('l16', 'r50_l16'), 14, 4e-4, 'linear', 0.1, 0),
    ('jft', ('h14',), 14, 3e-4, 'linear', 0.1, 0),
    ('jft', ('r50_l32',), 7, 2e-4, 'linear', 0.1, 0),
    ('imagenet21k', ('b32', 'b16', 'l32', 'l16'), 90, 1e-3, 'linear', 0.03, 0.1),
    ('imagenet21k', ('r50_b32', 'r50_b16', 'r50_l32', 'r50_l16'), 90, 1e-3, 'linear', 0.03, 0.1),
    ('imagenet', ('b32', 'b16', 'l32', 'l16'), 300, 3e-3, 'cosine', 0.3, 0.1),
  ],
)
def test_the_hyperparameters_are_those_of_table_3(
  data, models, epochs, rate, decay, weight_decay, dropout
):
  """As published; hybrids on ImageNet-21k, which it lacks, are trained as their Transformers."""
  for model in models:
    config = load(f'pretrain.py:{model},{data}')
    schedule, optimizer = config.schedule, config.optimizer
    assert config.total_steps == epochs * recipes.EXAMPLES[data] // 4096, model
    assert (schedule.learning_rate, schedule.decay) == (rate, decay), model
    assert (optimizer.name, optimizer.b1, optimizer.b2) == ('adamw', 0.9, 0.999)
    assert (optimizer.weight_decay, config.model.dropout_rate) == (weight_decay, dropout), model


def test_fields_of_some_rows_by_hand():
  config = load('pretrain.py:l32,jft')
  assert (config.schedule.learning_rate, config.optimizer.weight_decay) == (6e-4, 0.1)
  config = load('pretrain.py:r50_l32,jft')
  assert (config.schedule.learning_rate, config.model.resnet_blocks) == (2e-4, (3, 4, 6, 3))
  assert (config.model.patch_size, config.model.pre_logits) == (32, 1024)
  config = load('pretrain.py:r152x1,jft')
  assert (config.schedule.learning_rate, config.model.pre_logits) == (6e-4, 0)
  config = load('pretrain.py:b16,imagenet')
  assert (config.schedule.learning_rate, config.optimizer.weight_decay) == (3e-3, 0.3)
  assert load('pretrain.py:l16,jft,7').total_steps * 2 == load('pretrain.py:l16,jft').total_steps


@pytest.mark.parametrize('model', ['b16', 'l16', 'h14'])
@pytest.mark.parametrize('data', ['jft', 'imagenet21k', 'imagenet'])
def test_short_names_are_rows_of_table_3(model, data):
  assert load(f'vit_{model}.py:{data}') == load(f'pretrain.py:{model},{data}')


def test_patches_of_h14():
  """518 px are 37 x 37 patches; at 384 px the original code has 27 x 27 and drops 6 pixels."""
  for argument, side in (('h14,imagenet,paper', 37), ('h14,imagenet', 27)):
    config = load(f'finetune.py:{argument}')
    model = build.model_from_config(config.model, 10)
    assert build.patch_grid(config.data.height_width, model) == (side, side)
    params = build.abstract_params(model, config.data.height_width)
    assert params['Transformer']['posembed_input']['pos_embedding'].shape == (1, side**2 + 1, 1280)


@pytest.mark.parametrize(('model', 'millions'), [('b16', 86), ('l16', 304), ('h14', 632)])
def test_models_have_their_published_size(model, millions):
  """Table 1, which has 307 M for L/16: at 224 px, without the head, there are 304 M."""
  config = load(f'pretrain.py:{model},jft')
  model = build.model_from_config(config.model, num_classes=0)
  count = build.count_parameters(build.abstract_params(model, (224, 224)))
  assert round(count / 1e6) == pytest.approx(millions, abs=1)


def test_the_recipe_of_g14():
  """The values of google-research/big_vision, configs/proj/scaling_laws/train_vit_g.py."""
  config = load('vit_g14.py')
  optimizer, schedule, model = config.optimizer, config.schedule, config.model
  assert (config.batch_size, config.total_steps, config.loss) == (16_384, 1_000_000, 'sigmoid')
  assert (optimizer.name, optimizer.b1, optimizer.b2) == ('adafactor', 0.9, 0.999)
  assert (optimizer.max_update_rms, optimizer.clip_norm) == (0, 1)
  assert (optimizer.weight_decay, optimizer.head_decay_multiplier) == (0.03, 100)
  assert (schedule.decay, schedule.learning_rate, schedule.timescale) == ('rsqrt', 8e-4, 10_000)
  assert (schedule.warmup_steps, schedule.cooldown_steps) == (10_000, 50_000)
  assert (model.patch_size, model.pool, model.head_bias_init) == (14, 'map', -10)
  assert (config.data.num_classes, config.data.image_size) == (29_593, 224)
  assert replace_fields(load('vit_g14.py:G'), {'model.variant': 'g'}) == config


@pytest.mark.parametrize(('size', 'millions'), [('g', 1011), ('G', 1843)])
def test_sizes_of_scaling_vision_transformers(size, millions):
  """arXiv 2106.04560, Table 2, which counts neither head nor attention pooling."""
  config = replace_fields(load(f'vit_g14.py:{size}'), {'model.pool': 'gap'})
  model = build.model_from_config(config.model, num_classes=0)
  assert build.count_parameters(build.abstract_params(model, (224, 224))) // 10**6 == pytest.approx(
    millions, abs=1
  )


@pytest.mark.parametrize(('model', 'units'), [('r200x3', 66), ('r50x2', 16), ('r152x1', 50)])
def test_resnets_that_were_not_released_can_be_built(model, units):
  config = load(f'pretrain.py:{model},jft')
  resnet = build.model_from_config(config.model, num_classes=10)
  assert sum(resnet.blocks) == units and 3 * units + 2 == int(model[1:].split('x')[0])
  assert resnet.width == 64 * int(model[-1])


@pytest.mark.parametrize('name', ['pretrain.py:b32,jft', 'finetune.py:r_ti16,cifar100'])
def test_the_train_step_of_a_row_traces(name):
  config = load(name, '--config.batch_size=8', '--config.model.depth=1')
  program = make_program(config, num_classes=10, multi_label=config.loss == 'sigmoid')
  key = jax.eval_shape(lambda: jax.random.key(0))
  state, metrics = jax.eval_shape(
    program.train_step, program.abstract_state, program.abstract_batch, key
  )
  assert metrics['train/loss'].shape == () and state.step.shape == ()


@pytest.mark.parametrize('row', recipes.FINE_TUNING.values())
def test_the_splits_of_table_4_can_be_parsed(row):
  for split in (row.train_split, row.test_split, row.part_to_train, row.part_to_choose):
    assert splits.parse(split)


@pytest.mark.parametrize('model', finetune.RELEASED)
def test_the_weights_to_start_from_are_published(model):
  assert registry.find(finetune.RELEASED[model]).name
  assert load(f'finetune.py:{model},pets').init_from == finetune.RELEASED[model]


def test_models_without_published_weights_start_from_our_pretraining():
  assert load('finetune.py:r200x3,pets').init_from == 'runs/pretrain-r200x3-jft/model'


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('pretrain.py:l16', 'not model,data.*jft, imagenet21k, imagenet'),
    ('pretrain.py:r50x1,imagenet', "one of b32, b16, l32, l16, h14, not 'r50x1'"),
    ('pretrain.py:l16,jft,30', "for 14 or 7 epochs; for '30' set config.total_steps"),
    ('pretrain.py:l16,jft,7,8', 'not model,data'),
    ('vit_g14.py:h', "the size is 'h'; choose g or G"),
    ('finetune.py:b17,pets', "the model is 'b17'"),
    ('finetune.py:b16,imagenet,paper', 'Table 2 has l16 and h14 on ImageNet, not b16'),
    ('finetune.py:b16,pets,best', "the dataset is 'pets,best'.*,paper"),
  ],
)
def test_a_wrong_argument_names_the_choices(name, message):
  with pytest.raises(UserError, match=message):
    load(name)


def test_a_config_json_of_a_resnet_with_a_patch_size_resumes(tmp_path):
  """As pretrain.py and finetune.py once wrote them."""
  config = config_lib.load_config('configs/finetune.py:r50x1,pets')
  path = tmp_path / 'config.json'
  old = config_lib.replace_fields(config, {'model.patch_size': 32})
  config_lib.write_config(old, path)
  assert config_lib.load_config(str(path)) == config
  config_lib.check_same_run(config, path)
