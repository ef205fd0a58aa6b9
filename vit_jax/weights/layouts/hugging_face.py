"""The layout of Hugging Face Transformers: Vision Transformers of several families, read.

`hugging_face_names.py` has the names of each family; `hugging_face_writer.py` writes them.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vit_jax.config import Preprocessing, height_width
from vit_jax.errors import UserError
from vit_jax.weights.formats.lazy_tensor import METADATA_KEY, Tensor
from vit_jax.weights.layouts import aimv2, hugging_face_names, image_processor, pytorch
from vit_jax.weights.layouts.hugging_face_names import (
  AIMV2,
  CLIP,
  DEIT,
  DINOV2,
  DINOV2_WITH_REGISTERS,
  DINOV3,
  MSN,
  SIGLIP,
  VIT,
  Names,
)
from vit_jax.weights.layouts.released import POSITIONS
from vit_jax.weights.metadata import ModelMetadata, UnsupportedError

# Leaves that PyTorch calls neither weight nor bias.
_LEAVES = {r'\.(lambda1|gamma)$': '.weight', r'\.in_proj_(weight|bias)$': r'.in_proj.\1'}
_CONFIG_DEFAULTS = dict(
  hidden_act='gelu', pooler_act='tanh', image_size=224, num_channels=3, num_attention_heads=12
)
# Of a gated MLP, in config.json.
_GATED = ('use_gated_mlp', 'use_swiglu_ffn')
# Fields of config.json, and those of the model that they must agree with.
_SIZES = dict(
  hidden_size='width',
  num_hidden_layers='depth',
  patch_size='patch_size',
  intermediate_size='mlp_dim',
  num_register_tokens='registers',
)
# Tensors that are no part of the image tower.
_UNUSED = re.compile(
  r'(text_(model|projection|encoder|embeds)|logit_(scale|bias)|temperature|decoder)(\.|$)|'
  r'(.*\.)?embeddings\.(mask_token|position_ids)$|(vision_encoder\.)?mask_token$'
)
_TEXT_TOWER = re.compile(r'text_(model|encoder)\.')


# --- reading tensors ------------------------------------------------------------------------


def detect(names: Collection[str]) -> tuple[str, list[str]] | None:
  """('Hugging Face', prefixes of all names, best first) for names of Transformers, else None."""
  for kind in hugging_face_names.ALL:
    for markers in kind.markers:
      for backbone in dict.fromkeys((kind.backbone, '')):
        prefixes = [
          prefix
          for prefix in pytorch.find_prefixes(names, backbone + markers[0])
          if _has_markers(names, kind, prefix)
        ]
        if prefixes:
          return 'Hugging Face', prefixes
  return None


def _has_markers(names: Collection[str], kind: Names, prefix: str = '') -> bool:
  def has(name: str) -> bool:
    return prefix + name in names or prefix + kind.backbone + name in names

  return any(all(map(has, markers)) for markers in kind.markers)


def _kind(names: Collection[str]) -> Names:
  """The table of the tensors of these names, which `detect` has recognized."""
  return next(kind for kind in hugging_face_names.ALL if _has_markers(names, kind))


def _is_classifier(names: Collection[str], kind: Names) -> bool:
  """Whether the head is one that Transformers has put on a tower of images and text."""
  return kind in (CLIP, SIGLIP) and 'classifier.weight' in names


def complete(
  metadata: ModelMetadata, tensors: Mapping[str, Tensor], source: str
) -> tuple[ModelMetadata, tuple[str, ...], tuple[str, ...]]:
  """What the tensors tell besides config.json.

  Args:
    metadata: of `read_config`, or without any.
    tensors: {name in Transformers: tensor}.
    source: the name of the file, for error messages.

  Returns:
    The metadata, the names of tensors that the model does not use, and notes on them.

  Raises:
    UserError: if config.json describes another family than that of the tensors.
  """
  kind = _kind(tensors)
  patches = [x for n, x in tensors.items() if n.endswith('embeddings.patch_embedding.weight')]
  if kind is SIGLIP and any(len(x.shape) == 2 for x in patches):
    raise UserError(
      f'{source} holds a SigLIP 2 with NaFlex, whose patches are of images of any aspect ratio; '
      'vit_jax does not support that.'
    )
  stated = _family(metadata.family) or kind
  if (stated.parameters, stated.block) != (kind.parameters, kind.block):
    raise UserError(
      f'{source} has the tensors of {kind.family}, but its config.json describes '
      f'{stated.family}; put the config.json of these tensors beside them.'
    )
  unused, notes = [n for n, x in tensors.items() if _UNUSED.match(n) or _are_no_registers(n, x)], ()
  pool, final_norm = metadata.pool, metadata.final_norm
  if _is_classifier(tensors, kind):
    pool, final_norm = 'gap', 'none' if kind is CLIP else 'encoder'
    other = 'post_layernorm.' if kind is CLIP else 'head.'
    unused += [n for n in tensors if n.removeprefix(kind.backbone).startswith(other)]
  if any(map(_TEXT_TOWER.match, tensors)):
    notes += (
      'the image tower was taken; the text tower is left out, which vit_jax does not support',
    )
  if 'visual_projection.weight' in tensors:
    notes += ('the head gives the embedding before its L2 normalization, not classes',)
    num_outputs = tensors['visual_projection.weight'].shape[0]
    labels = metadata.labels or [f'embedding {i}' for i in range(num_outputs)]
    metadata = dataclasses.replace(metadata, labels=labels)
  license = metadata.license or stated.license
  completed = dataclasses.replace(
    metadata,
    family=stated.family,
    rotary=metadata.rotary or stated.rotary,
    pool=pool,
    final_norm=final_norm,
    position_resize=metadata.position_resize or stated.position_resize,
    license=license,
  )
  return completed, tuple(unused), notes


def _are_no_registers(name: str, tensor: Tensor) -> bool:
  """Whether a tensor is that of the registers of a DINOv3 without any."""
  return name.endswith('embeddings.register_tokens') and 0 in tensor.shape


def _family(name: str | None) -> Names | None:
  return next((kind for kind in hugging_face_names.ALL if kind.family == name), None)


def to_linen(
  tensors: Mapping[str, Tensor], num_heads: int | None, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
  """Translates tensors, without the unused ones of `complete`, as `timm.to_linen` does."""
  kind = _kind(tensors)
  inside = {}
  for name, tensor in tensors.items():
    short = name.removeprefix(kind.backbone)
    for pattern, replacement in (*kind.renamed.items(), *_LEAVES.items()):
      short = re.sub(pattern, replacement, short)
    inside[short] = _with_batch(short, tensor, kind)
  blocks = re.compile(re.escape(kind.block_prefix) + r'(\d+)\.')

  def find_modules(layer: str) -> str | None:
    if match := blocks.match(layer):
      block = {**kind.block, **kind.gated, **kind.original}
      return pytorch.block_layers(kind.block_prefix, block, int(match[1])).get(layer)
    return kind.layers.get(layer)

  if num_heads is None and kind.head_width and 'embeddings.patch_embed.bias' in inside:
    num_heads = inside['embeddings.patch_embed.bias'].shape[0] // kind.head_width or None
  linen = pytorch.to_linen(inside, kind.parameters, find_modules, num_heads, 'Hugging Face', source)
  if kind is DEIT and 'head_distillation/kernel' not in linen:
    linen = _with_register(linen)
  if kind is AIMV2:
    linen = aimv2.complete(linen)
  else:
    layers = {'layers': pytorch.LAYERS_OF_BLOCK} if kind is DINOV3 else {}
    linen = pytorch.with_biases(linen, source, **layers)
    pytorch.check_biases(linen, source)
  return linen, ()


def _with_batch(name: str, tensor: Tensor, kind: Names) -> Tensor:
  """CLIP and SigLIP store positions as (N, D) and the class token as (D,)."""
  missing = 3 - len(tensor.shape) if name in kind.flat else 0
  if missing <= 0:
    return tensor
  shape = (*(1,) * missing, *tensor.shape)
  return tensor.map(shape, lambda x: x.reshape(shape))


def _with_register(linen: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """A distillation token that no head reads is a register, once its position is added to it."""
  linen = dict(linen)
  token, positions = linen.pop('distillation'), linen[POSITIONS]
  batch, count, width = positions.shape
  linen['registers'] = token.map(token.shape, lambda x: x + positions.read()[:, 1:2])
  linen[POSITIONS] = positions.map(
    (batch, count - 1, width), lambda x: np.concatenate([x[:, :1], x[:, 2:]], axis=1)
  )
  return linen


# --- reading configs ------------------------------------------------------------------------


def is_config(config: Mapping[str, Any]) -> bool:
  """Whether a config.json is one of Transformers."""
  return 'model_type' in config or 'architectures' in config


def defaults(names: Collection[str]) -> ModelMetadata:
  """The metadata of the family of these tensors, for those that have no config.json."""
  return read_config({'model_type': _kind(names).model_types[0]}, {})


def read_config(config: Mapping[str, Any], processor: Mapping[str, Any]) -> ModelMetadata:
  """The metadata in config.json and preprocessor_config.json, within `damage_explained`.

  Raises:
    UnsupportedError: for another model, or a processor that cannot be followed.
  """
  model_type = config.get('model_type', 'vit')
  if model_type in ('siglip2', 'siglip2_vision_model'):
    raise UnsupportedError('NaFlex, the images of any aspect ratio of SigLIP 2')
  kind = next((kind for kind in hugging_face_names.ALL if model_type in kind.model_types), None)
  if kind is None:
    raise UnsupportedError(f'a model of the type {model_type}')
  tower = config.get('vision_config') or {}
  fields = {**_CONFIG_DEFAULTS, **kind.defaults, **config, **tower}
  _check_activations(fields)
  size, channels = fields['image_size'], fields['num_channels']
  image_size = height_width(size if isinstance(size, int) else tuple(size))
  preprocessing, mean, std, notes = _read_processor(processor, kind, image_size, channels)
  ours = config.get(METADATA_KEY) or {}
  if ours.get('preprocessing'):
    written = ModelMetadata.from_json(ours).preprocessing or Preprocessing()
    content = image_processor.make_config(image_size, written, channels)
    if image_processor.read_preprocessing(content, image_size)[0] == preprocessing:
      preprocessing = written  # nobody has changed the processor
  multi_label = config.get('problem_type') == 'multi_label_classification'
  stated = {name: tower.get(key, config.get(key)) for key, name in _SIZES.items()}
  if kind in (DINOV2, DINOV2_WITH_REGISTERS, DINOV3):
    stated['mlp'] = 'swiglu' if any(map(fields.get, _GATED)) else 'gelu'
  return ModelMetadata(
    image_size=image_size,
    preprocessing=preprocessing,
    loss='sigmoid' if multi_label else 'softmax',
    labels=_read_labels(config),
    num_heads=fields['num_attention_heads'],
    gelu=pytorch.GELUS.get(fields['hidden_act'], 'exact'),
    rotary=kind.rotary and dataclasses.replace(kind.rotary, base=float(fields['rope_theta'])),
    layer_norm_epsilon=float(fields.get('rms_norm_eps', fields['layer_norm_eps'])),
    dtype=ours.get('dtype'),
    position_resize=ours.get('position_resize') or kind.position_resize,
    license=ours.get('license') or kind.license,
    mean=mean,
    std=std,
    family=kind.family,
    sizes={name: value for name, value in stated.items() if type(value) in (int, str)},
    notes=notes,
  )


def _check_activations(fields: Mapping[str, Any]) -> None:
  """Raises `UnsupportedError` for an activation that a model cannot have."""
  activation = fields['hidden_act']
  if fields.get('use_gated_mlp') and activation != 'silu':
    raise UnsupportedError(f'a gated MLP with the activation {activation}')
  if not any(map(fields.get, _GATED)):  # DINOv2's is silu, whatever the config says
    pytorch.check_activation(activation)
  if fields['pooler_act'] != 'tanh':
    raise UnsupportedError(f'a pooler with the activation {fields["pooler_act"]}')


def _read_labels(config: Mapping[str, Any]) -> list[str] | None:
  id2label = config.get('id2label') or {}
  labels = [id2label[str(i)] for i in range(len(id2label))]
  return None if labels == placeholder_labels(len(labels)) else labels


def placeholder_labels(num_classes: int) -> list[str]:
  """What Transformers writes for a model without class names."""
  return [f'LABEL_{i}' for i in range(num_classes)]


def _read_processor(
  processor: Mapping[str, Any], kind: Names, image_size: tuple[int, int], channels: int
) -> tuple[Preprocessing, tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
  """(preprocessing, mean, std, notes); those of the published models if there is no processor."""
  if not processor:
    assumed = (
      "ViTImageProcessor's defaults are" if kind in (VIT, MSN) else f'that of {kind.family} is'
    )
    note = f'there is no preprocessor_config.json: {assumed} assumed'
    mean, std = (x if channels == 3 else (0.5,) * channels for x in (kind.mean, kind.std))
    return kind.preprocessing, mean, std, (note,)
  preprocessing, size = image_processor.read_preprocessing(processor, image_size)
  mean, std = image_processor.read_normalization(processor, channels)
  is_other = size != image_size
  note = f'its image processor makes images of {size}, it takes {image_size}'
  return preprocessing, mean, std, (note,) if is_other else ()
