"""Makes tests/golden/timm_families/: tiny models of timm's families, and their outputs.

From the root of the repository, with the `torch` extra:
`python -m tests.golden.make_timm_families`.
"""

import copy
import importlib
import pathlib

import numpy as np
import timm  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]

from tests.torch_models import randomize

SIZES = ((16, 16), (16, 24))  # native, another one
TINY = dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2.0)
REFERENCE = dict(ref_feat_shape=(3, 3))
# Name: (architecture, arguments besides TINY).
MODELS = {
  'dinov2_reg4': ('vit_small_patch14_reg4_dinov2', dict(num_classes=0)),
  'dinov2_giant': ('vit_giant_patch14_dinov2', dict(num_classes=0, mlp_ratio=4.0)),
  'dinov3': ('vit_small_patch16_dinov3_qkvb', dict(num_classes=0)),
  'dinov3_huge_plus': ('vit_huge_plus_patch16_dinov3', dict(num_classes=0)),
  'eva02': ('eva02_base_patch14_448', REFERENCE | dict(num_classes=5)),
  'perception_encoder': ('vit_pe_core_base_patch16_224', REFERENCE | dict(num_classes=5)),
  'perception_encoder_spatial': (
    'vit_pe_spatial_base_patch16_512',
    REFERENCE | dict(num_classes=0),
  ),
  'clip': ('vit_base_patch16_clip_quickgelu_224', dict(num_classes=5)),
  'siglip': ('vit_base_patch16_siglip_224', dict(num_classes=0)),
  'aimv2': ('aimv2_large_patch14_224', dict(num_classes=5)),
  'deit_distilled': ('deit_tiny_distilled_patch16_224', dict(num_classes=5)),
  'deit3': ('deit3_small_patch16_224', dict(num_classes=5)),
  'mae': ('vit_base_patch16_224', dict(num_classes=5, global_pool='avg')),
}


def images_of(size: tuple[int, int]) -> np.ndarray:
  """One image, (1, H, W, 3) float32 in [-1, 1]."""
  return np.random.default_rng(1).uniform(-1, 1, (1, *size, 3)).astype(np.float32)


def outputs(module, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(last tokens, logits or features) of images in [-1, 1]."""
  mean, std = (np.float32(module.pretrained_cfg[name]) for name in ('mean', 'std'))
  pixels = torch.from_numpy(((images + 1) / 2 - mean) / std).permute(0, 3, 1, 2)
  with torch.no_grad():
    tokens = module.forward_features(pixels)
    return tokens.numpy(), module.forward_head(tokens).numpy()


def main() -> None:
  """Writes a folder for each model, with parameters that bfloat16 holds, and `expected.npz`."""
  folder, expected = pathlib.Path(__file__).parent / 'timm_families', {}
  save = importlib.import_module('timm.models._hub').save_for_hf
  for name, (architecture, arguments) in MODELS.items():
    module = randomize(timm.create_model(architecture, **TINY | arguments))
    stored = copy.deepcopy(module).bfloat16()
    save(stored, folder / name, safe_serialization=True)
    module.load_state_dict(stored.state_dict())  # buffers such as rotary periods stay exact
    for size in SIZES:
      module.set_input_size(img_size=size)
      tokens, pooled = outputs(module, images_of(size))
      expected |= {f'{name}/{size[1]}/tokens': tokens, f'{name}/{size[1]}/pooled': pooled}
  np.savez_compressed(folder / 'expected.npz', **expected)


if __name__ == '__main__':
  main()
