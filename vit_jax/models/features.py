"""What a model computes before its logits: features, tokens, and the outputs of its blocks.

Shapes: B batch, N patches, D width.
"""

from typing import Any, cast

import jax

from vit_jax.models.attention.axial_block import AxialBlock
from vit_jax.models.build import Model
from vit_jax.models.dot_product_attention import einsum_attention
from vit_jax.models.encoder_block import EncoderBlock
from vit_jax.models.mixer import MixerBlock, MlpMixer
from vit_jax.models.vit import VisionTransformer

TokenModel = VisionTransformer | MlpMixer


def features(model: Model, params: Any, images: jax.Array) -> jax.Array:
  """The input of the head, (B, D) float32, `pre_logits` included where the model has it."""
  return cast(jax.Array, model.clone(num_classes=0).apply({'params': params}, images))


def num_prefix_tokens(model: TokenModel) -> int:
  """The number of tokens before those of the patches: the class token, registers, …"""
  return model.num_prefix_tokens if isinstance(model, VisionTransformer) else 0


def last_tokens(model: TokenModel, params: Any, images: jax.Array) -> jax.Array:
  """All tokens after the last LayerNorm, prefix tokens first: (B, prefix + N, D).

  Where it comes after pooling, or there is none, they are the output of the last block.
  """
  outputs = _outputs(model, params, images)
  return outputs['norm'] if 'norm' in outputs else outputs[str(model.depth - 1)]


def block_outputs(
  model: TokenModel, params: Any, images: jax.Array, layers: tuple[int, ...], norm: bool
) -> dict[int, jax.Array]:
  """All tokens after some blocks, prefix tokens first: {layer: (B, prefix + N, D)}.

  Args:
    model, params, images: (B, H, W, C) float.
    layers: numbers of blocks from 0, or from -1 backwards.
    norm: apply the last LayerNorm to each, if the model has one for all tokens.

  Raises:
    IndexError: for a block that the model does not have.
  """
  blocks = {layer: range(model.depth)[layer] for layer in layers}
  outputs = _outputs(model, params, images)
  tokens = {layer: outputs[str(block)] for layer, block in blocks.items()}
  modules = params if isinstance(model, MlpMixer) else params['Transformer']
  if norm and _norm_name(model) in modules:
    layer_norm = model.numerics.layer_norm()
    variables = {'params': modules[_norm_name(model)]}
    tokens = {layer: cast(jax.Array, layer_norm.apply(variables, x)) for layer, x in tokens.items()}
  return tokens


def _norm_name(model: TokenModel) -> str:
  return 'pre_head_layer_norm' if isinstance(model, MlpMixer) else 'encoder_norm'


def _outputs(model: TokenModel, params: Any, images: jax.Array) -> dict[str, jax.Array]:
  """The output of every block, by its number, and of the last LayerNorm, 'norm'."""
  model = model.clone(remat='none')
  if isinstance(model, VisionTransformer):
    model = model.clone(scan_blocks=False, attention=einsum_attention)  # without further tokens
  norm = _norm_name(model)
  _, variables = model.apply(
    {'params': params},
    images,
    capture_intermediates=lambda module, _: (
      isinstance(module, (EncoderBlock, AxialBlock, MixerBlock)) or module.name == norm
    ),
    mutable=['intermediates'],
  )
  modules = cast(Any, variables)['intermediates']
  modules = modules.get('Transformer', modules)
  outputs = {name: output['__call__'][0] for name, output in modules.items()}
  return {'norm' if name == norm else name.split('_')[-1]: x for name, x in outputs.items()}
