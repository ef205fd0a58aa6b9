"""MLP-Mixer (arXiv 2105.01601, Section 2) as linen modules: MLPs over tokens and over channels.

Parameters have the released names and shapes.

Shapes: B batch, H W image, P patch size, N tokens, D width, C classes.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.config import ModelConfig
from vit_jax.models.dense import PatchEmbedding
from vit_jax.models.dropout import dropout, example_keys, split_keys
from vit_jax.models.encoder_block import GELUS, Numerics
from vit_jax.models.head import classify
from vit_jax.models.precision import with_full_precision
from vit_jax.models.resnet import identity
from vit_jax.models.variants import MIXER_VARIANTS
from vit_jax.models.vit import REMAT

Array = jax.Array


class MixingMlp(nn.Module):
  """Dense, GELU, dense over the last axis: (B, N, D) -> same."""

  hidden_dim: int
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x: Array) -> Array:
    size, dtype = x.shape[-1], self.numerics.dtype
    x = nn.Dense(self.hidden_dim, dtype=dtype)(x)
    x = GELUS[self.numerics.gelu](x)
    return nn.Dense(size, dtype=dtype)(x)


class MixerBlock(nn.Module):
  """Token mixing and channel mixing, each with a residual (Equation 1): (B, N, D) -> same.

  Stochastic depth as in `EncoderBlock`.
  """

  token_mlp_dim: int
  mlp_dim: int
  stochastic_depth_rate: float = 0.0
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(
    self, x: Array, relative_depth: float | Array = 1.0, keys: Array | None = None
  ) -> Array:
    token_keys, channel_keys = split_keys(keys, 2)
    rate = self.stochastic_depth_rate and self.stochastic_depth_rate * relative_depth

    y = jnp.swapaxes(self.numerics.layer_norm()(x), 1, 2)  # (B, D, N)
    y = MixingMlp(self.token_mlp_dim, self.numerics, name='token_mixing')(y)
    x = x + dropout(jnp.swapaxes(y, 1, 2), rate, token_keys, broadcast_dims=(1, 2))

    y = MixingMlp(self.mlp_dim, self.numerics, name='channel_mixing')(self.numerics.layer_norm()(x))
    return x + dropout(y, rate, channel_keys, broadcast_dims=(1, 2))


class MlpMixer(nn.Module):
  """Images (B, H, W, 3) float in [-1, 1] -> logits (B, C) float32.

  The token-mixing MLPs have one input for each of the N patches, so the parameters fit images of
  one size only.

  Attributes:
    patch_size: P, the side of a patch in pixels; must divide H and W.
    width, depth: D, and the number of blocks (Table 1 of the paper).
    token_mlp_dim, mlp_dim: hidden units of the token-mixing and channel-mixing MLPs, D_S and D_C.
    num_classes: C; 0: no head, and the result is the features before it, (B, D) float32.
    stochastic_depth_rate: in [0, 1); for training.
    head_bias_init: initial value of the head's bias.
    numerics: dtype, GELU and LayerNorm epsilon.
    remat: a key of REMAT.
    constrain: applied to the tokens (B, N, D) at block boundaries, to shard them.
  """

  patch_size: int
  width: int
  depth: int
  token_mlp_dim: int
  mlp_dim: int
  num_classes: int
  stochastic_depth_rate: float = 0.0
  head_bias_init: float = 0.0
  numerics: Numerics = Numerics()
  remat: str = 'none'
  constrain: Callable[[Array], Array] = identity

  @nn.compact
  @with_full_precision
  def __call__(
    self, images: Array, *, deterministic: bool = True, examples: Array | None = None
  ) -> Array:
    policy = REMAT[self.remat]
    x = PatchEmbedding(self.patch_size, self.width, self.numerics.dtype, name='stem')(images)
    x = self.constrain(x.reshape(x.shape[0], x.shape[1] * x.shape[2], self.width))
    is_random = self.stochastic_depth_rate and not deterministic
    keys = example_keys(self.make_rng('dropout'), examples, x.shape[0]) if is_random else None
    keys = split_keys(keys, self.depth)
    block = MixerBlock if policy is None else nn.remat(MixerBlock, policy=policy)
    fields = (self.token_mlp_dim, self.mlp_dim, self.stochastic_depth_rate, self.numerics)
    depths: Any = np.linspace(0, 1, self.depth, dtype=np.float32)
    for i, relative_depth in enumerate(depths):
      x = self.constrain(block(*fields, name=f'MixerBlock_{i}')(x, relative_depth, keys[i]))
    x = self.numerics.layer_norm('pre_head_layer_norm')(x)
    return classify(x.mean(axis=1, dtype=jnp.float32), self.num_classes, self.head_bias_init)


def mixer_from_config(
  config: ModelConfig, num_classes: int, constrain: Callable[[jax.Array], jax.Array], dtype: Any
) -> MlpMixer:
  """Builds the variant that the config names; see `build.model_from_config`."""
  variant = MIXER_VARIANTS[config.variant]
  return MlpMixer(
    patch_size=config.patch_size,
    width=config.width or variant.width,
    depth=config.depth or variant.depth,
    token_mlp_dim=config.token_mlp_dim or variant.token_mlp_dim,
    mlp_dim=config.mlp_dim or variant.mlp_dim,
    num_classes=num_classes,
    stochastic_depth_rate=config.stochastic_depth_rate,
    head_bias_init=config.head_bias_init,
    numerics=Numerics(dtype, config.gelu, config.layer_norm_epsilon),
    remat=config.remat,
    constrain=constrain,
  )
