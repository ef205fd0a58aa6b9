"""Models that are intact but not supported, recognized by the names of their tensors."""

import re
from collections.abc import Collection

_MAX_NAMES, _MAX_LENGTH = 2000, 200  # that are searched; blocks of the same shape count once
# What tells an AIMv2 in timm, which has no biases in its blocks.
_AIMV2 = {'patch_embed.norm.weight', 'blocks.0.norm1.weight', 'blocks.0.mlp.fc1_g.weight'}
_NOT_AIMV2 = {'blocks.0.norm1.bias', 'blocks.0.attn.proj.bias', 'patch_embed.norm.bias'}
# What a file holds: a pattern of a tensor's name. The first that matches names the file.
_FAMILIES = {
  # Transformers of other shapes.
  'a Vision Transformer with relative positions': r'^(blocks\.\d+\.attn|shared)(\.|_)rel_pos\.',
  'a SwinV2 Transformer': r'\.(cpb_mlp|continuous_position_bias_mlp|meta_mlp)\.',
  'a MaxViT or CoAtNet': r'attn_(block|grid)\.|\.rel_pos\.(relative_position_bias|rel_pos_mlp)|'
  r'rel_pos\.mlp\.',
  'a Swin Transformer': r'(^|\.)layers\.\d+\.blocks\.\d+\..*relative_position_bias_table|'
  r'^features\.\d+\.\d+\.attn\.relative_position_bias_table$',
  'a CaiT': r'(^|\.)blocks_token_only\.',
  'an XCiT': r'(^|\.)cls_attn_blocks\.|\.local_mp\.',
  'a CrossViT': r'(^|\.)blocks\.\d+\.fusion\.',
  'a ConViT': r'\.attn\.gating_param$',
  'a VOLO': r'(^|\.)(post_network|network)\.\d+\.',
  'a TNT': r'\.(attn_in|norm_mlp_in)\.',
  'a Twins': r'(^|\.)pos_block\.\d+\.',
  'a T2T-ViT': r'(^|\.)tokens_to_token\.',
  'a PiT': r'(^|\.)transformers\.\d+\.blocks\.',
  'a LeViT, EfficientFormer or TinyViT': r'\.attention_biases$|(^|\.)levit\.',
  'a Hiera': r'(^|\.)hiera\.|(^|\.)pos_embed_(win|window|spatial|temporal)$|'
  r'^blocks\.\d+\.proj\.weight$|(^|\.)stages\.\d+\.layers\.\d+\.attn\.qkv\.',
  'an MViT': r'\.attn\.(pool_q|norm_q)\.',
  'a MobileViT': r'(^|\.)(mobilevit|mobilevitv2)\.|stages\.\d+\.\d+\.transformer\.\d+\.|'
  r'\.transformer\.layer\.\d+\.layernorm_before\.',
  'a Visformer': r'^stage\d\.\d+\.mlp\.conv1\.',
  'a SegFormer': r'(^|\.)(segformer|decode_head)\.|\.block\.\d+\.\d+\.mlp\.dwconv\.',
  'a PVT or CoaT': r'(^|\.)(patch_embed1\.proj|pvt|pvt_v2)\.|'
  r'^stages\.\d+\.blocks\.\d+\.attn\.kv\.|'
  r'(^|\.)encoder\.block\.\d+\.\d+\.attention\.self\.query\.|'
  r'(^|\.)layers\.\d+\.blocks\.\d+\.attention\.query\.',
  'a DETR or YOLOS': r'(^|\.)(query_position_embeddings|query_embed|class_labels_classifier|'
  r'detection_tokens|yolos|detr)(\.|$)',
  'a SAM or ViTDet': r'(^|\.)(mask_decoder|prompt_encoder|image_encoder)\.|\.rel_pos_[hw]$|'
  r'^encoder\.layer\.\d+\.attention\.qkv\.',
  'a DPT': r'(^|\.)(dpt|neck\.reassemble_stage)\.',
  'a masked autoencoder with its decoder': (
    r'(^|\.)decoder\.(decoder_embed|decoder_layers|mask_token|0\.weight)'
  ),
  'a BEiT, BEiT-3, data2vec or EVA': r'\.attn\.(relative_position_bias_table|'
  r'inner_attn_ln\.weight|k_norm_bias)$|(^|\.)rel_pos_bias\.|(^|\.)(beit|data2vec_vision)\.|'
  r'\.attention\.relative_position_bias\.|(^|\.)lambda_1$',
  'an I-JEPA': r'(^|\.)ijepa\.',
  'a VideoMAE': r'(^|\.)videomae\.|\.attention\.attention\.q_bias$',
  'a Perceiver': r'(^|\.)perceiver\.|(^|\.)self_attends\.\d+\.',
  'a BLIP': r'(^|\.)encoder\.layers\.\d+\.self_attn\.qkv\.',
  'a torchvision ViT': r'(^|\.)conv_proj\.weight$|encoder\.layers\.encoder_layer_\d+\.',
  'a BERT': r'(^|\.)embeddings\.word_embeddings\.|(^|\.)(wte|embed_tokens)\.weight$',
  'a DaViT': r'\.cpe[12]\.proj\.',
  'a NesT': r'^levels\.\d+\.transformer_encoder\.',
  'a FocalNet': r'\.modulation\.',
  'a MetaFormer or FastViT': r'\.token_mixer\.|\.(res_scale|layer_scale)1\.scale$',
  'a NaFlexViT': r'^embeds\.proj\.',
  'a hybrid with another network than a BiT ResNet': r'^patch_embed\.backbone\..*running_mean$',
  # Without attention.
  'an MLP-Mixer': r'\.token_mixing\.',
  'a ResMLP or gMLP': r'\.linear_tokens\.|\.mlp_channels\.gate\.|\.spatial_proj\.',
  'a ConvNeXt or EdgeNeXt': r'(^|\.)convnext(v2)?\.|'
  r'stages\.\d+\.((blocks|layers)\.)?\d+\.(conv_dw|dwconv)\.|'
  r'(^|\.)downsample_layers\.\d+\.|^features\.\d+\.\d+\.layer_scale$',
  'a RegNet': r'^s1\.b1\.|(^|\.)(regnet|trunk_output)\.',
  'a DenseNet': r'(^|\.)features\.denseblock\d+\.',
  'an EfficientNet or MobileNet': r'(^|\.)blocks\.\d+\.\d+\.(conv_dw|conv_pw|conv)\.|'
  r'(^|\.)(efficientnet|mobilenet_v\d)\.|^features\.\d+\.\d+\.block\.|^features\.\d+\.conv\.\d+\.',
  'an Inception': r'(^|\.)Mixed_\d\w\.',
  'a VGG or AlexNet': r'^features\.0\.weight$',
  'a ResNet': r'(^|\.)layer1\.0\.conv1\.|(^|\.)resnet\.(embedder|encoder)\.',
  # Vision Transformers of another kind.
  'a Vision Transformer with normalized queries and keys (qk_norm)': r'\.attn\.[qk]_norm\.',
  'a Vision Transformer with a normalization inside its attention (scale_attn_norm)': (
    r'^blocks\.\d+\.attn\.norm\.'
  ),
  'a Vision Transformer with parallel branches': r'^blocks\.\d+\.(attns|ffns)\.|'
  r'^blocks\.\d+\.(in_proj|mlp_out_proj)\.',
  'a Vision Transformer with normalizations after its branches': r'^blocks\.\d+\.post_norm|'
  r'^blocks\.\d+\.attn_out_norm',
  'a Vision Transformer with a normalization of its patches': r'^patch_embed\.norm\.',
  'a Vision Transformer with learned rotary position embeddings': (
    r'(^|\.)(rope\.)?freqs$|(^|\.)freqs_(t_[xy]|cis)$'
  ),
  'a convolutional network': r'\.running_mean$',
}
# What a plain ViT of timm has and the file lacks.
_NECESSARY = {
  'patch_embed.proj.weight': (
    ('blocks.0.norm1.bias', 'biases in its normalizations'),
    ('blocks.0.attn.proj.bias', 'biases after its attention (proj_bias)'),
  )
}


def describe(names: Collection[str]) -> str | None:
  """What a file with tensors of these names holds: 'a Swin Transformer'; None: not known."""
  if _AIMV2 <= set(names) and not _NOT_AIMV2 & set(names):
    return None
  different = dict.fromkeys(re.sub(r'(?<=\.)\d+(?=\.)', '0', name) for name in names)
  text = '\n'.join(name[:_MAX_LENGTH] for name in list(different)[:_MAX_NAMES])
  for family, pattern in _FAMILIES.items():
    if re.search(pattern, text, re.MULTILINE):
      return family
  if 'blocks.0.mlp.norm.weight' in names and 'blocks.0.mlp.fc1_g.weight' not in names:
    return 'a Vision Transformer with a normalization inside its MLP (scale_mlp_norm)'
  if 'blocks.63.attn.q_bias' in names:
    return 'an EVA-02 E, with normalizations after its branches'
  for marker, necessary in _NECESSARY.items():
    if marker in names and 'blocks.0.norm1.weight' in names:
      for name, feature in necessary:
        if name not in names:
          return f'a Vision Transformer without {feature}'
  return None
