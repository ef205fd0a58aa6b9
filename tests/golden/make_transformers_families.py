"""Tiny random models of the families of Transformers, and what its modules make of images.

`python -m tests.golden.make_transformers_families` writes `families/` beside this file; it needs
PyTorch and Transformers.
"""

import dataclasses
import pathlib
import shutil
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

SIZE, OTHER_SIZE = (28, 28), (21, 35)  # (height, width) in pixels
_SIZES = dict(
  hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7
)
_MLP = dict(intermediate_size=40)
_DECODER = dict(
  decoder_hidden_size=16,
  decoder_num_hidden_layers=1,
  decoder_num_attention_heads=2,
  decoder_intermediate_size=16,
  mask_ratio=0.0,
)
_TEXT = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
_TEXT |= dict(vocab_size=64, bos_token_id=0, eos_token_id=1, projection_dim=8)


@dataclasses.dataclass(frozen=True)
class Family:
  """A module of Transformers.

  Attributes:
    written: the class that vit_jax writes it as.
    config: its fields; those of the tower.
    source: its class; '': `written`.
    whole: fields of the whole config, of which `config` is `vision_config`; None: there is none.
    is_identical: its file is written with the same tensors.
  """

  written: str
  config: Mapping[str, Any]
  source: str = ''
  whole: Mapping[str, Any] | None = None
  is_identical: bool = True


_LABELS = dict(num_labels=3)
_VIT = {**_SIZES, **_MLP}
_DINO = {**_SIZES, 'mlp_ratio': 2}
FAMILIES = {
  'ViTForImageClassification': Family('ViTForImageClassification', _VIT | _LABELS),
  'ViTModel': Family('ViTModel', _VIT),
  'ViTMSNModel': Family('ViTForImageClassification', _VIT, 'ViTMSNModel', is_identical=False),
  'MAE': Family('ViTForImageClassification', _VIT | _DECODER, 'ViTMAEModel', is_identical=False),
  'MAE with its decoder': Family(
    'ViTForImageClassification', _VIT | _DECODER, 'ViTMAEForPreTraining', is_identical=False
  ),
  'DeiT': Family('DeiTForImageClassification', _VIT | _LABELS, is_identical=False),
  'distilled DeiT': Family('DeiTForImageClassificationWithTeacher', _VIT | _LABELS),
  'DeiTModel': Family('DeiTModel', _VIT, is_identical=False),
  'DINOv2': Family('Dinov2Model', _DINO),
  'DINOv2 without biases of attention': Family('Dinov2Model', _DINO | dict(qkv_bias=False)),
  'DINOv2 with SwiGLU': Family('Dinov2Model', _DINO | dict(use_swiglu_ffn=True)),
  'DINOv2 with a head': Family('Dinov2ForImageClassification', _DINO | _LABELS),
  'DINOv2 with registers': Family('Dinov2WithRegistersModel', _DINO),
  'DINOv2 with registers and a head': Family(
    'Dinov2WithRegistersForImageClassification', _DINO | _LABELS
  ),
  'TIPSv2': Family('Tipsv2VisionModel', _DINO),
  'TIPSv2 with SwiGLU': Family('Tipsv2VisionModel', _DINO | dict(use_swiglu_ffn=True)),
  'TIPSv2 of a fractional MLP': Family('Tipsv2VisionModel', _DINO | dict(mlp_ratio=43 / 24)),
  'TIPSv2 and text': Family(
    'Tipsv2VisionModel',
    _DINO,
    'Tipsv2Model',
    dict(text_config=_TEXT | dict(hidden_size=24)),
    is_identical=False,
  ),
  'DINOv3': Family('DINOv3ViTModel', _VIT | dict(num_register_tokens=4)),
  'DINOv3 with SwiGLU': Family(
    'DINOv3ViTModel', _VIT | dict(num_register_tokens=4, use_gated_mlp=True, hidden_act='silu')
  ),
  'DINOv3 without biases': Family(
    'DINOv3ViTModel', _VIT | dict(query_bias=False, value_bias=False, rope_theta=50.0)
  ),
  'DINOv3 without any bias': Family(
    'DINOv3ViTModel',
    _VIT
    | dict(use_gated_mlp=True, hidden_act='silu')
    | {f'{name}_bias': False for name in ('query', 'value', 'proj', 'mlp')},
    is_identical=False,
  ),
  'SigLIP': Family('SiglipVisionModel', _VIT),
  'SigLIP without pooling': Family('SiglipVisionModel', _VIT | dict(vision_use_head=False)),
  'SigLIP with a head': Family(
    'SiglipForImageClassification', _VIT, whole=_LABELS, is_identical=False
  ),
  'SigLIP and text': Family('SiglipVisionModel', _VIT, 'SiglipModel', {}, is_identical=False),
  'CLIP': Family('CLIPVisionModelWithProjection', _VIT | dict(projection_dim=8)),
  'CLIP without projection': Family('CLIPVisionModel', _VIT),
  'CLIP with a head': Family('CLIPForImageClassification', _VIT, whole=_LABELS, is_identical=False),
  'CLIP and text': Family(
    'CLIPVisionModelWithProjection', _VIT, 'CLIPModel', dict(projection_dim=8), is_identical=False
  ),
  'AIMv2': Family('Aimv2VisionModel', _VIT),
  'AIMv2 without pooling': Family('Aimv2VisionModel', _VIT | dict(use_head=False)),
  'AIMv2 with biases': Family('Aimv2VisionModel', _VIT | dict(qkv_bias=True, mlp_bias=True)),
  'AIMv2 of native resolution': Family(
    'Aimv2VisionModel', _VIT | dict(is_native=True), is_identical=False
  ),
  'MetaCLIP 2': Family(
    'CLIPVisionModelWithProjection',
    _VIT | dict(projection_dim=8),
    'MetaClip2VisionModelWithProjection',
  ),
}
STORED = (  # one for each kind of architecture
  'MAE',
  'DeiT',
  'distilled DeiT',
  'DINOv2 with a head',
  'DINOv2 with SwiGLU',
  'DINOv2 with registers',
  'DINOv3',
  'DINOv3 with SwiGLU',
  'SigLIP',
  'SigLIP with a head',
  'CLIP',
  'CLIP with a head',
  'TIPSv2',
  'TIPSv2 with SwiGLU',
  'AIMv2',
  'AIMv2 of native resolution',
)


def build_module(name: str) -> Any:
  """A module with random weights, as large as trained ones."""
  import transformers

  from tests.torch_models import randomize

  family = FAMILIES[name]
  module_class = getattr(transformers, family.source or family.written)
  fields = dict(family.config)
  if family.whole is not None:
    fields = {'vision_config': fields, 'text_config': _TEXT, **family.whole}
  with warnings.catch_warnings(action='ignore'):
    return randomize(module_class(module_class.config_class(**fields)))


def images_of_family(size: tuple[int, int]) -> np.ndarray:
  """(2, *size, 3) in [-1, 1]."""
  return np.random.default_rng(1).uniform(-1, 1, (2, *size, 3)).astype(np.float32)


def outputs_of(module: Any, model: Any, images: np.ndarray) -> dict[str, np.ndarray]:
  """What a module makes of (B, H, W, 3) images in [-1, 1], resizing its position embeddings.

  Args:
    module: of Transformers.
    model: with the normalization of its pixels.
    images: (B, H, W, 3) float32.

  Returns:
    Those of 'tokens' (after the last LayerNorm), 'pooled' and 'logits' that it has.
  """
  import torch

  name, keywords = type(module).__name__, {}
  if model.pixel_mean:
    mean, std = np.float32(model.pixel_mean), np.float32(model.pixel_std)
    images = ((images + 1) / 2 - mean) / std
  if not name.startswith(('Dinov2', 'DINO', 'Tips', 'Aimv2')):
    keywords['interpolate_pos_encoding'] = True
  if name == 'ViTMAEForPreTraining':
    module, name = module.vit, 'ViTMAEModel'
  if name == 'ViTMAEModel':  # nothing is masked, and the patches keep their order
    patches = images.shape[1] * images.shape[2] // 49
    keywords['noise'] = torch.arange(patches).tile(len(images), 1)
  pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    if name in ('SiglipModel', 'CLIPModel', 'Tipsv2Model'):
      tower = module.vision_model(pixels, **keywords)
      output = dict(tower.items())
      if name == 'CLIPModel':
        output = {'image_embeds': module.visual_projection(tower.pooler_output)}
    else:
      output = module(pixels, **keywords)
    names = {'last_hidden_state': 'tokens', 'pooler_output': 'pooled'}
    names |= {'logits': 'logits', 'image_embeds': 'logits'}
    outputs = {names[n]: x for n, x in output.items() if n in names and x is not None}
    if 'CLIP' in name and 'tokens' in outputs or name.startswith('MetaClip2'):
      tower = getattr(module, 'vision_model', module)
      outputs['tokens'] = tower.post_layernorm(outputs['tokens'])
  return {n: x.numpy() for n, x in outputs.items()}


def main() -> None:
  """Writes the models and their outputs."""
  import vit_jax

  target = pathlib.Path(__file__).parent / 'families'
  shutil.rmtree(target, ignore_errors=True)
  outputs = {}
  for name in STORED:
    module, folder = build_module(name), target / name.replace(' ', '_')
    module.save_pretrained(folder)
    model = vit_jax.load(folder).model
    for size in (SIZE,) if name == 'AIMv2' else (SIZE, OTHER_SIZE):  # which takes no other one
      for output, x in outputs_of(module, model, images_of_family(size)).items():
        outputs[f'{name}/{"x".join(map(str, size))}/{output}'] = x
  np.savez_compressed(target / 'expected.npz', **outputs)


if __name__ == '__main__':
  main()
