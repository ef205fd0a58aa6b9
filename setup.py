"""Packages `vit_jax`, with configs/ and results/ in it; everything else is in pyproject.toml."""

import setuptools

setuptools.setup(
  packages=[
    *setuptools.find_packages(include=['vit_jax', 'vit_jax.*']),
    'vit_jax.configs',
    'vit_jax.results',
  ],
  package_dir={'vit_jax.configs': 'configs', 'vit_jax.results': 'results'},
)
