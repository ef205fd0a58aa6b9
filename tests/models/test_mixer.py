"""MLP-Mixer: the original's logits, published sizes, files, one image size, execution choices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.helpers import (
  GOLDEN,
  assert_close,
  assert_same_tree,
  jit,
  make_program,
  random_params,
  train_on_noise,
)
from tests.torch_models import images_of, import_or_skip, logits_of, randomize
from vit_jax.config import Config, ModelConfig, replace_fields
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.mixer import MlpMixer
from vit_jax.weights.adapt import load_params

MIXER = GOLDEN / 'mixer.npz'
SMALL = dict(patch_size=4, width=16, depth=2, token_mlp_dim=8, mlp_dim=32, num_classes=5)
CONFIG = {
  'model.variant': 'Mixer-S',
  'model.patch_size': 4,
  'model.width': 64,
  'model.depth': 2,
  'model.token_mlp_dim': 16,
  'model.mlp_dim': 256,
  'model.dtype': 'float32',
  'data.image_size': 8,
  'batch_size': 16,
  'total_steps': 4,
  'schedule.learning_rate': 0.01,
}


@pytest.fixture(scope='module')
def mixer() -> vit_jax.Classifier:
  return vit_jax.load(MIXER)


@pytest.fixture(scope='module')
def expected():
  return np.load(GOLDEN / 'mixer_expected.npz')


def test_the_logits_of_the_original_code(mixer, expected):
  np.testing.assert_allclose(mixer(expected['images']), expected['logits'], atol=2e-5)
  assert mixer.report.is_plain
  assert mixer.image_size == (32, 32)
  assert build.architecture(mixer.model) == dict(
    patch_size=8, width=48, depth=2, token_mlp_dim=24, mlp_dim=96, num_classes=7
  )


def test_npz_files_have_the_released_names_and_the_same_numbers(mixer, tmp_path):
  mixer.save(tmp_path / 'x.npz')
  with np.load(MIXER) as old, np.load(tmp_path / 'x.npz') as new:
    assert set(old.files) == set(new.files)
    for name in old.files:
      np.testing.assert_array_equal(old[name], new[name])


@pytest.mark.parametrize('name', ['x', 'x.safetensors'])
def test_other_files(name, mixer, expected, tmp_path):
  """A folder is vit_jax's, because Transformers has no Mixer."""
  mixer.save(tmp_path / name)
  again = vit_jax.load(tmp_path / name)
  assert again.model == mixer.model
  assert_same_tree(again.params, mixer.params)
  with pytest.raises(UserError, match='a folder of timm cannot describe; write X.safetensors'):
    mixer.save(tmp_path / 'timm', 'timm')
  with pytest.raises(UserError, match='token-mixing MLPs, which no class of .* .--layout=model.'):
    mixer.save(tmp_path / 'hf', 'huggingface')


def test_features_and_tokens(mixer, expected):
  images, head = expected['images'], mixer.params['head']
  features, tokens = mixer.features(images), mixer.tokens(images)
  assert (features.shape, tokens.shape) == ((4, 48), (4, 16, 48))
  np.testing.assert_allclose(tokens.mean(axis=1), features, atol=1e-6)
  logits = np.asarray(features) @ np.asarray(head['kernel']) + np.asarray(head['bias'])
  np.testing.assert_allclose(logits, mixer(images), atol=1e-5)
  last = mixer.intermediates(images, [0, -1], norm=True, return_prefix_tokens=True)
  np.testing.assert_allclose(last[-1][0], tokens, atol=1e-6)
  assert last[-1][1].shape == (4, 0, 48) and np.abs(last[0][0] - tokens).max() > 0.1


def test_another_image_size_is_refused(mixer, tmp_path):
  sentence = 'is an MLP-Mixer, whose token-mixing MLPs fit images of 32x32 pixels only'
  with pytest.raises(UserError, match=f'{sentence}; it cannot be loaded for 64x64'):
    vit_jax.load(MIXER, image_size=64)
  with pytest.raises(UserError, match=sentence):
    mixer.at_size((16, 64))  # as many patches, but others
  with pytest.raises(UserError, match=sentence):
    load_params(MIXER, mixer.model, (24, 24, 3))


def test_fine_tuning_starts_with_a_new_head(mixer):
  params, report = load_params(MIXER, mixer.model.clone(num_classes=3), (32, 32, 1))
  assert not params['head']['kernel'].any() and params['head']['kernel'].shape == (48, 3)
  assert 'for 1 channels' in str(report)
  assert_same_tree(params['MixerBlock_1'], mixer.params['MixerBlock_1'])
  with pytest.raises(UserError, match='depth is 2 in the file, 3 in the config'):
    load_params(MIXER, mixer.model.clone(depth=3), (32, 32, 3))
  vit = build.model_from_config(ModelConfig(), 3)
  with pytest.raises(UserError, match='is a MlpMixer, but model.variant is a VisionTransformer'):
    load_params(MIXER, vit, (32, 32, 3))


# Millions of parameters in Table 1 of the paper, without the head.
@pytest.mark.parametrize(
  ('variant', 'patch_size', 'millions'),
  [('Mixer-B', 16, 59), ('Mixer-L', 16, 207), ('Mixer-S', 32, 19), ('Mixer-H', 14, 431)],
)
def test_published_sizes(variant, patch_size, millions):
  model = build.model_from_config(ModelConfig(variant=variant, patch_size=patch_size), 0)
  count = build.count_parameters(build.abstract_params(model, (224, 224)))
  assert round(count / 1e6) == millions


def test_stochastic_depth_drops_whole_branches_of_the_last_block():
  model = MlpMixer(**SMALL | {'num_classes': 0}, stochastic_depth_rate=0.999)
  params = random_params(model, (8, 8))
  images = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)
  apply = jit(model.apply, static_argnames='deterministic')
  rngs = {'dropout': jax.random.key(0)}
  dropped = apply({'params': params}, images, deterministic=False, rngs=rngs)
  first = dict(params)
  del first['MixerBlock_1']
  without = jit(model.clone(depth=1).apply)({'params': first}, images)
  np.testing.assert_allclose(dropped, without, rtol=1e-5)
  assert np.abs(apply({'params': params}, images, deterministic=True) - without).max() > 0.01


@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_rematerialization_changes_no_gradient(remat):
  images = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)
  params = random_params(MlpMixer(**SMALL), (8, 8))

  def gradient(remat):
    model = MlpMixer(**SMALL, stochastic_depth_rate=0.5, remat=remat)
    key = {'dropout': jax.random.key(1)}

    def loss(params):
      logits = model.apply({'params': params}, images, deterministic=False, rngs=key)
      return jnp.square(jnp.asarray(logits)).mean()

    return jit(jax.grad(loss))(params)

  assert_close(gradient(remat), gradient('none'), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(jax.device_count() < 8, reason='written for eight devices')
def test_the_same_curve_on_a_mesh():
  one, _ = train_on_noise({**CONFIG, 'mesh.data': 1})
  mesh = {'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2}
  several, state = train_on_noise({**CONFIG, **mesh})
  assert one[0] != one[-1]
  np.testing.assert_allclose(several, one, rtol=1e-5)
  block = state.params['MixerBlock_0']
  assert block['token_mixing']['Dense_0']['kernel'].sharding.spec[-1] == 'tensor'
  kernel = block['channel_mixing']['Dense_1']['kernel']
  assert kernel.addressable_shards[0].data.size * 4 == kernel.size


def test_the_tensor_axis_divides_the_hidden_units():
  fields = {**CONFIG, 'model.token_mlp_dim': 17, 'mesh.data': 1, 'mesh.tensor': 2}
  with pytest.raises(UserError, match='token_mlp_dim is 17, which mesh.tensor=2 does not divide'):
    make_program(replace_fields(Config(), fields), 5, jax.devices()[:2])


def test_a_model_of_timm_and_back(tmp_path):
  timm = import_or_skip('timm')
  torch_files = import_or_skip('safetensors.torch')
  layers = timm.layers
  sizes = dict(img_size=32, patch_size=8, embed_dim=48, num_blocks=2, num_classes=5)
  module = randomize(timm.models.mlp_mixer.MlpMixer(**sizes))
  torch_files.save_file(module.state_dict(), tmp_path / 'x.safetensors')
  images = images_of((32, 32))
  mixer = vit_jax.load(tmp_path / 'x.safetensors')
  np.testing.assert_allclose(mixer(images), logits_of(module, images), atol=2e-5)
  mixer.save(tmp_path / 'y.safetensors')
  again = timm.models.mlp_mixer.MlpMixer(**sizes).eval()
  again.load_state_dict(torch_files.load_file(tmp_path / 'y.safetensors'))
  np.testing.assert_array_equal(logits_of(again, images), logits_of(module, images))
  gated = timm.models.mlp_mixer.MlpMixer(**sizes, mlp_layer=layers.GluMlp, mlp_ratio=(1.0, 4.0))
  torch_files.save_file(gated.state_dict(), tmp_path / 'z.safetensors')
  with pytest.raises(UserError, match='an MLP-Mixer with a gated MLP'):
    vit_jax.load(tmp_path / 'z.safetensors')
