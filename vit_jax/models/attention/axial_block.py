"""The block of an axial Transformer (arXiv 2010.11929, Appendix D.6; arXiv 1912.12180).

Shapes: B batch, h w grid of patches, N = h w tokens, D width.
"""

import flax.linen as nn
import jax

from vit_jax.models.dot_product_attention import Attend, einsum_attention
from vit_jax.models.dropout import split_keys
from vit_jax.models.encoder_block import EncoderBlock, Numerics
from vit_jax.models.positions import Positions, enter_block

Array = jax.Array


class AxialBlock(nn.Module):
  """An `EncoderBlock` on each row of the grid, then one on each column: (B, N, D) -> same.

  For N tokens its attention has h + w products a token in place of N, and its two blocks have
  twice the parameters of one. Embeddings that are added enter before the rows; relative ones are
  of offsets along a row, and along a column.

  Attributes:
    grid: (h, w).
    others: as in `EncoderBlock`.
  """

  mlp_dim: int
  num_heads: int
  grid: tuple[int, int]
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  stochastic_depth_rate: float = 0.0
  numerics: Numerics = Numerics()
  attention: Attend = einsum_attention
  positions: Positions = Positions()

  @nn.compact
  def __call__(
    self,
    x: Array,
    relative_depth: float | Array = 1.0,
    keys: Array | None = None,
    shared: Array | None = None,
  ) -> Array:
    (rows, columns), (batch, num_tokens, width) = self.grid, x.shape
    row_keys, column_keys = split_keys(keys, 2)
    is_relative = self.positions.kind == 'relative'
    if not is_relative:
      x, _ = enter_block(self.positions, self.num_heads, x, shared)

    def encode(x: Array, name: str, keys: Array | None) -> Array:
      """`EncoderBlock` on (B sequences, tokens, D), from (B, sequences, tokens, D) and back."""
      positions = Positions('relative', x.shape[2:3]) if is_relative else Positions()
      block = EncoderBlock(
        self.mlp_dim,
        self.num_heads,
        self.dropout_rate,
        self.attention_dropout_rate,
        self.stochastic_depth_rate,
        self.numerics,
        self.attention,
        positions,
        name=name,
      )
      sequences = x.reshape(-1, *x.shape[2:])
      return block(sequences, relative_depth, keys).reshape(x.shape)

    x = encode(x.reshape(batch, rows, columns, width), 'row', row_keys)
    x = encode(x.swapaxes(1, 2), 'column', column_keys)
    return x.swapaxes(1, 2).reshape(batch, num_tokens, width)
