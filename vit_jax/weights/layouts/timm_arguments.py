"""The arguments with which timm's classes build a model, for `model_args` of config.json."""

from collections.abc import Mapping
from typing import Any

from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.layouts import pytorch
from vit_jax.weights.layouts.timm_architectures import rotary_arguments

_POOLS = {'token': 'token', 'distilled': 'token', 'gap': 'avg', 'map': 'map'}
_ACTIVATIONS = {'tanh': 'gelu_tanh', 'exact': 'gelu', 'quick': 'quick_gelu'}


def of_model(
  model: VisionTransformer, kind: str, image_size: tuple[int, int], state_dict: Mapping[str, Any]
) -> dict[str, Any]:
  """Every argument on which the numbers depend, whatever the architecture's own ones are.

  Args:
    model: what is written.
    kind: of `timm_architectures.CLASSES`.
    image_size: (height, width) in pixels.
    state_dict: of `timm.from_linen`, {name: array}.
  """
  is_packed = model.mlp == 'swiglu' and kind != 'eva' and model.norm != 'rms'  # in SwiGLUPacked
  arguments = {
    'img_size': list(image_size),
    'patch_size': model.patch_size,
    'in_chans': state_dict['patch_embed.proj.weight'].shape[1],
    'embed_dim': model.width,
    'depth': model.depth,
    'num_heads': model.num_heads,
    'mlp_ratio': pytorch.ratio_of_widths(model.width, model.mlp_dim * (2 if is_packed else 1)),
    'global_pool': _POOLS[model.pool],
    'class_token': 'cls' in model.prefix_names,
    'qkv_bias': any(
      '.attn.' in name and name.endswith(('qkv.bias', 'q_bias', 'q_proj.bias'))
      for name in state_dict
    ),
    'init_values': model.layer_scale or None,
    'no_embed_class': _lacks_prefix(model, image_size, state_dict),
  }
  of_class = _of_eva if kind == 'eva' else _of_vit
  return arguments | of_class(model, state_dict)


def _of_vit(model: VisionTransformer, state_dict: Mapping[str, Any]) -> dict[str, Any]:
  activation = {} if model.mlp == 'swiglu' else {'act_layer': _ACTIVATIONS[model.numerics.gelu]}
  return activation | {
    'pos_embed': 'learn' if 'pos_embed' in state_dict else 'none',
    'reg_tokens': model.registers,
    'pre_norm': model.pre_norm,
    'final_norm': model.final_norm != 'none',
    'fc_norm': model.final_norm == 'pooled',
  }


def _of_eva(model: VisionTransformer, state_dict: Mapping[str, Any]) -> dict[str, Any]:
  has_key_biases = 'blocks.0.attn.qkv.bias' in state_dict or (
    'blocks.0.attn.k_proj.bias' in state_dict
  )
  is_aligned = 'blocks.0.mlp.fc1_g.weight' in state_dict and model.mlp == 'swiglu'
  pool = {}
  if model.pool == 'map':
    pool = {
      'attn_pool_num_heads': model.pool_num_heads or model.num_heads,
      'attn_pool_mlp_ratio': pytorch.ratio_of_widths(
        model.width, model.pool_mlp_dim or model.mlp_dim
      ),
    }
  return {
    'attn_type': 'rope' if has_key_biases else 'eva',
    'qkv_fused': 'blocks.0.attn.qkv.weight' in state_dict,
    'swiglu_mlp': model.mlp != 'gelu',
    'swiglu_align_to': 1 if is_aligned else 0,  # another class, whose layers are not packed
    'scale_mlp': model.mlp == 'swiglu_norm',
    'num_reg_tokens': model.registers,
    'use_abs_pos_emb': 'pos_embed' in state_dict,
    'use_pre_transformer_norm': model.pre_norm,
    'use_post_transformer_norm': model.final_norm == 'encoder',
    'use_fc_norm': model.final_norm == 'pooled',
    **rotary_arguments(model.rotary),
    **pool,
  }


def _lacks_prefix(
  model: VisionTransformer, image_size: tuple[int, int], state_dict: Mapping[str, Any]
) -> bool:
  """Whether only patches have positions, not the tokens before them."""
  if 'pos_embed' not in state_dict or not model.num_prefix_tokens:
    return False
  rows, columns = (side // model.patch_size for side in image_size)
  return state_dict['pos_embed'].shape[1] == rows * columns
