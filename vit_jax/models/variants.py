"""The published sizes of Vision Transformers, BiT ResNets and DETRs, with their sources."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Variant:
  """The size of an encoder, without the patch size: B/16 is `B` with patches of 16 pixels."""

  width: int
  depth: int
  mlp_dim: int
  num_heads: int


VARIANTS = {
  # arXiv 2106.10270 (AugReg), Table 2; Ti and S are DeiT's sizes (arXiv 2012.12877, Table 1).
  'Ti': Variant(width=192, depth=12, mlp_dim=768, num_heads=3),
  'S': Variant(width=384, depth=12, mlp_dim=1536, num_heads=6),
  # arXiv 2010.11929 (ViT), Table 1.
  'B': Variant(width=768, depth=12, mlp_dim=3072, num_heads=12),
  'L': Variant(width=1024, depth=24, mlp_dim=4096, num_heads=16),
  'H': Variant(width=1280, depth=32, mlp_dim=5120, num_heads=16),
  # arXiv 2106.04560 (Scaling Vision Transformers), Table 2.
  'g': Variant(width=1408, depth=40, mlp_dim=6144, num_heads=16),
  'G': Variant(width=1664, depth=48, mlp_dim=8192, num_heads=16),
  # arXiv 2305.13035 (SoViT), Section 4, the image tower of SigLIP.
  'So400m': Variant(width=1152, depth=27, mlp_dim=4304, num_heads=16),
  # facebookresearch/dinov2, vision_transformer.py (vit_giant2): gated, of 2/3 of 4 x 1536 units.
  'DINOv2-g': Variant(width=1536, depth=40, mlp_dim=4096, num_heads=24),
  # facebookresearch/dinov3, hub/backbones.py: gated, of 2/3 of ffn_ratio x width units; its S, B
  # and L are those above.
  'S+': Variant(width=384, depth=12, mlp_dim=1536, num_heads=6),
  'H+': Variant(width=1280, depth=32, mlp_dim=5120, num_heads=20),
  '7B': Variant(width=4096, depth=40, mlp_dim=8192, num_heads=32),
}


@dataclasses.dataclass(frozen=True)
class MixerVariant:
  """The size of an MLP-Mixer: D, the number of blocks, D_S and D_C of the paper."""

  width: int
  depth: int
  token_mlp_dim: int
  mlp_dim: int


# arXiv 2105.01601, Table 1, without the patch size, as google-research/big_vision has them
# (models/mlp_mixer.py).
MIXER_VARIANTS = {
  'Mixer-S': MixerVariant(width=512, depth=8, token_mlp_dim=256, mlp_dim=2048),
  'Mixer-B': MixerVariant(width=768, depth=12, token_mlp_dim=384, mlp_dim=3072),
  'Mixer-L': MixerVariant(width=1024, depth=24, token_mlp_dim=512, mlp_dim=4096),
  'Mixer-H': MixerVariant(width=1280, depth=32, token_mlp_dim=640, mlp_dim=5120),
}


@dataclasses.dataclass(frozen=True)
class ResNetVariant:
  """The size of a BiT ResNet: features of its stem, and units of each of its four stages."""

  width: int
  blocks: tuple[int, ...]


# R<layers>x<width factor>: those released with BiT (arXiv 1912.11370), and R50x2, R152x1 and R200x3
# of ViT's Table 6. Units of 200 layers: google-research/big_vision, models/bit.py.
RESNET_VARIANTS = {
  'R50x1': ResNetVariant(64, (3, 4, 6, 3)),
  'R50x2': ResNetVariant(128, (3, 4, 6, 3)),
  'R50x3': ResNetVariant(192, (3, 4, 6, 3)),
  'R101x1': ResNetVariant(64, (3, 4, 23, 3)),
  'R101x3': ResNetVariant(192, (3, 4, 23, 3)),
  'R152x1': ResNetVariant(64, (3, 8, 36, 3)),
  'R152x2': ResNetVariant(128, (3, 8, 36, 3)),
  'R152x4': ResNetVariant(256, (3, 8, 36, 3)),
  'R200x3': ResNetVariant(192, (3, 24, 36, 3)),
}


@dataclasses.dataclass(frozen=True)
class DETRVariant:
  """The size of a DETR: of its encoder, and of its ResNet as in a `ResNetVariant`."""

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  resnet_width: int
  resnet_blocks: tuple[int, ...]


# arXiv 2005.12872 (DETR), Appendix A.4; the dimension of the MLPs: facebookresearch/detr, main.py.
DETR_VARIANTS = {
  'DETR-R50': DETRVariant(256, 6, 2048, 8, 64, (3, 4, 6, 3)),
  'DETR-R101': DETRVariant(256, 6, 2048, 8, 64, (3, 4, 23, 3)),
}
