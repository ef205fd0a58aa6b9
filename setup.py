"""Packages `vit_jax`, and configs/ inside it; everything else is in pyproject.toml."""

import setuptools

setuptools.setup(
  packages=[*setuptools.find_packages(include=['vit_jax', 'vit_jax.*']), 'vit_jax.configs'],
  package_dir={'vit_jax.configs': 'configs'},
)
