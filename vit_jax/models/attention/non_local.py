"""The non-local block (arXiv 1711.07971, Section 3.3): attention of all pixels to all, added.

It is the embedded Gaussian form, whose logits are scaled as in the authors' code. The last
normalization starts with a scale of zero, so that a new block is the identity. Group normalization
replaces that of batches.

Parameters: 2 F^2 + 3.5 F of the four 1x1 convolutions and 2 F of the normalization.

Shapes: B batch, H W feature map, N = H W, M positions of keys and values, F features.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class NonLocalBlock(nn.Module):
  """(B, H, W, F) -> same, F a multiple of 32.

  Attributes:
    subsample: keys and values are those of the maximum of each 2x2 pixels, so that M is N / 4. The
      names of their layers tell.
  """

  subsample: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    features = x.shape[-1]

    def project(x: Array, name: str) -> Array:  # (B, h, w, F) -> (B, h w, F/2)
      x = nn.Dense(features // 2, dtype=self.dtype, name=name)(x)
      return x.reshape(x.shape[0], x.shape[1] * x.shape[2], features // 2)

    pooled, prefix = x, ''
    if self.subsample:
      pooled, prefix = nn.max_pool(x, (2, 2), (2, 2), padding='SAME'), 'pooled_'
    query = project(x, 'query') * (features // 2) ** -0.5
    key, value = project(pooled, f'{prefix}key'), project(pooled, f'{prefix}value')
    logits = jnp.einsum('bnd,bmd->bnm', query, key)
    weights = jax.nn.softmax(logits.astype(jnp.float32)).astype(self.dtype)  # (B, N, M)
    y = jnp.einsum('bnm,bmd->bnd', weights, value).reshape(*x.shape[:-1], features // 2)
    y = nn.Dense(features, dtype=self.dtype, name='out')(y)
    zeros = nn.initializers.zeros
    y = nn.GroupNorm(32, epsilon=1e-5, scale_init=zeros, dtype=self.dtype, name='norm')(y)
    return x + y
