"""Pretrains ViT-B/16 with the hyperparameters of the paper's Table 3.

  python -m vit_jax.main --config=configs/vit_b16.py
  python -m vit_jax.main --config=configs/vit_b16.py:imagenet --config.data.train.source=…

The data is jft, imagenet21k (the default) or imagenet. Published, fine-tuned on ImageNet at 384 px
(Table 5): 84.15 % (JFT, 7 epochs), 83.97 % (ImageNet-21k), 77.91 % (ImageNet).
"""

from configs import pretrain


def get_config(data='imagenet21k'):
  return pretrain.get_config(f'b16,{data}')
