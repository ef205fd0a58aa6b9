"""The names of Vision Transformers in Transformers, a table for each of its model types.

A table maps the name of a layer to its linen modules, as pytorch.py does. Leaves that are neither
'weight' nor 'bias' are called so first: 'lambda1' of a LayerScale is its weight.

The names are those in files; Transformers 5 calls some of them otherwise in memory.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vit_jax.config import Preprocessing
from vit_jax.models.rotary import ROTARIES, Rotary
from vit_jax.weights import licenses
from vit_jax.weights.layouts.image_processor import CLIP_PIXELS, IMAGENET_PIXELS
from vit_jax.weights.layouts.released import ATTENTION, POSITIONS
from vit_jax.weights.metadata import HALF


@dataclasses.dataclass(frozen=True)
class Names:
  """The layers of one kind of model, and what its config.json may leave out.

  Attributes:
    family: its name for messages: 'DINOv2'.
    model_types: of config.json.
    backbone: what precedes the names of the backbone where there is a head: 'vit.'.
    markers: alternatives; a model of this kind has all tensors of one of them.
    parameters: name in Transformers: the linen parameter, of the same values.
    layers: name of a layer: its linen modules.
    block_prefix: of the layers in a block: 'encoder.layer.'.
    block: name of a layer in a block: its linen modules.
    original: further layers in a block, in files of the original code; they are not written.
    gated: the layers of a gated MLP, in place of those in `block` whose names begin with 'mlp.'.
    renamed: names in state dicts of Transformers 5, as patterns, and those in files.
    flat: the parameters without a dimension of the batch.
    defaults: of the fields of config.json.
    head_width: of the published models; 0: that of the published ViT of the same width.
    rotary: of queries and keys, with the `rope_theta` of config.json as its base.
    preprocessing, mean, std: of the published models.
    position_resize: how Transformers resizes position embeddings.
    license: of the published weights, where it asks to be named; None: it does not.
  """

  family: str
  model_types: tuple[str, ...]
  backbone: str
  markers: tuple[tuple[str, ...], ...]
  parameters: Mapping[str, str]
  layers: Mapping[str, str]
  block_prefix: str
  block: Mapping[str, str]
  original: Mapping[str, str] = dataclasses.field(default_factory=dict)
  gated: Mapping[str, str] = dataclasses.field(default_factory=dict)
  renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  flat: tuple[str, ...] = ()
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  head_width: int = 0
  rotary: Rotary | None = None
  preprocessing: Preprocessing = Preprocessing('squash', 1.0, rounding='transformers')
  mean: tuple[float, ...] = HALF
  std: tuple[float, ...] = HALF
  position_resize: str = 'bicubic'
  license: str | None = None


_EMBEDDINGS = {'embeddings.cls_token': 'cls', 'embeddings.position_embeddings': POSITIONS}
_ATTENTION_OF_BERT = {
  'attention.attention.query': f'{ATTENTION}/query',
  'attention.attention.key': f'{ATTENTION}/key',
  'attention.attention.value': f'{ATTENTION}/value',
  'attention.output.dense': f'{ATTENTION}/out',
}
_LAYERS = {
  'embeddings.patch_embeddings.projection': 'embedding',
  'layernorm': 'Transformer/encoder_norm',
  'classifier': 'head',
}
_BLOCK = {
  'layernorm_before': 'LayerNorm_0',
  'layernorm_after': 'LayerNorm_1',
  **_ATTENTION_OF_BERT,
  'intermediate.dense': 'MlpBlock_0/Dense_0',
  'output.dense': 'MlpBlock_0/Dense_1',
}
_DINO_BLOCK = {
  'norm1': 'LayerNorm_0',
  'norm2': 'LayerNorm_1',
  'layer_scale1': 'LayerScale_0',
  'layer_scale2': 'LayerScale_1',
}

_RENAMED_ATTENTION = {
  r'\.attention\.q_proj\.': '.attention.attention.query.',
  r'\.attention\.k_proj\.': '.attention.attention.key.',
  r'\.attention\.v_proj\.': '.attention.attention.value.',
  r'\.attention\.o_proj\.': '.attention.output.dense.',
}
_RENAMED = {
  **_RENAMED_ATTENTION,
  r'^layers\.': 'encoder.layer.',
  r'\.mlp\.fc1\.': '.intermediate.dense.',
  r'\.mlp\.fc2\.': '.output.dense.',
}


VIT = Names(
  family='ViT',
  model_types=('vit',),
  backbone='vit.',
  markers=(('encoder.layer.0.layernorm_before.weight',), ('layers.0.layernorm_before.weight',)),
  parameters=_EMBEDDINGS,
  layers=_LAYERS | {'pooler.dense': 'pre_logits'},
  block_prefix='encoder.layer.',
  block=_BLOCK,
  renamed=_RENAMED,
  defaults={'layer_norm_eps': 1e-12},
  position_resize='corners',  # of the original code
)
MSN = dataclasses.replace(
  VIT, family='ViT MSN', model_types=('vit_msn',), position_resize='bicubic'
)
MAE = dataclasses.replace(
  VIT,
  family='MAE',
  model_types=('vit_mae',),
  markers=tuple((*names, 'decoder.decoder_embed.weight') for names in VIT.markers),
  **IMAGENET_PIXELS,
  position_resize='bicubic',
  license=licenses.not_commercial('MAE'),
)
DEIT = dataclasses.replace(
  VIT,
  family='DeiT',
  model_types=('deit',),
  backbone='deit.',
  markers=(('embeddings.distillation_token',),),
  parameters=_EMBEDDINGS | {'embeddings.distillation_token': 'distillation'},
  layers={**VIT.layers, 'cls_classifier': 'head', 'distillation_classifier': 'head_distillation'},
  preprocessing=Preprocessing('squash', 224 / 256, 'bicubic', rounding='transformers'),
  **IMAGENET_PIXELS,
  position_resize='bicubic',
)
DINOV2 = Names(
  family='DINOv2',
  model_types=('dinov2',),
  backbone='dinov2.',
  markers=(('encoder.layer.0.layer_scale1.lambda1',),),
  parameters=_EMBEDDINGS,
  layers=_LAYERS,
  block_prefix='encoder.layer.',
  block={
    **_DINO_BLOCK,
    **_ATTENTION_OF_BERT,
    'mlp.fc1': 'MlpBlock_0/Dense_0',
    'mlp.fc2': 'MlpBlock_0/Dense_1',
  },
  gated={
    'mlp.weights_in': 'MlpBlock_0/gate MlpBlock_0/Dense_0',
    'mlp.weights_out': 'MlpBlock_0/Dense_1',
  },
  renamed=_RENAMED_ATTENTION,
  defaults={'layer_norm_eps': 1e-6},
  preprocessing=Preprocessing('crop', 224 / 256, 'bicubic', rounding='transformers'),
  **IMAGENET_PIXELS,
)
DINOV2_WITH_REGISTERS = dataclasses.replace(
  DINOV2,
  family='DINOv2 with registers',
  model_types=('dinov2_with_registers',),
  backbone='dinov2_with_registers.',
  markers=(('encoder.layer.0.layer_scale1.lambda1', 'embeddings.register_tokens'),),
  parameters=_EMBEDDINGS | {'embeddings.register_tokens': 'registers'},
  position_resize='bicubic_antialias',
)
# Files have the names of the original code (google-deepmind/tips, pytorch/image_encoder.py), except
# that Transformers calls its MLP otherwise. The register is a second class token.
TIPS = Names(
  family='TIPS',
  model_types=('tipsv2_vision_model', 'tipsv2'),
  backbone='vision_encoder.',
  markers=(('blocks.0.ls1.gamma', 'register_tokens'),),
  parameters={'cls_token': 'cls', 'pos_embed': POSITIONS, 'register_tokens': 'registers'},
  layers={'patch_embed.proj': 'embedding', 'norm': 'Transformer/encoder_norm'},
  block_prefix='blocks.',
  block={
    'norm1': 'LayerNorm_0',
    'norm2': 'LayerNorm_1',
    'attn.qkv': ' '.join(f'{ATTENTION}/{name}' for name in ('query', 'key', 'value')),
    'attn.proj': f'{ATTENTION}/out',
    'ls1': 'LayerScale_0',
    'ls2': 'LayerScale_1',
    'mlp.c_fc': 'MlpBlock_0/Dense_0',
    'mlp.c_proj': 'MlpBlock_0/Dense_1',
  },
  gated={'mlp.w12': 'MlpBlock_0/gate MlpBlock_0/Dense_0', 'mlp.w3': 'MlpBlock_0/Dense_1'},
  renamed={r'\.mlp\.fc1\.': '.mlp.c_fc.', r'\.mlp\.fc2\.': '.mlp.c_proj.'},
  defaults={'layer_norm_eps': 1e-6, 'image_size': 448},
  mean=(0.0, 0.0, 0.0),
  std=(1.0, 1.0, 1.0),
  position_resize='bilinear_antialias',
)
DINOV3 = Names(
  family='DINOv3',
  model_types=('dinov3_vit',),
  backbone='',
  markers=tuple(
    (f'{prefix}layer.0.layer_scale1.lambda1', 'embeddings.cls_token') for prefix in ('', 'model.')
  ),
  parameters={'embeddings.cls_token': 'cls', 'embeddings.register_tokens': 'registers'},
  layers={'embeddings.patch_embeddings': 'embedding', 'norm': 'Transformer/encoder_norm'},
  block_prefix='layer.',
  block={
    **_DINO_BLOCK,
    'attention.q_proj': f'{ATTENTION}/query',
    'attention.k_proj': f'{ATTENTION}/key',
    'attention.v_proj': f'{ATTENTION}/value',
    'attention.o_proj': f'{ATTENTION}/out',
    'mlp.gate_proj': 'MlpBlock_0/gate',
    'mlp.up_proj': 'MlpBlock_0/Dense_0',
    'mlp.down_proj': 'MlpBlock_0/Dense_1',
  },
  renamed={r'^model\.layer\.': 'layer.'},
  defaults={'layer_norm_eps': 1e-5, 'num_attention_heads': 6, 'rope_theta': 100.0},
  rotary=ROTARIES['dinov3'],
  **IMAGENET_PIXELS,
  license=licenses.DINOV3,
)
_TOWER_BLOCK = {
  'layer_norm1': 'LayerNorm_0',
  'layer_norm2': 'LayerNorm_1',
  'self_attn.q_proj': f'{ATTENTION}/query',
  'self_attn.k_proj': f'{ATTENTION}/key',
  'self_attn.v_proj': f'{ATTENTION}/value',
  'self_attn.out_proj': f'{ATTENTION}/out',
  'mlp.fc1': 'MlpBlock_0/Dense_0',
  'mlp.fc2': 'MlpBlock_0/Dense_1',
}
SIGLIP = Names(
  family='SigLIP',
  model_types=('siglip_vision_model', 'siglip'),
  backbone='vision_model.',
  markers=(('encoder.layers.0.layer_norm1.weight', 'embeddings.position_embedding.weight'),),
  parameters={'embeddings.position_embedding.weight': POSITIONS, 'head.probe': 'MAPHead_0/probe'},
  layers={
    'embeddings.patch_embedding': 'embedding',
    'post_layernorm': 'Transformer/encoder_norm',
    'head.attention.in_proj': ' '.join(
      f'MAPHead_0/{ATTENTION}/{name}' for name in ('query', 'key', 'value')
    ),
    'head.attention.out_proj': f'MAPHead_0/{ATTENTION}/out',
    'head.layernorm': 'MAPHead_0/LayerNorm_0',
    'head.mlp.fc1': 'MAPHead_0/MlpBlock_0/Dense_0',
    'head.mlp.fc2': 'MAPHead_0/MlpBlock_0/Dense_1',
    'classifier': 'head',
  },
  block_prefix='encoder.layers.',
  block=_TOWER_BLOCK,
  flat=('embeddings.position_embedding.weight',),
  defaults={'layer_norm_eps': 1e-6, 'hidden_act': 'gelu_pytorch_tanh'},
  preprocessing=Preprocessing('squash', 1.0, 'bicubic', rounding='transformers'),
)
CLIP = Names(
  family='CLIP',
  model_types=('clip_vision_model', 'clip'),
  backbone='vision_model.',
  markers=(('embeddings.class_embedding', 'pre_layrnorm.weight'),),
  parameters={
    'embeddings.class_embedding': 'cls',
    'embeddings.position_embedding.weight': POSITIONS,
  },
  layers={
    'embeddings.patch_embedding': 'embedding',
    'pre_layrnorm': 'Transformer/pre_norm',
    'post_layernorm': 'Transformer/encoder_norm',
    'visual_projection': 'head',
    'classifier': 'head',
  },
  block_prefix='encoder.layers.',
  block=_TOWER_BLOCK,
  flat=('embeddings.class_embedding', 'embeddings.position_embedding.weight'),
  defaults={'layer_norm_eps': 1e-5, 'hidden_act': 'quick_gelu'},
  preprocessing=Preprocessing('crop', 1.0, 'bicubic', rounding='transformers'),
  **CLIP_PIXELS,
)
AIMV2 = Names(
  family='AIMv2',
  model_types=('aimv2_vision_model', 'aimv2'),
  backbone='vision_model.',
  markers=(
    ('embeddings.patch_embed.weight', 'encoder.layers.0.rms_norm1.weight'),
    ('preprocessor.patchifier.proj.weight', 'trunk.blocks.0.norm_1.weight'),  # apple/ml-aim
  ),
  parameters={
    'embeddings.position_embedding.weight': POSITIONS,
    'head.cls_token': 'MAPHead_0/probe',
  },
  layers={
    'embeddings.patch_embed': 'embedding',
    'embeddings.rms_norm': 'patch_norm',
    'rms_norm': 'Transformer/encoder_norm',
    'head.k_proj': f'MAPHead_0/{ATTENTION}/key',
    'head.v_proj': f'MAPHead_0/{ATTENTION}/value',
    'head.output_proj': f'MAPHead_0/{ATTENTION}/out',
    'visual_projection': 'head',
  },
  block_prefix='encoder.layers.',
  block={
    'rms_norm1': 'RMSNorm_0',
    'rms_norm2': 'RMSNorm_1',
    'attention.q_proj': f'{ATTENTION}/query',
    'attention.k_proj': f'{ATTENTION}/key',
    'attention.v_proj': f'{ATTENTION}/value',
    'attention.out_proj': f'{ATTENTION}/out',
    'ffn.gate_proj': 'MlpBlock_0/gate',
    'ffn.up_proj': 'MlpBlock_0/Dense_0',
    'ffn.down_proj': 'MlpBlock_0/Dense_1',
  },
  original={'attn.qkv': ' '.join(f'{ATTENTION}/{name}' for name in ('query', 'key', 'value'))},
  renamed={
    r'^preprocessor\.patchifier\.proj\.': 'embeddings.patch_embed.',
    r'^preprocessor\.patchifier\.norm\.': 'embeddings.rms_norm.',
    r'^preprocessor\.pos_embed$': 'embeddings.position_embedding.weight',
    r'^trunk\.post_trunk_norm\.': 'rms_norm.',
    r'^trunk\.blocks\.': 'encoder.layers.',
    r'\.norm_([12])\.': r'.rms_norm\1.',
    r'\.attn\.proj\.': '.attention.out_proj.',
    r'\.mlp\.fc1\.': '.ffn.gate_proj.',
    r'\.mlp\.fc2\.': '.ffn.down_proj.',
    r'\.mlp\.fc3\.': '.ffn.up_proj.',
  },
  flat=('embeddings.position_embedding.weight',),
  defaults={
    'layer_norm_eps': 1e-5,
    'hidden_act': 'silu',
    'use_gated_mlp': True,
    'num_attention_heads': 8,
  },
  head_width=128,
  preprocessing=Preprocessing('crop', 1.0, 'bicubic', rounding='transformers'),
  **CLIP_PIXELS,
  position_resize='bicubic_antialias',  # of timm; Transformers resizes none
)
METACLIP_2 = dataclasses.replace(
  CLIP,
  family='MetaCLIP 2',
  model_types=('metaclip_2_vision_model', 'metaclip_2'),
  license=licenses.not_commercial('MetaCLIP 2'),
)
# Those with more markers first; the last two differ from CLIP and ViT in their configs alone.
ALL = (
  *(CLIP, SIGLIP, TIPS, AIMV2, DINOV2_WITH_REGISTERS, DINOV2, DINOV3, DEIT, MAE, VIT),
  *(METACLIP_2, MSN),
)
