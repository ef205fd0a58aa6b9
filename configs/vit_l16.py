"""Pretrains ViT-L/16 with the hyperparameters of the paper's Table 3.

  python -m vit_jax.main --config=configs/vit_l16.py
  python -m vit_jax.main --config=configs/vit_l16.py:imagenet --config.data.train.source=…

The data is jft, imagenet21k (the default) or imagenet. Published, fine-tuned on ImageNet at 384 px
(Table 5): 87.12 % (JFT, 14 epochs), 85.15 % (ImageNet-21k), 76.53 % (ImageNet). Cost
(Table 2): 0.68k TPUv3-core-days for JFT, 0.23k for ImageNet-21k.
"""

from configs import pretrain


def get_config(data='imagenet21k'):
  return pretrain.get_config(f'l16,{data}')
