"""The names of Vision Transformers in Transformers, a table for each of its model types.

A table maps the name of a layer to its linen modules, as pytorch.py does. Leaves that are neither
'weight' nor 'bias' are called so first: 'lambda1' of a LayerScale is its weight.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vit_jax.models.rotary import ROTARIES, Rotary
from vit_jax.weights.layouts.released import ATTENTION, POSITIONS

_QUERY_KEY_VALUE = f'{ATTENTION}/query {ATTENTION}/key {ATTENTION}/value'


@dataclasses.dataclass(frozen=True)
class Names:
  """The layers of one kind of model.

  Attributes:
    family: its name for messages: 'DINOv2'.
    model_types: of config.json, the one that is written first.
    backbone: what precedes the names of the backbone where there is a head: 'vit.'.
    classifier: the class of Transformers with a head.
    encoder: the class without one.
    markers: names of tensors, at least one of which only this kind has.
    parameters: name in Transformers: the linen parameter, of the same values.
    layers: name of a layer: its linen modules.
    block_prefix: of the layers in a block: 'encoder.layer.'.
    block: name of a layer in a block: its linen modules.
    ignored: tensors that are no part of the encoder, with the linen parameter of their shape; they
      are written as zeros.
    defaults: of the fields of config.json.
    rotary: of its queries and keys, with the `rope_theta` of config.json as its base.
  """

  family: str
  model_types: tuple[str, ...]
  backbone: str
  classifier: str
  encoder: str
  markers: tuple[str, ...]
  parameters: Mapping[str, str]
  layers: Mapping[str, str]
  block_prefix: str
  block: Mapping[str, str]
  ignored: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rotary: Rotary | None = None


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

VIT = Names(
  family='ViT',
  model_types=('vit', 'vit_msn', 'vit_mae'),
  backbone='vit.',
  classifier='ViTForImageClassification',
  encoder='ViTModel',
  markers=('encoder.layer.0.layernorm_before.weight', 'layers.0.layernorm_before.weight'),
  parameters=_EMBEDDINGS,
  layers=_LAYERS | {'pooler.dense': 'pre_logits'},
  block_prefix='encoder.layer.',
  block=_BLOCK,
  defaults={'layer_norm_eps': 1e-12},
)
DEIT = dataclasses.replace(
  VIT,
  family='DeiT',
  model_types=('deit',),
  backbone='deit.',
  classifier='DeiTForImageClassificationWithTeacher',
  encoder='DeiTModel',
  markers=('embeddings.distillation_token',),
  parameters=_EMBEDDINGS | {'embeddings.distillation_token': 'distillation'},
  layers=_LAYERS | {'cls_classifier': 'head', 'distillation_classifier': 'head_distillation'},
)
DINOV2 = Names(
  family='DINOv2',
  model_types=('dinov2', 'dinov2_with_registers'),
  backbone='dinov2.',
  classifier='Dinov2ForImageClassification',
  encoder='Dinov2Model',
  markers=('encoder.layer.0.layer_scale1.lambda1',),
  parameters=_EMBEDDINGS | {'embeddings.register_tokens': 'registers'},
  layers=_LAYERS,
  block_prefix='encoder.layer.',
  block={
    **_DINO_BLOCK,
    **_ATTENTION_OF_BERT,
    'mlp.fc1': 'MlpBlock_0/Dense_0',
    'mlp.fc2': 'MlpBlock_0/Dense_1',
    'mlp.weights_in': 'MlpBlock_0/gate MlpBlock_0/Dense_0',
    'mlp.weights_out': 'MlpBlock_0/Dense_1',
  },
  ignored={'embeddings.mask_token': (1,)},
  defaults={'layer_norm_eps': 1e-6},
)
DINOV3 = Names(
  family='DINOv3',
  model_types=('dinov3_vit',),
  backbone='',
  classifier='',
  encoder='DINOv3ViTModel',
  markers=('layer.0.layer_scale1.lambda1', 'model.layer.0.layer_scale1.lambda1'),
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
  ignored={'embeddings.mask_token': (1, 1)},
  defaults={'layer_norm_eps': 1e-5, 'num_attention_heads': 6, 'rope_theta': 100.0},
  rotary=ROTARIES['dinov3'],
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
  model_types=('siglip_vision_model', 'siglip', 'siglip2_vision_model', 'siglip2'),
  backbone='vision_model.',
  classifier='SiglipForImageClassification',
  encoder='SiglipVisionModel',
  markers=('head.probe', 'embeddings.position_embedding.weight'),
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
  defaults={'layer_norm_eps': 1e-6, 'hidden_act': 'gelu_pytorch_tanh'},
)
CLIP = Names(
  family='CLIP',
  model_types=('clip_vision_model', 'clip', 'metaclip_2'),
  backbone='vision_model.',
  classifier='CLIPForImageClassification',
  encoder='CLIPVisionModelWithProjection',
  markers=('embeddings.class_embedding',),
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
  defaults={'layer_norm_eps': 1e-5, 'hidden_act': 'quick_gelu'},
)
ALL = (CLIP, SIGLIP, DINOV2, DINOV3, DEIT, VIT)
