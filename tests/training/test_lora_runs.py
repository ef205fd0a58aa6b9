"""Runs with adapters: against a reference, resumed, evaluated, and exported as plain models."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.helpers import TINY, make_program, random_params
from vit_jax.checkpoints.stored_params import read_params
from vit_jax.classifier import Classifier
from vit_jax.config import EvalConfig, load_config
from vit_jax.errors import UserError
from vit_jax.evaluation.score import score
from vit_jax.files import user_path
from vit_jax.models import build
from vit_jax.models.lora import ADAPTER
from vit_jax.training.loop import train_and_evaluate
from vit_jax.weights.layouts.released import flatten, unflatten

RANK, ALPHA = 3, 6.0
LORA = (
  *TINY,
  f'--config.lora.rank={RANK}',
  f'--config.lora.alpha={ALPHA}',
  "--config.lora.projections=('query', 'out', 'mlp')",
  '--config.optimizer.weight_decay=0.1',
  '--config.schedule.learning_rate=0.02',
  '--config.model.dropout_rate=0',
  '--config.model.depth=1',
  '--config.data.workers=0',
)


def load(source='unused.npz', *flags):
  return load_config('configs/quickstart.py', [*LORA, f'--config.init_from={source}', *flags])


MESHES = ('--config.mesh.data=8',), ('--config.mesh.fsdp=2', '--config.mesh.tensor=2')


def test_ten_steps_on_meshes_are_those_of_a_reference():
  """AdamW by hand, of the loss of base + alpha / rank A B, with the gradients of A, B and head."""
  if jax.device_count() != 8:
    pytest.skip('written for eight devices')
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (10, 16, 8, 8, 3), np.uint8)
  labels = rng.integers(0, 3, (10, 16), np.int32)
  flags = ('--config.schedule.decay=constant', '--config.optimizer.clip_norm=0')
  flags += ('--config.accumulation_steps=2',)
  start, initial, runs = {}, {}, []
  for mesh in MESHES:
    program = make_program(load('x', *flags, *mesh).resolve_steps(0), num_classes=3)
    start = random_params(program.model, (8, 8))
    state, losses = program.init(jax.device_put(start, program.param_shardings)), []
    initial = {name: np.float32(x) for name, x in flatten(jax.device_get(state.params)).items()}
    for image, label in zip(images, labels, strict=True):
      state, metrics = program.train_step(
        state, {'image': image, 'label': label}, program.random_key()
      )
      losses.append(metrics['train/loss'])
    runs.append((losses, flatten(jax.device_get(state.params))))
  trained = {name: x for name, x in initial.items() if name.endswith(ADAPTER) or 'head' in name}
  model = build.model_from_config(load('x').model, 3)  # on one device

  @jax.jit
  def gradient(trained, images, labels):
    def loss(trained):
      params = flatten(start) | {name: x for name, x in trained.items() if 'head' in name}
      for name in [name for name in trained if name.endswith('lora_a')]:
        module = name.removesuffix('/lora_a')
        a, b = trained[name], trained[f'{module}/lora_b']
        product = jnp.einsum('ir,ro->io', a.reshape(-1, RANK), b.reshape(RANK, -1))
        params[f'{module}/kernel'] += (
          ALPHA / RANK * product.reshape(params[f'{module}/kernel'].shape)
        )
      logits = model.apply({'params': unflatten(params)}, images / 127.5 - 1)
      rows = jnp.arange(len(labels))
      return -jax.nn.log_softmax(logits)[rows, labels].mean()

    return jax.value_and_grad(loss)(trained)

  rate = lambda step: 0.02 * min(1, step / 2)  # noqa: E731 - the warmup of TINY
  mean = {name: np.zeros_like(x) for name, x in trained.items()}
  square = {name: np.zeros_like(x) for name, x in trained.items()}
  for step in range(10):
    value, grads = gradient(trained, images[step].astype(np.float32), labels[step])
    for losses, _ in runs:
      np.testing.assert_allclose(losses[step], value, rtol=2e-5)
    for name, g in jax.device_get(grads).items():
      mean[name] = 0.9 * mean[name] + 0.1 * g
      square[name] = 0.999 * square[name] + 0.001 * g**2
      direction = mean[name] / (1 - 0.9 ** (step + 1))
      direction /= np.sqrt(square[name] / (1 - 0.999 ** (step + 1))) + 1e-8
      decay = 0.1 if name.endswith((*ADAPTER, 'kernel')) else 0.0
      trained[name] = trained[name] - rate(step) * (direction + decay * trained[name])
  for name, x in [item for _, params in runs for item in params.items()]:
    if name in trained:
      np.testing.assert_allclose(x, trained[name], rtol=1e-3, atol=1e-4, err_msg=name)
      assert not np.array_equal(x, initial[name]), name
    else:
      np.testing.assert_array_equal(x, initial[name])


def test_only_adapters_and_head_have_moments():
  plain = make_program(load('x', '--config.lora.rank=0'), 3, devices=jax.devices()[:1])
  program = make_program(load('x'), 3, devices=jax.devices()[:1])
  params = flatten(program.abstract_state.params)
  trained = {name: x for name, x in params.items() if name.endswith(ADAPTER) or 'head' in name}
  assert program.num_trained == build.count_parameters(trained) < plain.num_trained
  # Adam has two moments of each.
  assert 2 * program.num_trained == sum(
    x.size for x in jax.tree.leaves(program.abstract_state.opt_state) if x.ndim
  )
  texts = [each.lower().as_text() for each in (plain, program)]
  assert 'tensor<8x8x3x16xf32>' not in texts  # of the patches
  assert jax.tree.structure(program.param_shardings) == jax.tree.structure(
    plain.abstract_state.params
  )


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A model with random parameters."""
  config = load()
  model = build.model_from_config(config.model, 10)
  folder = tmp_path_factory.mktemp('base') / 'model'
  Classifier(model, random_params(model, (8, 8)), (8, 8)).save(folder)
  return folder


FLAGS = (  # the rate grows so much that an earlier step is better
  '--config.ema_decay=0.5',
  '--config.checkpoint.keep=9',
  '--config.eval_every=2',
  '--config.schedule.learning_rate=3',
  '--config.schedule.decay=constant',
)


@pytest.fixture(scope='module')
def finished(base, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('lora') / 'run'
  train_and_evaluate(load(base, *FLAGS), workdir)
  return workdir


def stored(workdir, step=6):
  return read_params(user_path(workdir / 'checkpoints' / str(step) / 'default'))


def test_a_run_exports_a_plain_model_of_equal_logits(finished, base, capsys):
  images = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
  vit = vit_jax.load(finished / 'model')
  average = stored(finished)
  assert any(name.endswith(ADAPTER) for name in average)
  assert not any(name.endswith(ADAPTER) for name in flatten(vit.params))
  # Those of the adapters' own branch: x W + alpha / rank (x A) B, here through the checkpoint.
  from_checkpoint = vit_jax.load(finished)
  np.testing.assert_allclose(vit(images), from_checkpoint(images), atol=1e-5)
  of_steps = vit_jax.load(finished / 'checkpoints' / '6')
  np.testing.assert_allclose(vit(images), of_steps(images), atol=1e-5)
  before = flatten(vit_jax.load(base).params)
  query = 'Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query'
  product = np.einsum('ir,rkh->ikh', average[f'{query}/lora_a'], average[f'{query}/lora_b'])
  expected = before[f'{query}/kernel'] + ALPHA / RANK * product
  np.testing.assert_allclose(flatten(vit.params)[f'{query}/kernel'], expected, atol=1e-6)
  assert np.abs(product).max() > 1e-3
  for name, x in flatten(vit.params).items():
    if not name.endswith('kernel') and 'head' not in name:
      np.testing.assert_array_equal(x, before[name])
  best = vit_jax.load(finished / 'best_model')
  assert not any(name.endswith(ADAPTER) for name in flatten(best.params))


def test_the_evaluation_of_a_run_is_that_of_its_model(finished):
  lines = [json.loads(line) for line in (finished / 'metrics.jsonl').read_text().splitlines()]
  (logged,) = [line['test/loss'] for line in lines if line.get('step') == 6 and 'test/loss' in line]
  config = EvalConfig(source='digits', split='test', batch_size=120)
  outcome = score(vit_jax.load(finished / 'model'), {'classification': config})
  np.testing.assert_allclose(outcome.outcomes['classification'].metrics['loss'], logged, rtol=1e-5)


def test_a_resumed_run_has_the_same_bits(finished, base, tmp_path, capsys):
  copied = shutil.copytree(finished, tmp_path / 'run')
  for step in (4, 6):
    shutil.rmtree(copied / 'checkpoints' / str(step))
  shutil.rmtree(copied / 'model')
  train_and_evaluate(load(base, *FLAGS), copied)
  chex.assert_trees_all_equal(stored(copied), stored(finished))
  out = capsys.readouterr().out
  program = make_program(load(base, *FLAGS), 10)
  total = build.count_parameters(program.abstract_state.params)
  assert f'{total:,} parameters ({program.num_trained:,} trained)' in out
  with pytest.raises(UserError, match=r'lora.rank \(3 there, 2 now\)'):
    train_and_evaluate(load(base, *FLAGS, '--config.lora.rank=2'), copied)


def test_adapters_need_weights_to_adapt():
  with pytest.raises(
    UserError, match=r'config.lora.rank is 3; there is nothing to adapt; set conf'
  ):
    load('')
  with pytest.raises(UserError, match='backbone_lr_multiplier=0 freezes its adapters; set that to'):
    load('x', '--config.optimizer.backbone_lr_multiplier=0')
