"""How a Transformer learns where its patches are (arXiv 2010.11929, Appendix D.4).

Shapes: B batch, N tokens, D width, K heads, P = h w patches in a grid.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array

ADDED = ('1d', '2d')  # kinds of embeddings that are added to the tokens
KINDS = (*ADDED, 'relative', 'none')
ENTRIES = ('stem', 'layers', 'layers_shared')  # where they enter


@dataclasses.dataclass(frozen=True)
class Positions:
  """What is learned of the positions of a grid.

  Attributes:
    kind: of KINDS. 1d: an embedding for each token, the class token included. 2d: an embedding of
      D/2 for each column and for each row, concatenated; the class token has none. relative: an
      embedding for each offset of a query's patch from a key's, counted along the rows of the
      grid; there are none for the class token.
    grid: (rows, columns) of patches; any shape of the same size for 1d and relative.
  """

  kind: str = 'none'
  grid: tuple[int, ...] = ()


class PositionEmbedding(nn.Module):
  """The parameters of `Positions`; the tokens (B, N, D) determine only their sizes.

  Returns:
    (1, N, D) float32, for `add_positions`; relative: (2 P - 1, K, D/K), from offset 1 - P to P - 1,
    in the dtype of the tokens.
  """

  positions: Positions
  num_heads: int  # of the attention; relative: each head has a part of every embedding

  @nn.compact
  def __call__(self, x: Array) -> Array:
    (_, num_tokens, width), kind = x.shape, self.positions.kind
    num_patches = math.prod(self.positions.grid)

    def table(name: str, *shape: int) -> Array:
      return self.param(name, nn.initializers.normal(stddev=0.02), shape)

    if kind == '1d':
      return table('pos_embedding', 1, num_tokens, width)
    if kind == 'relative':
      heads = (self.num_heads, width // self.num_heads)
      return table('relative_embedding', 2 * num_patches - 1, *heads).astype(x.dtype)
    rows, columns = self.positions.grid
    of_columns = jnp.tile(table('x_embedding', 1, columns, width // 2), (1, rows, 1))
    of_rows = jnp.repeat(table('y_embedding', 1, rows, width // 2), columns, axis=1)
    embedding = jnp.concatenate([of_columns, of_rows], axis=-1)  # (1, P, D)
    return jnp.pad(embedding, ((0, 0), (num_tokens - num_patches, 0), (0, 0)))


def enter_block(
  positions: Positions, num_heads: int, x: Array, shared: Array | None
) -> tuple[Array, Array | None]:
  """Adds embeddings to the input of a block (B, N, D); call it inside the block's compact method.

  Args:
    positions, num_heads: of the block.
    x: the input.
    shared: embeddings that all blocks share; None: the block has its own.

  Returns:
    The tokens (B, N, D), and the table of relative embeddings where there is one.
  """
  if positions.kind == 'none':
    return x, None
  if shared is None:
    shared = PositionEmbedding(positions, num_heads, name='posembed_input')(x)
  return (x, shared) if positions.kind == 'relative' else (add_positions(x, shared), None)


def add_positions(x: Array, embedding: Array) -> Array:
  """(B, N, D) plus (1, N, D) float32, in float32: so are the sums of its gradient over images."""
  return (x + embedding).astype(x.dtype)


def relative_logits(query: Array, table: Array) -> Array:
  """Products of queries and the embeddings of their patches' offsets from those of the keys.

  The products with all embeddings are computed first, and those of each query then shifted to
  their places, so that no embedding is repeated (as in arXiv 1809.04281, Section 3.4.1).

  Args:
    query: (B, N, K, D/K).
    table: (2 P - 1, K, D/K), of `PositionEmbedding`; the first N - P tokens are not patches.

  Returns:
    (B, K, N, N), at [:, :, q, k] for the offset q - k; 0 where a token is not a patch.
  """
  num_patches = (len(table) + 1) // 2
  others = query.shape[1] - num_patches
  products = jnp.einsum('bqkd,rkd->bkqr', query[:, others:], table[::-1])  # (B, K, P, 2 P - 1)
  # Query q needs k - q + P - 1 for key k: with a column more, P - 1 steps on, in rows one shorter.
  products = jnp.pad(products, ((0, 0), (0, 0), (0, 0), (0, 1)))
  shape = (*products.shape[:2], num_patches)
  products = products.reshape(*shape[:2], 2 * num_patches**2)[..., num_patches - 1 : -1]
  products = products.reshape(*shape, 2 * num_patches - 1)[..., :num_patches]
  return jnp.pad(products, ((0, 0), (0, 0), (others, 0), (others, 0)))
