"""The benchmark of speed at toy size, and its protocol with peers, which real processes speak."""

import csv
import json
import sys

import pytest

from benchmarks import measurement, model_speed
from benchmarks.peers import process, request
from tests.helpers import ROOT
from vit_jax.errors import UserError

TOY = (
  '--models=Ti/4@8',
  '--batch_sizes=8',
  '--rounds=2',
  '--seconds=0.01',
  '--num_classes=5',
  '--matmul_size=32',
  '--config.mesh.data=1',
  '--config.model.width=16',
  '--config.model.depth=1',
  '--config.model.mlp_dim=32',
  '--config.model.num_heads=2',
)

# It answers as the peers do, through the same loop.
FAKE = f"""
import sys
sys.path.insert(0, {str(ROOT / 'benchmarks' / 'peers')!r})
import serve

class Workload:
  def __init__(self, request):
    if request['peer'] == 'transformers':
      raise ValueError('it cannot be built\\nmore')
    print('a library prints')
    self.description = {{
      'versions': {{'torch': '1.2'}}, 'device': 'cpu', 'parameters': request['model']['width'],
      'optimizer': 'adamw'}}

  def run(self, kind, calls):
    if kind == 'exit':
      print('the last words', file=sys.stderr)
      sys.exit(5)
    return {{'seconds': calls * {{'forward': 0.5, 'step': 2.0}}[kind], 'loss': 1.25}}

serve.build = Workload
serve.main()
"""


@pytest.fixture(autouse=True)
def disabled(monkeypatch):
  """[None] once the compilation cache was to be disabled, which the tests after these use."""
  calls = []
  disable = lambda: calls.append(None)  # noqa: E731
  monkeypatch.setattr(model_speed.compilation_cache, 'disable_cache', disable)
  return calls


@pytest.fixture
def fake(tmp_path, monkeypatch):
  path = tmp_path / 'fake.py'
  path.write_text(FAKE)
  monkeypatch.setattr(request, 'SERVE', path)
  return [sys.executable, str(path)]


def rows(folder):
  (path,) = folder.glob('model_speed_*.csv')
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


def test_variants_and_a_peer_are_rows_of_one_table(command, tmp_path, fake, disabled):
  variant = '--variant=large:config.batch_size=16,config.mesh.data=2'
  flags = [*TOY, variant, '--peers=timm,transformers', f'--out={tmp_path}']
  code, out, err = command(model_speed, *flags)
  assert code == 0, err
  assert disabled  # compiling is timed
  table = rows(tmp_path)
  names = [(row['implementation'], row['variant'], row['pass']) for row in table]
  assert names == [
    *(('vit_jax', '', 'forward'), ('vit_jax', '', 'step')),
    *(('vit_jax', 'large', 'forward'), ('vit_jax', 'large', 'step')),
    *(('timm', '', 'forward'), ('timm', '', 'step')),
    ('transformers', '', ''),
  ]
  assert table.pop()['note'] == 'ValueError: it cannot be built'
  base, step, large, _, peer, peer_step = table
  assert float(base['times_vit_jax']) == float(step['times_vit_jax']) == 1
  assert (base['batch_size'], large['batch_size']) == ('8', '16')
  assert float(peer['images_per_second']) == 8 / 0.5
  assert float(peer_step['images_per_second_lowest']) == 8 / 2.0
  assert (peer['torch'], peer['jax'], peer_step['loss']) == ('1.2', '', '1.25')
  assert (base['note'], peer['note'][:7]) == ('', 'not the')  # it has 16 parameters
  ratio = float(peer['images_per_second']) / float(base['images_per_second'])
  assert float(peer['times_vit_jax']) == pytest.approx(ratio, abs=1e-3)
  assert all(row['date'] and row['cores'] and row['share_of_matmul'] for row in table)
  assert abs(float(step['loss']) - 1.609) < 0.1  # log 5
  assert float(step['temporaries_gib']) >= 0 and int(step['parameters']) > 1000
  assert json.loads(out.splitlines()[0])['model'] == 'Ti/4@8'


def test_a_second_call_appends_and_other_columns_are_refused(tmp_path):
  for value in (1, 2):
    measurement.Table(tmp_path / 'new', 'speed', ('a', 'b')).add({'a': value})
  (path,) = (tmp_path / 'new').glob('speed_*.csv')
  assert path.read_text() == 'a,b\n1,\n2,\n'
  with pytest.raises(UserError, match='has other columns'):
    measurement.Table(tmp_path / 'new', 'speed', ('a', 'c'))
  with pytest.raises(UserError, match='is not a folder'):
    measurement.Table(path, 'speed', ('a',))


def test_a_product_that_needs_too_much_memory_leaves_its_columns_empty(
  command, tmp_path, monkeypatch
):
  def product(*unused):
    raise RuntimeError('RESOURCE_EXHAUSTED: of memory')

  monkeypatch.setattr(model_speed, 'matmul_timer', product)
  code, _, err = command(model_speed, *TOY, '--passes=forward', f'--out={tmp_path}')
  assert (code, err) == (0, 'no matrix product is measured: out of memory\n')
  (row,) = rows(tmp_path)
  assert row['images_per_second'] and row['share_of_matmul'] == ''


def test_the_end_of_a_peer_is_said_with_its_last_words(fake):
  first = {'peer': 'timm', 'model': {'width': 3}, 'paths': [], 'preload': ''}
  with process.open_peers({'timm': (fake, first)}) as (peers, failures):
    assert not failures and peers['timm'].description['parameters'] == 3
    assert peers['timm'].run('forward', 4) == 0.5
    with pytest.raises(process.PeerError, match='exit code 5: the last words'):
      peers['timm'].run('exit', 1)
  with process.open_peers({'timm': (['no_such_python'], first)}) as (peers, failures):
    assert not peers and 'no_such_python cannot be started' in failures['timm']


@pytest.mark.parametrize('peer', ['timm', 'transformers'])
def test_pytorch_peers_do_the_same_work(peer):
  pytest.importorskip('torch')
  pytest.importorskip(peer)
  model = dict.fromkeys(('dropout_rate', 'attention_dropout_rate', 'stochastic_depth_rate'), 0.0)
  model |= {'image_size': [8, 8], 'patch_size': 4, 'width': 16, 'depth': 1, 'num_heads': 2}
  model |= {'mlp_dim': 32, 'num_classes': 5, 'resnet_width': 0, 'dtype': 'bfloat16'}
  model |= {'batch_size': 2, 'clip_norm': 1.0, 'learning_rate': 1e-5, 'b1': 0.9, 'b2': 0.999}
  model |= {'epsilon': 1e-8, 'weight_decay': 0.1}
  first = {'peer': peer, 'model': model, 'paths': [], 'preload': '', 'threads': 1, 'tf32': False}
  command = [sys.executable, str(request.SERVE)]
  with process.open_peers({peer: (command, first)}) as (peers, failures):
    assert not failures
    assert peers[peer].run('forward', 1) > 0 and peers[peer].run('step', 1) > 0
    assert 0.5 < peers[peer].loss < 4


def test_pytorch_peers_decay_kernels_alone():
  torch = pytest.importorskip('torch')
  from benchmarks.peers import torch_models

  model = torch.nn.Linear(3, 4)
  for name in ('cls_token', 'pos_embed', 'position_embeddings'):
    model.register_parameter(name, torch.nn.Parameter(torch.zeros(1, 1, 3)))
  config = {'weight_decay': 0.1, 'learning_rate': 1e-5, 'b1': 0.9, 'b2': 0.999, 'epsilon': 1e-8}
  decayed, others = torch_models.make_optimizer(model, config).param_groups
  assert decayed['weight_decay'] == 0.1 and others['weight_decay'] == 0
  assert decayed['params'] == [model.weight] and len(others['params']) == 4


def test_all_are_measured_in_each_round_and_failures_end_alone():
  order = []

  def measure(name):
    order.append(name)
    if name == 'c' and len(order) > 3:
      raise RuntimeError('RESOURCE_EXHAUSTED: of memory')
    return len(order)

  runners = {name: lambda name=name: measure(name) for name in 'abc'}
  results, failures = measurement.measure_interleaved(runners, 3)
  assert ''.join(order) == 'abc' + 'cba' + 'ab'
  assert results == {'a': [1, 6, 7], 'b': [2, 5, 8]} and failures == {'c': 'out of memory'}


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--models=nonsense+B'], 'is not a model such as B/16'),
    (['--models=X/16'], 'config.model.variant'),
    (['--passes=backward'], "'backward' is not one of forward, step"),
    (['--peers=jax'], "'jax' is not one of timm"),
    (['--peers=original'], 'needs --peer_checkout'),
    (['--variant=fast'], '--variant=fast must be NAME:config.FIELD=VALUE'),
    (['--batch_sizes=0'], "'0' is not a positive integer"),
    (['--nonsense=1'], 'There is no flag --nonsense'),
    (
      ['--peers=timm', '--models=Mixer-S/16', '--config.model.depth=1'],
      'Vision Transformers with a class token',
    ),
    ([*TOY, '--peers=timm', '--config.optimizer.name=sgd'], 'plain AdamW steps'),
  ],
)
def test_a_wrong_flag_is_one_sentence(flags, message, command, tmp_path):
  code, out, err = command(model_speed, *flags, f'--out={tmp_path}')
  assert (code, out) == (2, '')
  assert message in err and len(err.splitlines()) == 1
