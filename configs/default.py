"""Every field with its default; the other configs override a few of them.

python -m vit_jax.main --help          all fields with documentation and range
python -m vit_jax.main --help=model    those of one section
"""

import ml_collections

from vit_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
  return default_config()
