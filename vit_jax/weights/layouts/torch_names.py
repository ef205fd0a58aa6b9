"""What timm and Transformers call the modules of a Vision Transformer, and what linen does."""

import re

ATTENTION = 'MultiHeadDotProductAttention_0'
LAYER_SCALE = re.compile(r'blocks\.(\d+)\.(?:ls([12])\.gamma|gamma_([12]))')
# (name in PyTorch without weight or bias, name of the module in linen)
TIMM = {
  'patch_embed.proj': 'embedding',
  'norm': 'Transformer/encoder_norm',
  'head': 'head',
  'attn_pool.norm': 'MAPHead_0/LayerNorm_0',
  'attn_pool.mlp.fc1': 'MAPHead_0/MlpBlock_0/Dense_0',
  'attn_pool.mlp.fc2': 'MAPHead_0/MlpBlock_0/Dense_1',
  'attn_pool.q': f'MAPHead_0/{ATTENTION}/query',
  'attn_pool.proj': f'MAPHead_0/{ATTENTION}/out',
  'patch_embed.backbone.conv': 'conv_root',
  'patch_embed.backbone.norm': 'gn_root',
  'patch_embed.backbone.stem.conv': 'conv_root',
  'patch_embed.backbone.stem.norm': 'gn_root',
}
TIMM_BLOCK = {
  'norm1': 'LayerNorm_0',
  'norm2': 'LayerNorm_1',
  'attn.proj': f'{ATTENTION}/out',
  'mlp.fc1': 'MlpBlock_0/Dense_0',
  'mlp.fc2': 'MlpBlock_0/Dense_1',
}
TIMM_UNIT = {
  **{f'conv{i}': f'conv{i}' for i in (1, 2, 3)},
  **{f'norm{i}': f'gn{i}' for i in (1, 2, 3)},
  'downsample.conv': 'conv_proj',
  'downsample.norm': 'gn_proj',
}
TIMM_BIT = {'stem.conv': 'root_block/conv_root', 'norm': 'norm-pre-head', 'head.fc': 'head'}
HUGGING_FACE = {
  'embeddings.patch_embeddings.projection': 'embedding',
  'layernorm': 'Transformer/encoder_norm',
  'classifier': 'head',
  'pooler.dense': 'pre_logits',
}
HUGGING_FACE_BLOCK = {
  'layernorm_before': 'LayerNorm_0',
  'layernorm_after': 'LayerNorm_1',
  'attention.attention.query': f'{ATTENTION}/query',
  'attention.attention.key': f'{ATTENTION}/key',
  'attention.attention.value': f'{ATTENTION}/value',
  'attention.output.dense': f'{ATTENTION}/out',
  'intermediate.dense': 'MlpBlock_0/Dense_0',
  'output.dense': 'MlpBlock_0/Dense_1',
}
# Transformers 5 calls the same layers by other names in memory, and so in its state dicts.
HUGGING_FACE_BLOCK_5 = {
  'layernorm_before': 'LayerNorm_0',
  'layernorm_after': 'LayerNorm_1',
  'attention.q_proj': f'{ATTENTION}/query',
  'attention.k_proj': f'{ATTENTION}/key',
  'attention.v_proj': f'{ATTENTION}/value',
  'attention.o_proj': f'{ATTENTION}/out',
  'mlp.fc1': 'MlpBlock_0/Dense_0',
  'mlp.fc2': 'MlpBlock_0/Dense_1',
}
