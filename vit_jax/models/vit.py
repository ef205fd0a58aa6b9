"""The Vision Transformer (arXiv 2010.11929, Section 3.1) as linen modules.

Parameters have the released shapes, and the names that current linen gives the released tree.

Shapes: B batch, H W image, P patch size, N tokens, D width, K heads, M mlp_dim, C classes.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models.attention.axial_block import AxialBlock
from vit_jax.models.dense import PatchEmbedding
from vit_jax.models.dot_product_attention import Attend, einsum_attention, pad_for_cudnn
from vit_jax.models.dropout import dropout, example_keys, split_keys
from vit_jax.models.encoder_block import (
  EncoderBlock,
  MlpBlock,
  MultiHeadDotProductAttention,
  Numerics,
)
from vit_jax.models.head import classify
from vit_jax.models.positions import ADDED, PositionEmbedding, Positions, add_positions
from vit_jax.models.precision import FULL_PRECISION, with_full_precision
from vit_jax.models.resnet import hybrid_features, hybrid_stride, identity
from vit_jax.models.rotary import Rotary, Rotation

Array = jax.Array


def _keeps_flash_attention(primitive: Any, *arguments: Any, **params: Any) -> Any:
  """Whether a value is an output of cuDNN's attention or of the kernel for TPUs."""
  is_cudnn = primitive.name == 'dot_product_attention_fwd_wrapper'  # in JAX 0.10 to 0.12
  of_kernel = jax.checkpoint_policies.save_only_these_names('fused_attention')
  return is_cudnn or of_kernel(primitive, *arguments, **params)


# The results of a block's forward pass that are saved for the backward pass (None: all); the others
# are recomputed.
REMAT = {
  'none': None,
  'dots': jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # the dense layers
    _keeps_flash_attention,
  ),
  'full': jax.checkpoint_policies.nothing_saveable,
}


class Encoder(nn.Module):
  """Position embeddings, `depth` blocks and a final LayerNorm: (B, N, D) -> same.

  Attributes:
    depth: the number of blocks.
    block: the class of all blocks, `EncoderBlock` or `AxialBlock`.
    block_fields: of every block.
    positions, position_entry: as in `VisionTransformer`, on the grid of the patches.
    pre_norm, final_norm: as in `VisionTransformer`.
    dropout_rate, numerics, remat, scan_blocks, constrain: as in `VisionTransformer`.
  """

  depth: int
  block: type[EncoderBlock] | type[AxialBlock]
  block_fields: dict[str, Any]
  positions: Positions
  position_entry: str
  pre_norm: bool
  final_norm: bool
  dropout_rate: float
  numerics: Numerics
  remat: str
  scan_blocks: bool
  constrain: Callable[[Array], Array]

  @nn.compact
  def __call__(self, x: Array, keys: Array | None = None, registers: Array | None = None) -> Array:
    embedding_keys, encoder_keys = split_keys(keys, 2)
    shared, block_fields = None, dict(self.block_fields)
    embedding = functools.partial(PositionEmbedding, self.positions, block_fields['num_heads'])
    if self.position_entry == 'layers_shared':
      shared = embedding(name='posembed_layers')(x)
    if self.position_entry == 'stem' and self.positions.kind in ADDED:
      x = add_positions(x, embedding(name='posembed_input')(x))
    else:
      block_fields['positions'] = self.positions
    if registers is not None:
      first_patch = x.shape[1] - math.prod(self.positions.grid)
      registers = jnp.tile(registers, (len(x), 1, 1)).astype(x.dtype)
      x = jnp.concatenate([x[:, :first_patch], registers, x[:, first_patch:]], axis=1)
    if self.pre_norm:
      x = self.numerics.layer_norm('pre_norm')(x)
    num_tokens = x.shape[1]
    takes_any_length = not {'grid', 'positions'} & block_fields.keys()
    are_weights_dropped = keys is not None and block_fields['attention_dropout_rate'] > 0
    if takes_any_length and not are_weights_dropped:
      x, block_fields['attention'] = pad_for_cudnn(
        x, block_fields['attention'], block_fields['num_heads']
      )
    x = self.constrain(dropout(x, self.dropout_rate, embedding_keys))
    block_keys = split_keys(encoder_keys, self.depth)
    depths = np.linspace(0, 1, self.depth, dtype=np.float32)  # relative
    if self.scan_blocks and not self.is_initializing():
      x = self._scan(self.block(**block_fields, parent=None), x, depths, block_keys, shared)
    else:
      block, policy = self.block, REMAT[self.remat]
      if policy is not None:
        block = nn.remat(block, policy=policy)
      for i in range(self.depth):
        x = block(**block_fields, name=f'encoderblock_{i}')(x, depths[i], block_keys[i], shared)
        x = self.constrain(x)
    x = x[:, :num_tokens]
    return self.numerics.layer_norm('encoder_norm')(x) if self.final_norm else x

  def _scan(
    self,
    block: EncoderBlock | AxialBlock,
    x: Array,
    depths: np.ndarray,
    keys: Array | list[None],
    shared: Array | None,
  ) -> Array:
    """Runs the blocks as one loop; stacks their parameters here, not in the state."""
    policy = REMAT[self.remat]
    params = [self.variables['params'][f'encoderblock_{i}'] for i in range(self.depth)]

    def body(x: Array, layer: tuple[Any, Any, Array | None]) -> tuple[Array, None]:
      params, *arguments = layer
      x = cast(Array, block.apply({'params': params}, x, *arguments, shared))
      return self.constrain(x), None

    if policy is not None:
      body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    return jax.lax.scan(body, x, (stacked, depths, None if isinstance(keys, list) else keys))[0]


class MAPHead(nn.Module):
  """Multihead attention pooling (arXiv 2106.04560, Section 3.3): (B, N, D) -> (B, D).

  With `mlp_dim` 0 the attention is all of it.
  """

  mlp_dim: int
  num_heads: int
  numerics: Numerics
  attention: Attend = einsum_attention

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (1, 1, x.shape[-1])
    probe = self.param('probe', nn.initializers.xavier_uniform(), shape).astype(self.numerics.dtype)
    probe = jnp.tile(probe, (x.shape[0], 1, 1))
    attention = MultiHeadDotProductAttention(
      self.num_heads, dtype=self.numerics.dtype, attention=self.attention
    )
    x = attention(probe, x)  # (B, 1, D)
    if not self.mlp_dim:
      return x[:, 0]
    y = self.numerics.layer_norm()(x)
    x = x + MlpBlock(self.mlp_dim, numerics=self.numerics)(y)
    return x[:, 0]


class VisionTransformer(nn.Module):
  """Images (B, H, W, 3) float in [-1, 1] -> logits (B, C) float32.

  Attributes:
    patch_size: P, the side of a patch in pixels; must divide H and W.
    width, depth, mlp_dim, num_heads: the size (Table 1 of the paper).
    num_classes: C; 0: no head, and the result is the features before it, (B, D) or
      (B, pre_logits) float32.
    pool: how tokens become features: 'token' (class token), 'gap' (global average pooling of the
      patches), 'map' (attention pooling of all tokens), 'token_gap' (the first two, concatenated,
      as in DINOv2, arXiv 2304.07193, Appendix B.3) or 'distilled' (the class token and a
      distillation token, each with a head of its own, whose logits are averaged: DeiT, arXiv
      2012.12877, Section 4).
    pre_logits: width of the tanh layer before the head (Section 3.1); 0: no layer.
    dropout_rate, attention_dropout_rate, stochastic_depth_rate: in [0, 1); for training.
    head_bias_init: initial value of the head's bias; about -log(C) suits sigmoid losses.
    resnet_width: features of the stem of a hybrid's ResNet; 0: patches of pixels.
    resnet_blocks: units of each ResNet stage; (): only the stem (R+Ti/16).
    position_embedding: the kind of `Positions`: '1d', '2d', 'relative' or 'none'.
    position_entry: 'stem', 'layers' (the input of each block has its own embeddings) or
      'layers_shared' (all have the same ones). Relative embeddings are in the attention of each
      block: their own by 'stem', the same ones by 'layers_shared'.
    axial: attention along rows, then along columns (`AxialBlock`); needs pool gap or map.
    class_token: prepend a class token though the pool is gap (MAE fine-tuned, EVA-02) or map; the
      other pools always have one.
    registers: number of further learned tokens, without positions, after the class token (arXiv
      2309.16588; 4 in DINOv2 with registers and in DINOv3).
    rotary: the rule by which queries and keys are rotated by the position of their patch
      (`rotary.py`; DINOv3, EVA-02, Perception Encoder); None: no rotation.
    patch_bias: whether the patch embedding has a bias; CLIP's has none.
    patch_norm: whether patch embeddings are normalized before positions are added (AIMv2).
    block_bias: whether the dense layers of the blocks have biases; AIMv2's have none (arXiv
      2411.14402).
    qkv_bias: which projections of an attention have biases, a key of QKV_BIASES: 'all',
      'query_value' (none for keys: DINOv3, EVA-02) or 'none' (DINOv3 7B).
    pre_norm: whether a LayerNorm precedes the blocks (CLIP, arXiv 2103.00020, Section 2.4).
    mlp: kind of the MLPs, one of MLPS: 'gelu', 'swiglu' (gated: DINOv2 g, DINOv3 S+, H+ and 7B) or
      'swiglu_norm' (gated, with a LayerNorm of the hidden units: EVA-02).
    layer_scale: initial value of a learned factor for each feature of a residual branch
      (`LayerScale`; DINOv2, DINOv3, DeiT III); 0: no factors.
    final_norm: where the last LayerNorm is: 'encoder' (of all tokens, after the blocks), 'pooled'
      (of the pooled features: fc_norm of MAE and BEiT) or 'none' (CLIP as an image classifier in
      Transformers).
    pool_num_heads, pool_mlp_dim: heads and hidden units of attention pooling; 0: as in the blocks.
    pool_mlp: whether attention pooling ends with a LayerNorm and an MLP; AIMv2's does not.
    head_bias: whether the head has a bias; the projection of CLIP has none.
    pixel_mean, pixel_std: normalize each channel before the patch embedding, in units of pixels in
      [0, 1]; (): 0.5, which leaves images in [-1, 1] as they are.
    numerics: dtype, GELU, LayerNorm or RMSNorm, its epsilon.
    attention: of `choose_attention`. Like remat and scan_blocks, it changes memory and time, and
      results only by rounding.
    pool_attention: that of pool map, whose single query no kernel makes faster.
    remat: a key of REMAT.
    scan_blocks: run the blocks as a loop, which compiles one block instead of all.
    constrain: applied to the tokens (B, N, D) at block boundaries, to shard them.
  """

  patch_size: int
  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  num_classes: int
  pool: str = 'token'
  pre_logits: int = 0
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  stochastic_depth_rate: float = 0.0
  head_bias_init: float = 0.0
  resnet_width: int = 0
  resnet_blocks: tuple[int, ...] = ()
  position_embedding: str = '1d'
  position_entry: str = 'stem'
  axial: bool = False
  class_token: bool = False
  registers: int = 0
  rotary: Rotary | None = None
  patch_bias: bool = True
  patch_norm: bool = False
  block_bias: bool = True
  qkv_bias: str = 'all'
  pre_norm: bool = False
  mlp: str = 'gelu'
  layer_scale: float = 0.0
  final_norm: str = 'encoder'
  pool_num_heads: int = 0
  pool_mlp_dim: int = 0
  pool_mlp: bool = True
  head_bias: bool = True
  pixel_mean: tuple[float, ...] = ()
  pixel_std: tuple[float, ...] = ()
  numerics: Numerics = Numerics()
  attention: Attend = einsum_attention
  pool_attention: Attend = einsum_attention
  remat: str = 'none'
  scan_blocks: bool = False
  constrain: Callable[[Array], Array] = identity

  @nn.compact
  @with_full_precision
  def __call__(
    self, images: Array, *, deterministic: bool = True, examples: Array | None = None
  ) -> Array:
    x = self.embed_patches(images)  # (B, H/P, W/P, D)
    x = self.encode(x, deterministic, examples)
    x = self.pool_tokens(x)  # (B, D)
    if self.pre_logits:
      x = nn.Dense(self.pre_logits, precision=FULL_PRECISION, name='pre_logits')(x)
      x = nn.tanh(x)
    head = functools.partial(
      classify, num_classes=self.num_classes, bias_init=self.head_bias_init, use_bias=self.head_bias
    )
    if self.pool == 'distilled':  # x is (B, 2, D)
      return (head(x[:, 0]) + head(x[:, 1], name='head_distillation')) / 2
    return head(x)  # (B, C)

  # Parts of a compact method, which others can be made of.

  def embed_patches(self, images: Array) -> Array:
    """Images (B, H, W, 3) -> patch embeddings (B, H/P, W/P, D), of a hybrid's features."""
    dtype, patch, x = self.numerics.dtype, self.patch_size, images
    if self.pixel_mean:
      shape = (1, 1, 1, len(self.pixel_mean))
      mean, std = (
        np.asarray(x, np.float32).reshape(shape) for x in (self.pixel_mean, self.pixel_std)
      )
      x = ((x + 1) / 2 - mean) / std
    if self.resnet_width:
      x = hybrid_features(x, self.resnet_width, self.resnet_blocks, dtype)
      patch //= hybrid_stride(self.resnet_blocks)
    x = PatchEmbedding(patch, self.width, dtype, self.patch_bias, name='embedding')(x)
    return self.numerics.layer_norm('patch_norm')(x) if self.patch_norm else x

  def encode(self, x: Array, deterministic: bool, examples: Array | None = None) -> Array:
    """Patch embeddings (B, H/P, W/P, D) -> encoded tokens (B, N, D), the prefix tokens first.

    With position embeddings that do not depend on the grid, (B, N, D) will do. What is dropped of
    an example depends on its number in `examples`, (B,); by default on its place in the batch.
    """
    positions = Positions(self.position_embedding, grid=x.shape[1:-1])
    x = x.reshape(x.shape[0], math.prod(positions.grid), self.width)
    prefix = [
      jnp.tile(self.learned_tokens(name), (x.shape[0], 1, 1)).astype(x.dtype)
      for name in self.prefix_names
    ]
    x = jnp.concatenate([*prefix, x], axis=1)
    registers = self.learned_tokens('registers', self.registers) if self.registers else None
    block_fields: dict[str, Any] = dict(
      mlp_dim=self.mlp_dim,
      num_heads=self.num_heads,
      dropout_rate=self.dropout_rate,
      attention_dropout_rate=self.attention_dropout_rate,
      stochastic_depth_rate=self.stochastic_depth_rate,
      numerics=self.numerics,
      attention=self.attention,
    )
    if self.axial:
      block_fields['grid'] = positions.grid
    else:
      block_fields |= dict(
        layer_scale=self.layer_scale, mlp=self.mlp, bias=self.block_bias, qkv_bias=self.qkv_bias
      )
    if self.rotary is not None:
      block_fields['rotation'] = Rotation(self.rotary, positions.grid, self.num_prefix_tokens)
    is_random = self.dropout_rate or self.attention_dropout_rate or self.stochastic_depth_rate
    is_random = is_random and not deterministic
    keys = example_keys(self.make_rng('dropout'), examples, x.shape[0]) if is_random else None
    return Encoder(
      self.depth,
      AxialBlock if self.axial else EncoderBlock,
      block_fields,
      positions,
      self.position_entry,
      self.pre_norm,
      self.final_norm == 'encoder',
      self.dropout_rate,
      self.numerics,
      self.remat,
      self.scan_blocks,
      self.constrain,
      name='Transformer',
    )(x, keys, registers)

  def learned_tokens(self, name: str, count: int = 1) -> Array:
    """A parameter (1, count, D), the same tokens for all images."""
    return self.param(name, nn.initializers.zeros, (1, count, self.width))

  @property
  def prefix_names(self) -> tuple[str, ...]:
    """The parameters of the tokens before the patches that have positions."""
    has_class_token = self.class_token or self.pool in ('token', 'token_gap', 'distilled')
    return (
      *(('cls',) if has_class_token else ()),
      *(('distillation',) if self.pool == 'distilled' else ()),
    )

  @property
  def norm(self) -> str:
    """The kind of its normalizations, a key of NORMS."""
    return self.numerics.norm

  @property
  def num_prefix_tokens(self) -> int:
    """How many tokens are before those of the patches."""
    return len(self.prefix_names) + self.registers

  def pool_tokens(self, x: Array) -> Array:
    """Encoded tokens (B, N, D) -> one feature vector an image, (B, D) float32.

    Those of pool `token_gap` are (B, 2 D), of `distilled` (B, 2, D).
    """

    def average() -> Array:
      return x[:, self.num_prefix_tokens :].mean(axis=1, dtype=jnp.float32)

    def attention() -> Array:
      return MAPHead(
        (self.pool_mlp_dim or self.mlp_dim) if self.pool_mlp else 0,
        self.pool_num_heads or self.num_heads,
        self.numerics,
        self.pool_attention,
        name='MAPHead_0',
      )(x)

    features = {
      'token': lambda: x[:, 0],
      'gap': average,
      'map': attention,
      'token_gap': lambda: jnp.concatenate([x[:, 0].astype(jnp.float32), average()], axis=-1),
      'distilled': lambda: x[:, :2],
    }[self.pool]()
    if self.final_norm == 'pooled':
      features = self.numerics.layer_norm('pool_norm')(features)
    return features.astype(jnp.float32)
