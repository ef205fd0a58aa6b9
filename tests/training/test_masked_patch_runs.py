"""Runs of masked patch prediction: steps, what is refused, export, fine-tuning."""

import contextlib
import io
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vit_jax
from tests.helpers import BATCH, IMAGES, KEY, TINY, assert_close, jit, make_model, make_program
from vit_jax.config import Config, EvalConfig, StepConfig, load_config, replace_fields
from vit_jax.errors import UserError
from vit_jax.evaluation.score import score
from vit_jax.models import build
from vit_jax.models.masked_patches import with_prediction_head
from vit_jax.training.loop import train_and_evaluate
from vit_jax.training.step import init_state, make_train_step

FIELDS = {
  'objective': 'masked_patches',
  'total_steps': 60,
  'batch_size': 8,
  'data.image_size': 8,
  'model.patch_size': 4,
  'model.width': 64,
  'model.depth': 2,
  'model.mlp_dim': 256,
  'model.num_heads': 4,
  'model.dropout_rate': 0.0,
}


def train(steps=2, devices=1, multi_label=False, **fields):
  """The losses of the first steps, and the last parameters."""
  config = replace_fields(Config(), FIELDS | {k.replace('__', '.'): v for k, v in fields.items()})
  program = make_program(config, 3, jax.devices()[:devices], multi_label)
  state, losses = program.init(None), []
  batch = {'image': BATCH['image'], 'label': BATCH['label']}
  if multi_label:
    batch['label'] = np.eye(3, dtype=np.uint8)[BATCH['label']]
  for _ in range(steps):
    state, metrics = program.train_step(state, batch, KEY)
    losses.append(float(metrics['train/loss']))
  return losses, jax.device_get(state.params)


@pytest.fixture(scope='module')
def plain():
  return train()


def test_the_first_loss_is_that_of_512_equal_colors(plain):
  assert plain[0][0] == pytest.approx(np.log(512), rel=1e-5)
  assert plain[1].keys() == {'cls', 'embedding', 'Transformer', 'mask_token', 'prediction_head'}


@pytest.mark.parametrize(
  'fields',
  [
    {'accumulation_steps': 4},
    {'model__scan_blocks': True, 'model__remat': 'full'},
    {'devices': 8, 'mesh__data': 2, 'mesh__fsdp': 2, 'mesh__tensor': 2, 'accumulation_steps': 2},
    {'multi_label': True},
  ],
  ids=str,
)
@pytest.mark.skipif(jax.device_count() < 8, reason='written for eight devices')
def test_mesh_accumulation_and_labels_change_nothing(fields, plain):
  losses, parameters = train(**fields)
  np.testing.assert_allclose(losses, plain[0], rtol=1e-5)
  assert_close(parameters, plain[1], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize('target', ['mean_color', 'downsized', 'pixels'])
def test_the_loss_falls(target):
  model = with_prediction_head(make_model(), target, (8, 8, 3))
  optimizer = optax.adam(3e-3)
  state = init_state(model, optimizer, (8, 8, 3), seed=0)
  step = jit(make_train_step(model, optimizer, lambda step: jnp.float32(3e-3), StepConfig()))
  losses = []
  for _ in range(40):
    state, metrics = step(state, BATCH, KEY)
    losses.append(metrics['train/loss'])
  assert np.mean(losses[-5:]) < 0.9 * losses[0]


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'loss': 'sigmoid'}, "config.loss is 'sigmoid'; .* set it to 'softmax'"),
    ({'label_smoothing': 0.1}, '0.1; objective=masked_patches uses no labels; set it to 0.0'),
    ({'mixup_alpha': 0.2}, 'config.mixup_alpha is 0.2; .* uses no labels'),
    ({'cutmix_alpha': 1.0}, 'config.cutmix_alpha is 1; '),
    (
      {'init_from': 'x.npz'},
      "config.init_from is 'x.npz'; .* starts from random weights; set it to ''",
    ),
    ({'model.pre_logits': 8}, 'config.model.pre_logits is 8; .* has no classification head'),
    ({'model.head_bias_init': -10.0}, 'config.model.head_bias_init is -10; '),
    ({'model.pool': 'map'}, "config.model.pool is 'map'; .* use token or gap"),
    ({'model.variant': 'R50x1'}, "model.variant is 'R50x1'; .* needs a Vision Transformer"),
    ({'model.variant': 'Mixer-B'}, "model.variant is 'Mixer-B'; .* needs a Vision Transformer"),
  ],
  ids=str,
)
def test_what_has_no_meaning_is_refused(fields, message):
  with pytest.raises(UserError, match=message):
    replace_fields(Config(), FIELDS | fields)


def test_an_evaluation_that_needs_a_head_is_refused():
  with pytest.raises(UserError, match="evals.x.kind is 'real'; .* knn, linear_probe or fewshot"):
    load_config('configs/masked_patches.py', ['--config.evals.x.kind=real'])


def test_the_paper_and_the_small_config():
  config = load_config('configs/masked_patches.py', [])
  assert (config.batch_size, config.total_steps, config.masked_target) == (
    4096,
    10**6,
    'mean_color',
  )
  schedule = config.schedule
  assert (schedule.learning_rate, schedule.decay, schedule.warmup_steps) == (2e-4, 'cosine', 10_000)
  small = load_config('configs/masked_patches.py:pixels,folder:/x', [])
  other = load_config('configs/small_images.py:vit,folder:/x', [])
  assert (small.masked_target, small.model, small.data) == ('pixels', other.model, other.data)
  with pytest.raises(UserError, match="mean_color, downsized, pixels, not 'color'"):
    load_config('configs/masked_patches.py:color', [])


def run_here(workdir, *flags) -> str:
  """Runs it in this process; returns what it prints."""
  overrides = ['--config.objective=masked_patches', *TINY, *flags]
  with contextlib.redirect_stdout(io.StringIO()) as out:
    train_and_evaluate(load_config('configs/quickstart.py', overrides), workdir)
  return out.getvalue()


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('pretrained')
  return workdir, run_here(workdir)


def test_a_run_says_what_it_predicts(pretrained):
  workdir, out = pretrained
  line = r'step 6/6, test accuracy [\d.]+% on the corrupted patches of 360 examples, test loss \d'
  assert re.search(line, out) and re.search(r'done: test accuracy .* corrupted patches', out)
  assert 'vit_jax.predict' not in out and f'--config.init_from={workdir}/model' in out
  last = json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])
  assert last.keys() == {'step', 'test/masked_patch_accuracy', 'test/loss', 'test/examples'}


def test_pixels_have_a_loss_only(tmp_path):
  flags = ('--config.masked_target=pixels', '--config.evals.near.kind=knn')
  flags += ('--config.evals.near.neighbors=(3,)', '--config.evals.near.every=6')
  out = run_here(tmp_path, *flags)
  assert re.search(r'test squared error \d.* on the corrupted patches of 360 ', out)
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  tests = {line['step']: line['test/loss'] for line in lines if 'test/loss' in line}
  assert not any('accuracy' in name for line in lines for name in line if 'near' not in name)
  assert 0 < lines[-1]['near/accuracy_3nn'] < 1
  best = min(tests, key=lambda step: tests[step])
  assert (tmp_path / f'checkpoints/{best}').exists()


def test_the_encoder_is_exported_and_fine_tuned(pretrained, tmp_path):
  workdir, _ = pretrained
  vit = vit_jax.load(workdir)
  assert vit.model.num_classes == 0 and vit.labels is None
  assert vit.params.keys() == {'embedding', 'Transformer'}
  with pytest.raises(UserError, match='The model has no head, so it predicts no classes'):
    vit.predict(IMAGES[0])
  configs = {'classification': EvalConfig(source='digits', split='test', batch_size=8)}
  with pytest.raises(UserError, match='no head, .* with --eval=knn,linear_probe'):
    score(vit, configs)
  flags = ('--config.objective=supervised', '--config.data.train.split=train[:10%]')
  flags += ('--config.schedule.learning_rate=1e-9', f'--config.init_from={workdir}/model')
  assert 'done: test accuracy' in run_here(tmp_path, *flags)
  fine_tuned = vit_jax.load(tmp_path)
  assert fine_tuned.model.num_classes == 10
  assert_close(fine_tuned.params['Transformer'], vit.params['Transformer'], atol=1e-6)


def test_a_checkpoint_is_loaded_without_what_only_pretraining_needs(pretrained):
  workdir, _ = pretrained
  vit = vit_jax.load(workdir / 'checkpoints')
  expected = build.abstract_params(vit.model, (8, 8))
  assert jax.tree.structure(vit.params) == jax.tree.structure(expected)
  assert {name.rpartition('/')[2] for name in vit.report.ignored} >= {'mask_token'}
