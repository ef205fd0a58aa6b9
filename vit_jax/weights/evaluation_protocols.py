"""How the published models were evaluated; docs/preprocessing.md has the sources and the doubts.

Without a source that says so, a protocol is that of the authors' code for similar models.
"""

import dataclasses

from vit_jax.config import Preprocessing
from vit_jax.weights.registry import PublishedModel

# google-research/vision_transformer and big_transfer: tf.image.resize(image, [size, size]).
ORIGINAL = Preprocessing(
  resize='squash',
  crop_fraction=1.0,
  interpolation='bilinear',
  antialias=False,
  rounding='tensorflow',
)
# google-research/big_vision: resize_small(256)|central_crop(224).
BIG_VISION = Preprocessing(
  resize='crop',
  crop_fraction=224 / 256,
  interpolation='area',
  antialias=False,
  rounding='tensorflow',
)
# facebookresearch/deit with --eval-crop-ratio 1.0; timm with crop_pct=1.0.
TORCHVISION = Preprocessing(
  resize='crop', crop_fraction=1.0, interpolation='bicubic', antialias=True, rounding='torchvision'
)
# facebookresearch/deit by default, mae, dinov2: the same with a ratio of 224 / 256.
META = dataclasses.replace(TORCHVISION, crop_fraction=224 / 256)

PROTOCOLS = {
  'augreg': BIG_VISION,
  'big_vision': BIG_VISION,
  'bit': BIG_VISION,
  'bit/distill': BIG_VISION,
  'clip': TORCHVISION,
  'deit': META,
  'deit3': TORCHVISION,
  'dinov2': META,
  'dinov3': dataclasses.replace(TORCHVISION, resize='squash', interpolation='bilinear'),
  'imagenet21k': ORIGINAL,
  'imagenet21k+imagenet2012': ORIGINAL,
  'lit': ORIGINAL,
  'mae': META,
  'mixer/gsam': ORIGINAL,
  'mixer/imagenet1k': ORIGINAL,
  'mixer/imagenet21k': ORIGINAL,
  'mixer/sam': ORIGINAL,
  'sam': ORIGINAL,
  'siglip': ORIGINAL,
  'siglip2': ORIGINAL,
}
# (family, resolution) where it differs from the rest of the family.
PROTOCOLS_AT = {
  ('augreg', 384): dataclasses.replace(BIG_VISION, crop_fraction=384 / 448),
  ('bit', 480): dataclasses.replace(TORCHVISION, interpolation='bilinear'),
  ('bit/distill', 384): ORIGINAL,
}
# For accuracies that timm measured: the crop_pct of its results at each resolution.
TIMM_RESULTS = 'huggingface/pytorch-image-models:results/results-imagenet.csv'
TIMM_PROTOCOLS = {224: dataclasses.replace(TORCHVISION, crop_fraction=0.9), 384: TORCHVISION}


def protocol(model: PublishedModel) -> Preprocessing:
  """Returns the preprocessing with which `model.accuracy` was measured.

  For a model without a published accuracy it is that of its authors; the size is
  `model.resolution`.
  """
  if model.accuracy_source == TIMM_RESULTS:
    return TIMM_PROTOCOLS[model.resolution]
  return PROTOCOLS_AT.get((model.family, model.resolution), PROTOCOLS[model.family])
