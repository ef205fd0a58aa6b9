"""For tools that still look for it; everything is in pyproject.toml."""

import setuptools

setuptools.setup()
