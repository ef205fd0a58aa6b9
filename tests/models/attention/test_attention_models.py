"""ResNets with attention, and DETR, as models: published sizes, files, configs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.helpers import input_dependence
from vit_jax.classifier import Classifier
from vit_jax.config import ModelConfig
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.attention.detr import DETR
from vit_jax.models.flops import forward_flops
from vit_jax.models.model_fields import model_fields
from vit_jax.models.resnet import BiTResNet
from vit_jax.models.resnet_flops import local_flops
from vit_jax.weights.adapt import load_params

SMALL = dict(width=32, blocks=(1, 2), num_classes=5)
MODELS = {
  'local': BiTResNet(**SMALL, spatial='local', window=5, num_heads=4),
  'axial': BiTResNet(**SMALL, spatial='axial', window=9, num_heads=2),
  'non_local': BiTResNet(**SMALL, non_local_stages=(1, 2)),
  'subsampled': BiTResNet(**SMALL, non_local_stages=(2,), non_local_subsample=True),
  'detr': DETR(16, 2, 24, 4, num_classes=5, resnet_width=32, resnet_blocks=(1, 1)),
}
NAMES = sorted(MODELS)


@pytest.fixture(scope='module')
def classifiers():
  """{name: a `Classifier` of 24x32 pixels with random parameters, none of them zero}."""
  result = {}
  for name, model in MODELS.items():
    params = build.abstract_params(model, (24, 32))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(0, 0.1, leaf.shape).astype(np.float32) for leaf in leaves]
    result[name] = Classifier(model, jax.tree.unflatten(tree, arrays), (24, 32))
  return result


@pytest.mark.parametrize('suffix', ['.npz', '/'])
@pytest.mark.parametrize('name', NAMES)
def test_files_tell_the_architecture_and_give_the_same_logits(name, suffix, classifiers, tmp_path):
  old = classifiers[name]
  path = f'{tmp_path}/m{suffix}'
  old.save(path)
  new = vit_jax.load(path)
  assert build.architecture(new.model) == build.architecture(MODELS[name])
  assert new.report.is_plain
  images = np.random.default_rng(1).uniform(-1, 1, (2, 24, 32, 3)).astype(np.float32)
  np.testing.assert_array_equal(old(images), new(images))


@pytest.mark.parametrize('name', NAMES)
def test_the_fields_of_a_model_build_it(name):
  config = ModelConfig(**model_fields(MODELS[name]))
  assert build.architecture(build.model_from_config(config, 5)) == build.architecture(MODELS[name])


def test_published_detrs_are_named():
  model = build.model_from_config(ModelConfig(variant='DETR-R101'), 10)
  assert model_fields(model) == {'variant': 'DETR-R101'}


@pytest.mark.parametrize('name', NAMES)
def test_weights_start_a_run_at_another_size(name, classifiers, tmp_path):
  classifiers[name].save(tmp_path / 'm.npz')
  model = MODELS[name].clone(num_classes=7)
  params, report = load_params(tmp_path / 'm.npz', model, (40, 40, 3))
  assert not report.resized
  images = jax.ShapeDtypeStruct((1, 40, 40, 3), jnp.float32)
  assert jax.eval_shape(model.apply, {'params': params}, images).shape == (1, 7)


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    ('local', 'timm has no BiT with local attention'),
    ('axial', 'timm has no BiT with axial attention'),
    ('subsampled', 'timm has no BiT with non-local blocks'),
    ('detr', "timm has no classifier of DETR's encoder"),
  ],
)
def test_layouts_of_other_libraries_refuse_them(name, text, classifiers, tmp_path):
  with pytest.raises(UserError, match=text):
    classifiers[name].save(tmp_path / 'm.safetensors')
  with pytest.raises(UserError, match='has a ResNet, which no class of'):
    classifiers[name].save(tmp_path / 'm', 'huggingface')
  assert not list(tmp_path.iterdir())


def test_a_detr_has_no_tokens_of_patches(classifiers):
  with pytest.raises(ValueError, match='is a DETR, which has no tokens'):
    classifiers['detr'].tokens(np.zeros((1, 24, 32, 3), np.float32))


def test_a_new_non_local_block_changes_no_logits(classifiers):
  model, params = MODELS['non_local'], classifiers['non_local'].params
  images = jax.random.uniform(jax.random.key(0), (1, 24, 32, 3))
  new = jax.tree_util.tree_map_with_path(
    lambda path, x: 0 * x if 'non_local' in str(path) and 'norm' in str(path) else x, params
  )
  models = (model, new), (model.clone(non_local_stages=()), params), (model, params)
  with_new, without, trained = (
    jax.jit(each.apply)({'params': tensors}, images) for each, tensors in models
  )
  np.testing.assert_allclose(with_new, without, atol=1e-5)
  assert abs(trained - without).max() > 1e-3


def test_the_logits_of_a_detr_depend_on_all_pixels(classifiers):
  detr = classifiers['detr']

  def logits(images):
    return detr.model.apply({'params': detr.params}, images)[:, None, None]

  assert input_dependence(logits, (1, 24, 32, 3), (0, 0)).all()


def published(**fields):
  model = build.model_from_config(ModelConfig(**fields), 1000)
  return model, build.count_parameters(build.abstract_params(model, (224, 224))) / 1e6


@pytest.mark.parametrize(
  ('blocks', 'conv', 'local'),
  [((1, 2, 4, 1), 13.7, 10.3), ((2, 3, 5, 2), 19.6, 14.1), ((3, 4, 6, 3), 25.6, 18.0)],
)
def test_local_attention_has_the_published_number_of_parameters(blocks, conv, local):
  """Table 1 of arXiv 1906.05909, in millions: ResNet-26, 38 and 50.

  Group normalization has as many parameters as that of batches, in other places.
  """
  fields = dict(variant='R50x1', resnet_blocks=blocks)
  assert published(**fields)[1] == pytest.approx(conv, abs=0.06)
  assert published(**fields, resnet_spatial='local')[1] == pytest.approx(local, abs=0.09)


def test_local_attention_has_29_percent_fewer_parameters_and_at_least_12_percent_fewer_flops():
  """The abstract of arXiv 1906.05909, whose stem is of attention too; that of BiT is cheaper."""
  (conv, parameters), (local, fewer) = (
    published(variant='R50x1', resnet_spatial=spatial) for spatial in ('conv', 'local')
  )
  assert 1 - fewer / parameters == pytest.approx(0.29, abs=0.005)
  flops = [forward_flops(model, (224, 224)) for model in (conv, local)]
  assert 0.12 < 1 - flops[1] / flops[0] < 0.18


def test_flops_of_local_attention_are_those_of_its_formula():
  """Not those that XLA counts, which include masked pixels."""
  projections, window, positions = 3 * 64 * 64, 2 * 25 * 64, 5 * 64
  assert local_flops((6, 7), 64, 5) == 2 * 6 * 7 * (projections + window + positions)


@pytest.mark.parametrize('name', ['axial', 'non_local', 'subsampled', 'detr'])
def test_flops_are_those_that_xla_counts(name):
  fields = {'blocks': (1, 2)} if name != 'detr' else {'resnet_blocks': (1, 2)}
  if name == 'detr':
    model = MODELS[name].clone(width=128, mlp_dim=512, resnet_width=64, **fields)
  else:
    model = MODELS[name].clone(width=128, **fields)
  size = (96, 64)
  params = {'params': build.abstract_params(model, size)}
  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  counted = jax.jit(model.apply).lower(params, images).compile().cost_analysis()['flops']
  assert forward_flops(model, size) == pytest.approx(counted, rel=0.06)


@pytest.mark.parametrize(
  ('fields', 'text'),
  [
    ({'variant': 'R50x1', 'resnet_spatial': 'axial', 'resnet_window': 4}, 'odd'),
    ({'variant': 'R50x1', 'resnet_spatial': 'local', 'num_heads': 3}, 'not a multiple of 2 num_h'),
    ({'variant': 'R50x1', 'resnet_width': 48}, 'multiple of 32'),
    ({'variant': 'R50x1', 'non_local_stages': (5,)}, 'stages of the ResNet are 1 to 4'),
    ({'variant': 'DETR-R50', 'width': 30, 'num_heads': 5}, 'not a multiple of num_heads=5 and of'),
    ({'variant': 'DETR-R50', 'resnet_width': 48}, 'multiple of 32'),
    (
      {'variant': 'DETR-R50', 'attention': 'xla', 'attention_dropout_rate': 0.1},
      'attention=xla has no dropout',
    ),
  ],
)
def test_options_that_do_not_fit_are_refused(fields, text):
  with pytest.raises(UserError, match=text):
    build.model_from_config(ModelConfig(**fields), 5)


def test_dropout_of_a_detr_depends_on_its_key(classifiers):
  detr = classifiers['detr']
  model = detr.model.clone(attention_dropout_rate=0.5)
  images = jnp.ones((1, 24, 32, 3))

  @jax.jit
  def features(key):
    variables = {'params': detr.params}
    return model.apply(variables, images, deterministic=False, rngs={'dropout': key})

  one, same, other = (features(jax.random.key(seed)) for seed in (1, 1, 2))
  assert (one == same).all() and not (one == other).all()
