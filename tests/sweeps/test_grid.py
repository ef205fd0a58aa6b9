"""Grids: their points, the names of these, and mistakes in them."""

import pytest

from vit_jax.errors import UserError
from vit_jax.sweeps.grid import make_points, parse_grid

CONFIG = 'configs/quickstart.py'
RATE = 'config.schedule.learning_rate'


def points(*arguments, overrides=()):
  return make_points(CONFIG, overrides, parse_grid(arguments))


def test_a_grid_is_the_product_of_its_fields_in_order():
  grid = points(f'{RATE}=0.01,1e-3', 'config.batch_size=64, 128', overrides=['--config.seed=3'])
  assert [point.name for point in grid] == [
    'learning_rate=0.01,batch_size=64',
    'learning_rate=0.01,batch_size=128',
    'learning_rate=0.001,batch_size=64',
    'learning_rate=0.001,batch_size=128',
  ]
  assert grid[2].flags == (f'--{RATE}=1e-3', '--config.batch_size=64')
  assert grid[2].values == {'learning_rate': 0.001, 'batch_size': 64}
  config = grid[2].config
  assert (config.schedule.learning_rate, config.batch_size, config.seed) == (0.001, 64, 3)


def test_values_may_have_commas_in_brackets():
  grid = points('config.data.image_size=16,(24, 16)')
  assert [point.values for point in grid] == [{'image_size': 16}, {'image_size': (24, 16)}]
  assert len({point.name for point in grid}) == 2
  assert all(' ' not in point.name and '(' not in point.name for point in grid)


def test_fields_of_the_same_name_are_told_apart():
  (point,) = points('config.optimizer.name=sgd', 'config.model.width=32')
  assert list(point.values) == ['name', 'width']
  (point,) = points('config.data.augment.crop=resize', 'config.checkpoint.every=5')
  assert list(point.values) == ['crop', 'every']
  (point,) = points('config.data.augment.antialias=True', 'config.data.test.antialias=True')
  assert list(point.values) == ['data.augment.antialias', 'data.test.antialias']


def test_long_values_name_folders_of_their_own():
  path = 'x' * 300
  grid = points(f'config.init_from={path}/a,{path}/b')
  names = {point.name for point in grid}
  assert len(names) == 2
  assert all(len(name.encode()) <= 150 and '/' not in name for name in names)


@pytest.mark.parametrize(
  ('arguments', 'why'),
  [
    (['config.schedule.learning_rat=0.1'], 'close ones: schedule.learning_rate'),
    ([f'{RATE}=0.1,high'], "learning_rate is 'high'; it must be a number"),
    ([f'{RATE}=0.1,-1'], 'learning_rate is -1; it must be 0 or positive'),
    ([f'{RATE}='], 'it takes a field and its values'),
    ([f'{RATE}=0.1,,0.2'], 'it takes a field and its values'),
    (['schedule.learning_rate=0.1'], 'it takes a field and its values'),
    ([f'{RATE}=0.1,1e-1'], '--grid has learning_rate=0.1 twice'),
    ([f'{RATE}=0.1', f'{RATE}=0.2'], f'--grid has {RATE} twice'),
    (['config.data.train.split=train,test'], 'are trained and compared on the same data'),
    (['config.total_steps=5', 'config.epochs=1'], 'one of them must be positive, the other 0'),
    (['config.seed=1,2'], 'config.seed is in --grid and set by a flag, too'),
  ],
)
def test_mistakes_in_a_grid(arguments, why):
  with pytest.raises(UserError, match=why):
    points(*arguments, overrides=['--config.seed=3'])
