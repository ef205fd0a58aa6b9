"""timm's architectures: what the name of one says of a model (`timm_architectures.json`).

The file has, for each function of timm's vision_transformer.py, eva.py and deit.py (1.0.31) whose
model is supported, the arguments with which it calls a class, without those that only training
reads. In place of `norm_layer` it has the epsilon, 'eps', if that is not the default.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from vit_jax.errors import UserError
from vit_jax.models.rotary import Rotary
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.metadata import UnsupportedError

CLASSES = {  # 'class' in the file: the class in timm
  'vit': 'VisionTransformer',
  'distilled': 'VisionTransformerDistilled',
  'eva': 'Eva',
}
EPSILON = 1e-6  # of LayerNorm, timm/layers/norm.py; only the name of an architecture changes it
# Architectures whose other arguments can all be overridden in config.json, by (class, epsilon).
_OVERRIDABLE = {
  ('vit', EPSILON): 'vit_tiny_patch16_224',
  ('vit', 1e-5): 'vit_base_patch16_clip_224',
  ('distilled', EPSILON): 'deit_tiny_distilled_patch16_224',
  ('eva', EPSILON): 'eva02_tiny_patch14_224',
  ('eva', 1e-5): 'vit_small_patch16_dinov3',
}
EPSILONS = {epsilon for _, epsilon in _OVERRIDABLE}
# Those with a gated MLP or RMSNorm, which no argument of a VisionTransformer asks for, by (kind of
# normalization, epsilon).
_GATED = {('layer', EPSILON): 'vit_giant_patch14_dinov2', ('rms', 1e-5): 'aimv2_large_patch14_224'}


@functools.cache
def _read() -> dict[str, dict[str, Any]]:
  path = pathlib.Path(__file__).with_name('timm_architectures.json')
  return json.loads(path.read_text(encoding='utf-8'))


def arguments(architecture: str) -> dict[str, Any]:
  """The arguments that a name stands for, without the tag of its weights; {} if it is not known."""
  return dict(_read().get(architecture, {}))


def class_of(model: VisionTransformer) -> str:
  """The key of CLASSES that has such a model; only `Eva` has biases of queries but not of keys."""
  if model.pool == 'distilled':
    return 'distilled'
  sizes_of_pool = model.pool_num_heads or model.pool_mlp_dim
  is_eva = model.rotary is not None or model.mlp == 'swiglu_norm' or sizes_of_pool
  is_eva = is_eva or (model.pool == 'map' and model.num_prefix_tokens)  # others pool only patches
  is_plain = model.numerics.gelu == 'exact' and model.mlp == 'gelu'
  return 'eva' if is_eva or (is_plain and model.qkv_bias == 'query_value') else 'vit'


def closest(model: VisionTransformer, kind: str, image_size: tuple[int, int]) -> str:
  """timm's name for a model of a class, or for one that becomes it by arguments in config.json.

  An epsilon of LayerNorm that none of its names has is not kept.

  Raises:
    UserError: for one that other names have, but none for such a model.
  """
  epsilon = model.numerics.layer_norm_epsilon
  needs_gated = kind == 'vit' and model.mlp == 'swiglu'
  names = (
    {each: name for (norm, each), name in _GATED.items() if norm == model.norm}
    if needs_gated
    else {each: name for (of_kind, each), name in _OVERRIDABLE.items() if of_kind == kind}
  )
  if epsilon in EPSILONS - names.keys():
    part = 'distillation token' if kind == 'distilled' else 'SwiGLU'
    raise UserError(
      f'timm has no model with a {part} whose normalizations have the epsilon {epsilon:g}; write '
      'X.safetensors, or a vit_jax folder (--layout=model).'
    )
  wanted = _features(model)

  def score(item: tuple[str, dict[str, Any]]) -> tuple[int, int]:
    features = _features_of_arguments(item[1])
    differing = sum(features[name] != wanted[name] for name in wanted)
    return differing, abs(_image_side(item) - image_size[0])

  candidates = {
    name: each
    for name, each in _read().items()
    if (each.get('class'), each.get('eps', EPSILON)) == (kind, epsilon)
    and ('mlp_layer' in each) == needs_gated
  }
  default = names.get(epsilon, next(iter(names.values())))
  best = min(candidates.items(), key=score, default=(default, {}))
  has_size = best[1] and score(best)[0] == 0
  return best[0] if has_size else default


def _image_side(item: tuple[str, dict[str, Any]]) -> int:
  name, each = item
  end = name.rpartition('_')[2]
  return each.get('img_size') or (int(end) if end.isdigit() else 224)


def _features(model: VisionTransformer) -> dict[str, Any]:
  """What distinguishes timm's architectures of the same class and epsilon."""
  return {
    'sizes': (model.patch_size, model.width, model.depth, model.num_heads),
    'pool': {'distilled': 'token', 'token_gap': 'token'}.get(model.pool, model.pool),
    'registers': model.registers,
    'pre_norm': model.pre_norm,
    'layer_scale': bool(model.layer_scale),
    'rotary': model.rotary,
    'gelu': model.numerics.gelu if model.mlp == 'gelu' else 'exact',
    'mlp': model.mlp,
    'norm': model.norm,
  }


def _features_of_arguments(each: Mapping[str, Any]) -> dict[str, Any]:
  default_pool = 'avg' if each['class'] == 'eva' else 'token'
  names = {'quick_gelu': 'quick', 'gelu_tanh': 'tanh', None: 'exact'}
  gated = each.get('swiglu_mlp') or each.get('mlp_layer')
  return {
    'sizes': tuple(each.get(n, 16) for n in ('patch_size', 'embed_dim', 'depth', 'num_heads')),
    'pool': {'avg': 'gap'}.get(pool := each.get('global_pool', default_pool), pool),
    'registers': each.get('reg_tokens', each.get('num_reg_tokens', 0)),
    'pre_norm': each.get('pre_norm', each.get('use_pre_transformer_norm', False)),
    'layer_scale': bool(each.get('init_values')),
    'rotary': rotary(each),
    'gelu': names[each.get('act_layer')],
    'mlp': ('swiglu_norm' if each.get('scale_mlp') else 'swiglu') if gated else 'gelu',
    'norm': 'rms' if each.get('mlp_layer') == 'SwiGLU' else 'layer',  # AIMv2
  }


def rotary(each: Mapping[str, Any]) -> Rotary | None:
  """The rotation that arguments of timm's `Eva` ask for; None: none.

  Raises:
    UnsupportedError: for another kind.
  """
  if not each.get('use_rot_pos_emb'):
    return None
  kind, offset = each.get('rope_type') or 'cat', float(each.get('rope_grid_offset', 0))
  base = float(each.get('rope_temperature', 10_000))
  columns_first = each.get('rope_grid_indexing', 'ij') == 'xy'
  if kind not in ('cat', 'dinov3') or kind == 'dinov3' and (offset or columns_first):
    raise UnsupportedError(f'rotary position embeddings of the kind {kind}')
  neighbors = not each.get('rope_rotate_half', False)
  if kind == 'dinov3':
    return Rotary(base=base, neighbors=neighbors)
  grid = each.get('ref_feat_shape') or ()
  return Rotary(
    base=base,
    coordinates='index',
    offset=offset,
    reference_grid=(grid, grid) if isinstance(grid, int) else tuple(grid),
    columns_first=columns_first,
    neighbors=neighbors,
  )


def rotary_arguments(rule: Rotary | None) -> dict[str, Any]:
  """The inverse of `rotary`."""
  if rule is None:
    return {'use_rot_pos_emb': False}
  centered = rule.coordinates == 'centered'
  return {
    'use_rot_pos_emb': True,
    'rope_type': 'dinov3' if centered else 'cat',
    'rope_temperature': rule.base,
    'rope_grid_offset': rule.offset,
    'rope_grid_indexing': 'xy' if rule.columns_first else 'ij',
    'rope_rotate_half': not rule.neighbors,
    'ref_feat_shape': list(rule.reference_grid) or None,
  }
