"""Pretrains ViT-H/14 with the hyperparameters of the paper's Table 3.

  python -m vit_jax.main --config=configs/vit_h14.py
  python -m vit_jax.main --config=configs/vit_h14.py:imagenet --config.data.train.source=…

The data is jft, imagenet21k (the default) or imagenet. Table 3 has no row for H/14 on
ImageNet-21k, so L/16's is used. Published, fine-tuned on ImageNet at 518 px (Table 2): 88.55 %
(JFT, 14 epochs, 2.5k TPUv3-core-days); at 384 px (Table 5): 85.13 % (ImageNet-21k).
"""

from configs import pretrain


def get_config(data='imagenet21k'):
  return pretrain.get_config(f'h14,{data}')
