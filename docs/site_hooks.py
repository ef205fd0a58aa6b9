"""MkDocs: the reference of the package as pages, and links that leave docs/."""

import pathlib
import re

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMANDS = 'vit_jax'  # the modules that are in no subpackage


def _packages() -> list[str]:
  """The package and its subpackages: 'vit_jax', 'vit_jax.analysis', …"""
  folders = sorted(path.parent for path in (ROOT / 'vit_jax').glob('*/__init__.py'))
  return [COMMANDS, *(f'vit_jax.{folder.name}' for folder in folders)]


def _page(package: str) -> str:
  if package != COMMANDS:
    return f'# {package}\n\n::: {package}\n'
  modules = sorted(path.stem for path in (ROOT / 'vit_jax').glob('[a-z]*.py'))
  directives = [
    f'## {name}\n\n::: vit_jax.{name}\n    options: {{heading_level: 3}}\n' for name in modules
  ]
  return '\n'.join(['# vit_jax: commands and ground floor\n', *directives])


def on_config(config):
  pages = [{name: f'api/{name}.md'} for name in _packages()]
  config.nav.insert(-1, {'API reference': pages})
  return config


def on_files(files: Files, config) -> Files:
  for package in _packages():
    files.append(File.generated(config, f'api/{package}.md', content=_page(package)))
  return files


def on_page_markdown(markdown: str, page, config, files) -> str:
  """Files of the repository are linked on its host, or named where there is none."""
  del page, files
  target = rf'[\1]({config.repo_url}/blob/main/\2)' if config.repo_url else r'\1'
  return re.sub(r'\[([^\]]+)\]\(\.\./([^)]+)\)', target, markdown)
