"""Imports run one way, no two files share a name, and docs/architecture.md names them all."""

import ast
import collections
import graphlib
import pathlib
import re

import pytest

from tests.helpers import ROOT
from vit_jax import __main__

PACKAGE = ROOT / 'vit_jax'
# From the ground up: a module imports from its own layer and from those before it.
LAYERS = (
  ('errors', 'text'),
  (
    *'compiler compilation_cache data_uri files retries run_metrics signals hardware'.split(),
    'templates',
  ),
  ('config',),
  ('models', 'distributed'),
  ('data', 'weights', 'checkpoints'),
  ('classifier', 'classifier_card', 'load_classifier', 'evaluation', 'prepare', 'verification'),
  ('run_report',),
  ('training',),
  ('planning', 'sweeps', 'transfer', 'experiments', 'analysis'),
  (
    *'command_line main evaluate predict convert prepare_data plan catalog verify sweep'.split(),
    *'vtab goodput explain report experiments.scaling __main__'.split(),
  ),
)
LAYER = {name: level for level, names in enumerate(LAYERS) for name in names}
COMMANDS = [name for name in LAYERS[-1] if name != 'command_line']
MODULES = {
  '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
  for path in PACKAGE.rglob('*.py')
}


def imported_modules(path: pathlib.Path) -> set[str]:
  """The modules of this package that a file imports, at its top or inside of functions."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path} has a relative import'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  modules = set()
  for name in names:
    while name.startswith('vit_jax.') and name not in MODULES:
      name = name.rpartition('.')[0]  # of a class or function: its module
    if name.startswith('vit_jax.'):
      modules.add(name)
  return modules


GRAPH = {module: imported_modules(path) for module, path in MODULES.items()}


def layer(module: str) -> int:
  name = module.removeprefix('vit_jax.')
  return LAYER[name if name in LAYER else name.split('.')[0]]  # a command may be in a folder


def test_every_module_has_a_layer():
  assert {module.split('.')[1] for module in MODULES if '.' in module} == {
    name for name in LAYER if '.' not in name
  }
  assert all(f'vit_jax.{name}' in MODULES for name in LAYER)


def test_imports_run_one_way():
  upward = [
    f'{module} -> {imported}'
    for module, imports in GRAPH.items()
    if module != 'vit_jax'
    for imported in imports
    if layer(imported) > layer(module)
  ]
  assert not upward


def test_no_two_modules_import_each_other():
  try:
    graphlib.TopologicalSorter(GRAPH).prepare()
  except graphlib.CycleError as error:
    pytest.fail(' -> '.join(error.args[1]))


def test_no_command_imports_another():
  for command in COMMANDS:
    others = {f'vit_jax.{name}' for name in COMMANDS} - {f'vit_jax.{command}'}
    assert not GRAPH[f'vit_jax.{command}'] & others


def test_every_command_is_listed():
  assert sorted(__main__.COMMANDS.values()) == sorted(set(COMMANDS) - {'__main__'})


def test_no_two_files_share_a_name():
  files = [path.stem for path in PACKAGE.rglob('*.py') if path.stem != '__init__']
  folders = [path.name for path in PACKAGE.rglob('*') if (path / '__init__.py').exists()]
  count = collections.Counter(files + folders)
  assert [name for name in count if count[name] > 1] == []


def test_the_architecture_page_names_every_file_and_folder():
  page = (ROOT / 'docs' / 'architecture.md').read_text()
  missing = []
  for path in PACKAGE.rglob('*'):
    name = path.relative_to(PACKAGE)
    if path.is_dir() and (path / '__init__.py').exists():
      missing += [f'{name}/'] if f'`{name}/`' not in page and f'{path.name}/`' not in page else []
    elif path.suffix == '.py' and path.name != '__init__.py' and f'`{path.name}`' not in page:
      missing.append(str(name))
  assert not missing


def test_the_architecture_page_names_no_file_that_is_gone():
  page = (ROOT / 'docs' / 'architecture.md').read_text()
  names = set(re.findall(r'`([a-z_]+\.py)`', page))
  assert not names - {path.name for path in ROOT.rglob('*.py') if '.venv' not in path.parts}


@pytest.mark.parametrize('folder', sorted(path.parent for path in PACKAGE.rglob('__init__.py')))
def test_tests_mirror_the_package(folder):
  relative = folder.relative_to(PACKAGE)
  is_configs = relative.name == 'configs'
  assert is_configs or list((ROOT / 'tests' / relative).rglob('test_*.py'))


def test_no_test_imports_another_test():
  for path in (ROOT / 'tests').rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ImportFrom) and node.module:
        assert not node.module.split('.')[-1].startswith('test_'), path
