"""The model: parameter counts, names and shapes, pools, regularization, dtypes."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import jit, random_params
from vit_jax.config import ModelConfig
from vit_jax.errors import UserError
from vit_jax.models import build, features
from vit_jax.models.dot_product_attention import choose_attention
from vit_jax.models.dropout import example_keys
from vit_jax.models.vit import (
  EncoderBlock,
  MlpBlock,
  MultiHeadDotProductAttention,
  Numerics,
  VisionTransformer,
)
from vit_jax.weights.layouts import released

TINY = dict(patch_size=4, width=16, depth=2, mlp_dim=24, num_heads=2, num_classes=0)
ATTENTION = 'MultiHeadDotProductAttention_0'
BLOCK = {
  'LayerNorm_0/scale': (16,),
  'LayerNorm_0/bias': (16,),
  f'{ATTENTION}/query/kernel': (16, 2, 8),
  f'{ATTENTION}/query/bias': (2, 8),
  f'{ATTENTION}/key/kernel': (16, 2, 8),
  f'{ATTENTION}/key/bias': (2, 8),
  f'{ATTENTION}/value/kernel': (16, 2, 8),
  f'{ATTENTION}/value/bias': (2, 8),
  f'{ATTENTION}/out/kernel': (2, 8, 16),
  f'{ATTENTION}/out/bias': (16,),
  'LayerNorm_1/scale': (16,),
  'LayerNorm_1/bias': (16,),
  'MlpBlock_0/Dense_0/kernel': (16, 24),
  'MlpBlock_0/Dense_0/bias': (24,),
  'MlpBlock_0/Dense_1/kernel': (24, 16),
  'MlpBlock_0/Dense_1/bias': (16,),
}


def random_images(*shape: int) -> np.ndarray:
  return np.random.default_rng(0).uniform(-1, 1, (*shape, 3)).astype(np.float32)


@functools.partial(jit, static_argnums=0, static_argnames='deterministic')
def apply(model, params, images, key=None, deterministic=True):
  rngs = None if key is None else {'dropout': key}
  return model.apply({'params': params}, images, deterministic=deterministic, rngs=rngs)


@pytest.fixture(scope='module')
def params():
  return random_params(VisionTransformer(**TINY), (8, 8))


@pytest.mark.parametrize(
  ('variant', 'patch_size', 'count'),
  [
    ('Ti', 16, 5_717_416),
    ('S', 16, 22_050_664),
    ('B', 16, 86_567_656),
    ('B', 32, 88_224_232),
    ('L', 16, 304_326_632),
    ('L', 32, 306_535_400),
    ('H', 14, 632_045_800),
  ],
)
def test_published_sizes_have_their_parameter_counts(variant, patch_size, count):
  config = ModelConfig(variant=variant, patch_size=patch_size)
  model = build.model_from_config(config, num_classes=1000)
  assert build.count_parameters(build.abstract_params(model, (224, 224))) == count


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('variant', 'XXL', 'choose one of Ti, S, B, L, H'),
    ('pool', 'max', 'choose one of token, gap, map'),
    ('dtype', 'float8', 'choose one of auto, float32, bfloat16'),
    ('num_heads', 5, 'width=768 is not a multiple of num_heads=5'),
  ],
)
def test_a_wrong_model_config_is_one_sentence(field, value, message):
  with pytest.raises(UserError, match=message):
    build.model_from_config(ModelConfig(**{field: value}), num_classes=10)


def test_config_fields_reach_the_model():
  fields = dict(
    patch_size=8,
    width=12,
    depth=3,
    mlp_dim=20,
    num_heads=4,
    pool='map',
    pre_logits=6,
    dropout_rate=0.1,
    attention_dropout_rate=0.2,
    stochastic_depth_rate=0.3,
    head_bias_init=-3.0,
  )
  model = build.model_from_config(ModelConfig(**fields, dtype='bfloat16'), num_classes=9)
  assert {name: getattr(model, name) for name in fields} == fields
  assert (model.num_classes, model.numerics.dtype) == (9, jnp.bfloat16)


def test_names_and_shapes_are_the_released_ones():
  model = VisionTransformer(**{**TINY, 'num_classes': 5}, pre_logits=12)
  expected = {
    'cls': (1, 1, 16),
    'embedding/kernel': (4, 4, 3, 16),
    'embedding/bias': (16,),
    'Transformer/posembed_input/pos_embedding': (1, 5, 16),
    'Transformer/encoder_norm/scale': (16,),
    'Transformer/encoder_norm/bias': (16,),
    'pre_logits/kernel': (16, 12),
    'pre_logits/bias': (12,),
    'head/kernel': (12, 5),
    'head/bias': (5,),
  }
  for i in range(2):
    expected |= {f'Transformer/encoderblock_{i}/{name}': BLOCK[name] for name in BLOCK}
  params = released.flatten(build.abstract_params(model, (8, 8)))
  assert {name: leaf.shape for name, leaf in params.items()} == expected
  assert {leaf.dtype for leaf in params.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize('pool', ['token', 'gap', 'map'])
def test_pool_selects_the_features_among_the_tokens(pool):
  model = VisionTransformer(**TINY, pool=pool)
  params = random_params(model, (8, 12))
  images = random_images(3, 8, 12)
  features, state = jit(
    lambda params: model.apply({'params': params}, images, capture_intermediates=True)
  )(params)
  tokens = state['intermediates']['Transformer']['__call__'][0]
  assert features.shape == (3, 16)
  assert tokens.shape == (3, 7 if pool == 'token' else 6, 16)
  assert ('cls' in params, 'MAPHead_0' in params) == (pool == 'token', pool == 'map')
  if pool == 'token':
    np.testing.assert_allclose(features, tokens[:, 0], atol=1e-5)
  if pool == 'gap':
    np.testing.assert_allclose(features, tokens.mean(axis=1), atol=1e-5)


@pytest.mark.parametrize('pool', ['token', 'gap', 'map'])
def test_only_position_embeddings_encode_the_order_of_patches(pool):
  model = VisionTransformer(**TINY, pool=pool)
  params = random_params(model, (8, 8))
  images = random_images(2, 8, 8)
  permuted = np.concatenate([images[:, 4:], images[:, :4]], axis=1)  # rows of patches
  difference = np.abs(apply(model, params, images) - apply(model, params, permuted))
  assert difference.max() > 1e-2
  params['Transformer']['posembed_input']['pos_embedding'] *= 0
  np.testing.assert_allclose(
    apply(model, params, images), apply(model, params, permuted), atol=1e-5
  )


def test_examples_of_a_batch_are_independent(params):
  model = VisionTransformer(**TINY)
  images = random_images(3, 8, 8)
  features = apply(model, params, images)
  np.testing.assert_allclose(apply(model, params, images[1:2])[0], features[1], atol=1e-5)


def test_without_a_head_the_result_is_its_input(params):
  model = VisionTransformer(**TINY)
  images = random_images(2, 8, 8)
  features = apply(model, params, images)
  head = {'kernel': random_images(16), 'bias': np.float32([1, 2, 3])}
  logits = apply(model.clone(num_classes=3), {**params, 'head': head}, images)
  np.testing.assert_allclose(logits, features @ head['kernel'] + head['bias'][None], atol=1e-5)


def test_pre_logits_is_a_tanh_layer(params):
  model = VisionTransformer(**TINY)
  images = random_images(2, 8, 8)
  features = np.asarray(apply(model, params, images))
  layer = {'kernel': random_images(16), 'bias': np.float32([1, 2, 3])}
  pre_logits = apply(model.clone(pre_logits=3), {**params, 'pre_logits': layer}, images)
  expected = np.tanh(features @ layer['kernel'] + layer['bias'])
  np.testing.assert_allclose(pre_logits, expected, atol=1e-5)


def test_initial_logits_are_the_initial_bias_of_the_head():
  model = VisionTransformer(**{**TINY, 'num_classes': 3}, head_bias_init=-4.0)
  images = random_images(2, 8, 8)
  logits, _ = jit(model.init_with_output)(jax.random.key(0), images)
  np.testing.assert_array_equal(logits, np.full((2, 3), -4.0))


@pytest.mark.parametrize(
  'field', ['dropout_rate', 'attention_dropout_rate', 'stochastic_depth_rate']
)
def test_regularization_acts_in_training_only(field, params):
  plain, model = VisionTransformer(**TINY), VisionTransformer(**TINY, **{field: 0.5})
  images = random_images(8, 8, 8)
  expected = apply(plain, params, images)
  np.testing.assert_array_equal(apply(model, params, images), expected)
  first, same_seed, other_seed = (
    np.asarray(apply(model, params, images, jax.random.key(seed), deterministic=False))
    for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(first, same_seed)
  assert np.abs(first - expected).max() > 1e-2
  assert np.abs(first - other_seed).max() > 1e-2


def test_stochastic_depth_drops_whole_examples_and_scales_the_others():
  block = EncoderBlock(mlp_dim=24, num_heads=2, stochastic_depth_rate=0.25)
  x = np.random.default_rng(0).normal(size=(200, 3, 16)).astype(np.float32)
  params = jit(block.init)(jax.random.key(0), x)
  last_layer = params['params']['MlpBlock_0']['Dense_1']
  last_layer.update(jax.tree.map(jnp.zeros_like, last_layer))  # only attention changes x
  branch = np.asarray(block.apply(params, x)) - x
  dropped = block.apply(params, x, 1.0, example_keys(jax.random.key(1), None, 200)) - x
  kept = np.abs(dropped).max(axis=(1, 2)) > 0
  assert 0.6 < kept.mean() < 0.9
  np.testing.assert_allclose(dropped, kept[:, None, None] * branch / 0.75, atol=1e-5)


def test_stochastic_depth_never_drops_the_first_block():
  plain = VisionTransformer(**{**TINY, 'depth': 1})
  params = random_params(plain, (8, 8))
  images = random_images(16, 8, 8)
  model = plain.clone(stochastic_depth_rate=0.5)
  features = apply(model, params, images, jax.random.key(0), deterministic=False)
  np.testing.assert_array_equal(features, apply(plain, params, images))


def all_equations(jaxpr):
  """Yields the equations of a jaxpr and of the jaxprs inside it."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from all_equations(inner)


@pytest.mark.parametrize('pool', ['token', 'gap', 'map'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_dtype_reaches_the_blocks_and_the_rest_stays_float32(dtype, pool):
  numerics = Numerics(jnp.dtype(dtype))
  model = VisionTransformer(**{**TINY, 'num_classes': 3}, pool=pool, numerics=numerics)
  images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  params = build.abstract_params(model, (8, 8))
  jaxpr = jax.make_jaxpr(model.apply)({'params': params}, images)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
  equations = list(all_equations(jaxpr.jaxpr))
  products = [
    str(equation.invars[0].aval.dtype)
    for equation in equations
    if equation.primitive.name in ('dot_general', 'conv_general_dilated')
  ]
  blocks = 3 if pool == 'map' else 2
  assert products == [dtype] * (1 + 8 * blocks) + ['float32']
  softmax = {str(e.invars[0].aval.dtype) for e in equations if e.primitive.name == 'exp'}
  assert softmax == {'float32'}
  assert jaxpr.out_avals[0].dtype == np.float32
  features = jax.eval_shape(model.clone(num_classes=0).apply, {'params': params}, images)
  assert features.dtype == np.float32


def test_bfloat16_agrees_with_float32_to_its_precision(params):
  images = random_images(2, 8, 8)
  exact = np.asarray(apply(VisionTransformer(**TINY), params, images))
  model = VisionTransformer(**TINY, numerics=Numerics(jnp.bfloat16))
  rounded = np.asarray(apply(model, params, images))
  assert 0 < np.abs(exact - rounded).max() < 0.1


@pytest.mark.parametrize('attention', ['einsum', 'xla', 'fused'])
def test_attention_is_its_formula(attention):
  rng = np.random.default_rng(0)
  queries, keys = rng.normal(size=(2, 3, 16)), rng.normal(size=(2, 5, 16))
  attend = choose_attention(attention, 'cpu')
  layer = MultiHeadDotProductAttention(num_heads=2, attention=attend)
  shapes = jax.eval_shape(layer.init, jax.random.key(0), queries, keys)
  params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape), shapes)
  p = params['params']
  out = p['out']['bias']
  for head in range(2):
    query, key, value = (
      x @ p[name]['kernel'][:, head] + p[name]['bias'][head]
      for name, x in (('query', queries), ('key', keys), ('value', keys))
    )
    weights = np.exp(query @ key.transpose(0, 2, 1) / np.sqrt(8))
    weights /= weights.sum(axis=-1, keepdims=True)
    out = out + weights @ value @ p['out']['kernel'][head]
  to_float = functools.partial(jax.tree.map, np.float32)
  result = layer.apply(to_float(params), *to_float((queries, keys)))
  np.testing.assert_allclose(result, out, atol=1e-5)


def test_constrain_is_applied_to_the_tokens_at_block_boundaries(params):
  shapes = []

  def constrain(tokens):
    shapes.append(tokens.shape)
    return tokens

  model = VisionTransformer(**TINY, constrain=constrain)
  images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  jax.eval_shape(lambda images: model.apply({'params': params}, images), images)
  assert shapes == [(2, 5, 16)] * 3


def loss_and_gradients(model, params, images, key):
  def loss(params):
    logits = model.apply({'params': params}, images, deterministic=False, rngs={'dropout': key})
    return jnp.square(logits).sum()

  return jax.value_and_grad(loss)(params)


@pytest.fixture(scope='module')
def plain():
  rates = dict(dropout_rate=0.2, attention_dropout_rate=0.2, stochastic_depth_rate=0.3)
  return VisionTransformer(**TINY, **rates)


def test_remat_recomputes_the_products_that_it_does_not_save(plain, params):
  """Counts matrix products, because a CPU's compiler undoes remat, so memory does not show it."""

  def products(remat):
    step = functools.partial(loss_and_gradients, plain.clone(remat=remat))
    lowered = jax.jit(step).lower(params, random_images(4, 8, 8), jax.random.key(0))
    return lowered.as_text().count('dot_general')

  none, dots, full = (products(remat) for remat in ('none', 'dots', 'full'))
  attention, dense = 2, 6  # query-key and weights-value; query, key, value, out, and the MLP's
  assert dots == none + attention * plain.depth
  # No gradient needs the results of the last dense layers of the two branches.
  assert dots < full <= none + (attention + dense) * plain.depth


# --- further parts ----------------------------------------------------------------------------


def test_registers_have_no_positions():
  """Their outputs are as if they were concatenated after the positions had been added."""
  size = {**TINY, 'depth': 1}
  model = VisionTransformer(**size, registers=3, layer_scale=1.0, final_norm='none', pool='token')
  params = random_params(model, (8, 8))
  positions = params['Transformer']['posembed_input']['pos_embedding']
  assert positions.shape == (1, 5, 16)  # of the class token and the patches
  for name in ('LayerScale_0', 'LayerScale_1'):  # so that the block is the identity
    params['Transformer']['encoderblock_0'][name]['scale'] *= 0
  x = features.last_tokens(model, params, random_images(2, 8, 8))
  np.testing.assert_array_equal(x[:, 1:4], np.tile(params['registers'], (2, 1, 1)))
  np.testing.assert_array_equal(x[0, 0], (params['cls'] + positions[:, :1])[0, 0])


def test_a_block_whose_layer_scale_is_zero_is_the_identity():
  block = EncoderBlock(mlp_dim=24, num_heads=2, layer_scale=0.1)
  x = jax.random.normal(jax.random.key(1), (2, 5, 16))
  params = block.init(jax.random.key(0), x)['params']
  assert params['LayerScale_0']['scale'].tolist() == pytest.approx([0.1] * 16)
  assert np.abs(block.apply({'params': params}, x) - x).max() > 1e-3
  scales = {name: {'scale': np.zeros(16, np.float32)} for name in ('LayerScale_0', 'LayerScale_1')}
  np.testing.assert_array_equal(block.apply({'params': params | scales}, x), x)


@pytest.mark.parametrize('kind', ['swiglu', 'swiglu_norm'])
def test_gated_mlps_against_numpy(kind):
  block = MlpBlock(24, kind=kind)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 16)).astype(np.float32)
  params = block.init(jax.random.key(0), x)['params']
  params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 4, params)

  def dense(name, x):
    return x @ np.float64(params[name]['kernel']) + params[name]['bias']

  gate = dense('gate', x)
  hidden = gate / (1 + np.exp(-gate)) * dense('Dense_0', x)
  if kind == 'swiglu_norm':
    mean, variance = hidden.mean(-1, keepdims=True), hidden.var(-1, keepdims=True)
    norm = params['LayerNorm_0']
    hidden = (hidden - mean) / np.sqrt(variance + 1e-6) * norm['scale'] + norm['bias']
  expected = dense('Dense_1', hidden)
  np.testing.assert_allclose(block.apply({'params': params}, x), expected, atol=1e-4)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_rms_norm_against_numpy(dtype):
  norm = Numerics(dtype, layer_norm_epsilon=1e-3, norm='rms').layer_norm()
  rng = np.random.default_rng(0)
  x, scale = rng.normal(1, 1, (2, 3, 16)).astype(np.float32), rng.normal(size=16)
  params = {'scale': scale.astype(np.float32)}
  assert jax.tree.map(jnp.shape, norm.init(jax.random.key(0), x)['params']) == {'scale': (16,)}
  expected = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-3) * scale
  tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
  output = norm.apply({'params': params}, jnp.asarray(x, dtype))
  assert output.dtype == dtype
  np.testing.assert_allclose(np.float32(output), expected, atol=tolerance * np.abs(expected).max())


def test_options_of_aimv2_have_no_other_parameters():
  """Only its patches have a bias; what lacks them computes as with biases of zeros."""
  model = VisionTransformer(**TINY, pool='gap', mlp='swiglu', block_bias=False, patch_norm=True)
  model = model.clone(numerics=Numerics(norm='rms'))
  params = random_params(model, (8, 8))
  names = released.flatten(params)
  assert [name for name in names if name.endswith('bias')] == ['embedding/bias']
  assert {n.split('/')[-2] for n in names if n.endswith('scale')} == {
    'patch_norm', 'RMSNorm_0', 'RMSNorm_1', 'encoder_norm'
  }  # fmt: skip
  with_biases = model.clone(block_bias=True)
  zeros = jax.tree.map(jnp.zeros_like, random_params(with_biases, (8, 8)))
  completed = released.unflatten(released.flatten(zeros) | names)
  images = random_images(2, 8, 8)
  expected = apply(with_biases, completed, images)
  np.testing.assert_array_equal(apply(model, params, images), expected)
  # A norm of the patches ignores how large they are, and their positions come after it.
  larger = {name: 3 * x for name, x in params['embedding'].items()}
  scaled = apply(model, params | {'embedding': larger}, images)
  np.testing.assert_allclose(scaled, expected, atol=1e-4)
  positions = jax.tree.map(lambda x: 3 * x, params['Transformer']['posembed_input'])
  moved = params | {'Transformer': params['Transformer'] | {'posembed_input': positions}}
  assert np.abs(apply(model, moved, images) - expected).max() > 1e-2


def test_map_without_an_mlp_is_its_attention():
  model = VisionTransformer(**TINY, pool='map', pool_mlp=False)
  params, images = random_params(model, (8, 8)), random_images(2, 8, 8)
  assert params['MAPHead_0'].keys() == {'probe', ATTENTION}
  tokens = features.last_tokens(model, params, images)
  attention = MultiHeadDotProductAttention(2)
  probe = jnp.tile(params['MAPHead_0']['probe'], (2, 1, 1))
  expected = attention.apply({'params': params['MAPHead_0'][ATTENTION]}, probe, tokens)[:, 0]
  np.testing.assert_allclose(apply(model, params, images), expected, atol=1e-5)


def test_pools_of_two():
  """token_gap concatenates both features, distilled averages the logits of two heads."""
  size = dict(TINY, num_classes=3, registers=2)
  images = random_images(2, 8, 8)
  both = VisionTransformer(**size, pool='token_gap')
  params = random_params(both, (8, 8))
  encoder = {name: x for name, x in params.items() if name != 'head'}
  parts = [
    apply(VisionTransformer(**dict(size, num_classes=0), **kwargs), encoder, images)
    for kwargs in (dict(pool='token'), dict(pool='gap', class_token=True))
  ]
  head = params['head']
  expected = np.concatenate(parts, axis=-1) @ head['kernel'] + head['bias']
  np.testing.assert_allclose(apply(both, params, images), expected, atol=1e-5)

  distilled = VisionTransformer(**size, pool='distilled')
  params = random_params(distilled, (8, 8))
  means = jax.tree.map(np.zeros_like, params['head']), jax.tree.map(np.asarray, params['head'])
  whole = apply(distilled, params, images)
  first = apply(distilled, params | {'head_distillation': means[0]}, images)
  second = apply(distilled, params | {'head': means[0]}, images)
  np.testing.assert_allclose(whole, first + second, atol=1e-5)
  assert np.abs(np.asarray(first - second)).max() > 1e-3


@pytest.mark.parametrize('final_norm', ['pooled', 'none'])
def test_where_the_last_norm_is(final_norm):
  model = VisionTransformer(**TINY, pool='gap', final_norm=final_norm)
  params, images = random_params(model, (8, 8)), random_images(2, 8, 8)
  assert 'encoder_norm' not in params['Transformer']
  last = features.last_tokens(model, params, images)
  mean = np.asarray(last).mean(axis=1)
  if final_norm == 'pooled':
    norm = params['pool_norm']
    mean = (mean - mean.mean(-1, keepdims=True)) / np.sqrt(mean.var(-1, keepdims=True) + 1e-6)
    mean = mean * norm['scale'] + norm['bias']
  np.testing.assert_allclose(apply(model, params, images), mean, atol=1e-5)
