"""The recipes of the paper: every row of both tables is a config that can be run."""

import jax
import pytest

from configs import finetune, recipes
from tests.helpers import make_program
from vit_jax import config as config_lib
from vit_jax.config import Config
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
