"""Every published model has the preprocessing of its published accuracy."""

import numpy as np
import pytest

from tests.helpers import ROOT
from vit_jax.data.augmentation.preprocessing import preprocess
from vit_jax.weights.evaluation_protocols import PROTOCOLS, protocol
from vit_jax.weights.registry import LICENSES, PUBLISHED_MODELS, find

PIXELS = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8)


def test_every_family_has_a_protocol_and_a_paragraph():
  assert PROTOCOLS.keys() == LICENSES.keys()
  page = (ROOT / 'docs' / 'preprocessing.md').read_text()
  assert not [family for family in LICENSES if f'**`{family}`.**' not in page]


@pytest.mark.parametrize('name', PUBLISHED_MODELS)
def test_every_model_has_one_that_works(name):
  model = PUBLISHED_MODELS[name]
  size = (model.resolution, model.resolution)
  assert preprocess(PIXELS, size, protocol(model)).shape == (*size, 3)


@pytest.mark.parametrize(
  ('name', 'resize', 'shorter_side', 'interpolation', 'antialias'),
  [
    ('imagenet21k+imagenet2012/ViT-B_16-224', 'squash', 224, 'bilinear', False),
    ('imagenet21k+imagenet2012/ViT-B_16', 'crop', 384, 'bicubic', True),  # timm's accuracy
    ('imagenet21k+imagenet2012/ViT-L_16', 'squash', 384, 'bilinear', False),  # none published
    ('augreg/B_16', 'crop', 256, 'area', False),
    ('augreg/B_16-imagenet2012', 'crop', 448, 'area', False),
    ('augreg/B_8-imagenet2012', 'crop', 256, 'area', False),
    ('augreg/Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0--oxford_iiit_pet-steps_2k-'
     'lr_0.03-res_384', 'crop', 448, 'area', False),  # not in the registry
    ('sam/ViT-B_16', 'crop', 248, 'bicubic', True),  # timm's
    ('big_vision/vit_s16_i1k_90ep', 'crop', 256, 'area', False),
    ('deit3/bv_deit_3_small_384_1k', 'crop', 384, 'bicubic', True),
    ('bit/BiT-M-R50x1-ILSVRC2012', 'crop', 480, 'bilinear', True),
    ('bit/distill/R50x1_160', 'crop', 183, 'area', False),
    ('bit/distill/R152x2_T_384', 'squash', 384, 'bilinear', False),
    ('clip/ViT-L-14-336px', 'crop', 336, 'bicubic', True),
    ('deit/deit_base_patch16_384-8de9b5d1', 'crop', 438, 'bicubic', True),
    ('deit3/deit_3_huge_224_1k', 'crop', 224, 'bicubic', True),
    ('mae/mae_finetuned_vit_base', 'crop', 256, 'bicubic', True),
    ('dinov3/dinov3_vitb16_pretrain_lvd1689m-73cec8be', 'squash', 256, 'bilinear', True),
    ('siglip2/siglip2_b16_512', 'squash', 512, 'bilinear', False),
  ],
)  # fmt: skip
def test_protocols_are_those_of_the_sources(name, resize, shorter_side, interpolation, antialias):
  model = find(name)
  it = protocol(model)
  rounded = round if it.rounding == 'tensorflow' else int
  assert (it.resize, it.interpolation, it.antialias) == (resize, interpolation, antialias)
  assert rounded(model.resolution / it.crop_fraction) == shorter_side
