"""The original JAX code, imported from a checkout, doing the work of our step; see serve.py.

Only its `models_vit` is imported, which needs flax and jax but no TensorFlow. Its training script
has SGD under `pmap`; here the step is AdamW under `jit`, the work that all others do.
"""

import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax


def make_model(config):
  from vit_jax import models_vit

  if config['dtype'] != 'float32':
    raise ValueError('its Transformer computes in float32 only')
  if config['stochastic_depth_rate']:
    raise ValueError('it has no stochastic depth')
  resnet, patch_size = None, config['patch_size']
  if config['resnet_width']:
    resnet = types.SimpleNamespace(
      width_factor=config['resnet_width'] / 64, num_layers=tuple(config['resnet_blocks'])
    )
    patch_size //= config['stride']
  return models_vit.VisionTransformer(
    num_classes=config['num_classes'],
    patches=types.SimpleNamespace(size=(patch_size, patch_size)),
    transformer={
      'mlp_dim': config['mlp_dim'],
      'num_heads': config['num_heads'],
      'num_layers': config['depth'],
      'dropout_rate': config['dropout_rate'],
      'attention_dropout_rate': config['attention_dropout_rate'],
    },
    hidden_size=config['width'],
    resnet=resnet,
  )


class Workload:
  """A forward pass of images (B, H, W, 3) uint8 to logits, and an AdamW step."""

  def __init__(self, request):
    import vit_jax

    config = request['model']
    model = make_model(config)
    optimizer = make_optimizer(config)
    rng = np.random.default_rng(0)
    shape = (config['batch_size'], *config['image_size'], 3)
    self.images = jax.device_put(rng.integers(0, 256, shape, dtype=np.uint8))
    self.labels = jax.device_put(rng.integers(0, config['num_classes'], shape[0], dtype=np.int32))
    self.key = jax.random.key(0)
    images = jnp.zeros((1, *shape[1:]))
    variables = jax.jit(lambda key: model.init(key, images, train=False))(self.key)
    self.state = jax.jit(lambda params: (params, optimizer.init(params)))(variables['params'])

    def logits(params, images, **options):
      images = images.astype(jnp.float32) / 127.5 - 1
      return model.apply({'params': params}, images, **options)

    def step(state, images, labels, key):
      def loss_fn(params):
        x = logits(params, images, train=True, rngs={'dropout': key})
        return optax.softmax_cross_entropy_with_integer_labels(x, labels).mean()

      params, opt_state = state
      loss, grads = jax.value_and_grad(loss_fn)(params)
      updates, opt_state = optimizer.update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), loss, jax.random.fold_in(key, 0)

    self._forward = jax.jit(lambda params, images: logits(params, images, train=False))
    self._step = jax.jit(step, donate_argnums=0)
    clip = config['clip_norm']
    self.description = {
      'versions': {'jax': jax.__version__},
      'device': jax.devices()[0].device_kind,
      'path': vit_jax.__file__,
      'parameters': sum(leaf.size for leaf in jax.tree.leaves(self.state[0])),
      'optimizer': f'adamw, clipped to {clip:g}' if clip else 'adamw',
    }

  def run(self, kind, calls):
    """Times the calls of a pass, 'forward' or 'step'."""
    result = None
    start = time.perf_counter()
    for _ in range(calls):
      if kind == 'forward':
        result = self._forward(self.state[0], self.images)
      else:
        self.state, result, self.key = self._step(self.state, self.images, self.labels, self.key)
    jax.block_until_ready((result, self.state))
    answer = {'seconds': time.perf_counter() - start}
    return answer | ({'loss': float(result)} if kind == 'step' else {})


def make_optimizer(config):
  def is_kernel(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)

  adamw = optax.adamw(
    config['learning_rate'],
    config['b1'],
    config['b2'],
    config['epsilon'],
    weight_decay=config['weight_decay'],
    mask=is_kernel,
  )
  clip = config['clip_norm']
  return optax.chain(optax.clip_by_global_norm(clip), adamw) if clip else adamw


def build(request):
  return Workload(request)
