"""The notebooks in colabs/ are short, without outputs, agree on their setup, and run offline."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

import vit_jax
from tests.helpers import ROOT, random_params, write_images
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights import registry

COLABS = ROOT / 'colabs'
NAMES = (
  *'use_a_released_model finetune_on_your_images pretrain_from_scratch'.split(),
  *'inside_a_vit evaluate'.split(),
)
MAX_CELLS = 25
PUBLISHED = 'augreg/Ti_16-imagenet2012'
LAST_CELL = """import sys
unwanted = {'tensorflow', 'torch'} & set(sys.modules)
assert not unwanted, unwanted"""

each_notebook = pytest.mark.parametrize('name', NAMES)


def read(name):
  return nbformat.read(COLABS / f'{name}.ipynb', as_version=4)


def cell(notebook, id):
  return next(cell for cell in notebook.cells if cell.id == id)


def with_settings(notebook, settings):
  """Replaces values in the cell tagged `parameters`, as a user does in Colab's form."""
  (form,) = [cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', ())]
  for name, value in settings.items():
    form.source, count = re.subn(
      rf'^{name} = .*?(?=  # @param)', lambda _, x=f'{name} = {value!r}': x, form.source, flags=re.M
    )
    assert count == 1, f'{name} is no setting'
  return notebook


def execute(name, settings, folder):
  """Runs a notebook in `folder`, with a cache of published models that has one, tiny."""
  notebook = with_settings(read(name), settings)
  notebook.cells.append(nbformat.v4.new_code_cell(LAST_CELL))
  # Without kernel folders the only kernel is the Python that runs this test.
  kernels = KernelSpecManager(kernel_dirs=[])
  client = NotebookClient(
    notebook,
    km=AsyncKernelManager(kernel_spec_manager=kernels),
    resources={'metadata': {'path': str(folder)}},
    timeout=300,
  )
  env = os.environ | {
    'VIT_JAX_CACHE': str(folder / 'cache'),
    'IPYTHONDIR': str(folder / 'ipython'),
    'MPLBACKEND': 'module://matplotlib_inline.backend_inline',
  }
  client.execute(cleanup_kc=True, env=env)
  return {cell.id: cell for cell in notebook.cells if cell.cell_type == 'code'}


def stream_text(cell):
  return ''.join(output.text for output in cell.outputs if output.output_type == 'stream')


def num_images(cell):
  return sum('image/png' in output.get('data', {}) for output in cell.outputs)


@pytest.fixture
def folder(tmp_path):
  """The current folder of a notebook; the published model is random, 1,000 classes, 32 pixels."""
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  vit = tiny(1000)
  target = tmp_path / 'cache' / f'{registry.find(PUBLISHED).name}.npz'
  target.parent.mkdir(parents=True)
  vit.save(target)
  return tmp_path


def tiny(num_classes, labels=None):
  model = VisionTransformer(8, 16, 2, 24, 2, num_classes)
  return vit_jax.Classifier(model, random_params(model, (32, 32)), (32, 32), labels)


def write_pets(folder):
  counts = {'train': 6, 'test': 3}
  files = [f'{x}/{y}/{i}.png' for x, n in counts.items() for y in ('cat', 'dog') for i in range(n)]
  write_images(folder, dict.fromkeys(files, (32, 40)))


TINY_MODEL = (
  '--config.model.width=16 --config.model.depth=1 --config.model.mlp_dim=24 '
  '--config.model.num_heads=2'
)


def test_there_are_five_notebooks():
  assert sorted(path.stem for path in COLABS.glob('*.ipynb')) == sorted(NAMES)


@each_notebook
def test_notebook_is_short_and_stored_without_outputs(name):
  notebook = read(name)
  nbformat.validate(notebook)
  assert len(notebook.cells) <= MAX_CELLS
  assert notebook.metadata == {
    'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
    'language_info': {'name': 'python'},
  }
  assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
  for each in notebook.cells:
    assert each.metadata == ({'tags': ['parameters']} if each.id == 'settings' else {})
    assert not each.get('outputs') and each.get('execution_count') is None
    assert not re.search(r'import (tensorflow|torch)\b|from (tensorflow|torch)\b', each.source)


@each_notebook
def test_the_badge_opens_this_notebook(name):
  title = read(name).cells[0].source
  assert f'/colabs/{name}.ipynb)' in title and title.startswith('# ')
  readme = (ROOT / 'README.md').read_text()
  assert re.search(r'https://colab\.research[^)]*', title)[0] in readme


def test_all_install_cells_are_the_same():
  assert len({cell(read(name), 'install').source for name in NAMES}) == 1


def test_all_files_name_one_repository_and_a_command_sets_it(tmp_path):
  command = ROOT / 'colabs' / 'set_repository.py'
  (tmp_path / 'colabs').mkdir()
  for path in (*COLABS.iterdir(), ROOT / 'README.md'):
    if path.is_file():
      (tmp_path / path.relative_to(ROOT)).write_bytes(path.read_bytes())

  def set_repository(*args, root=tmp_path):
    path = root / command.relative_to(ROOT)
    return subprocess.run([sys.executable, path, *args], capture_output=True, text=True)

  found = re.search(r"REPOSITORY = '([^']*)'", cell(read(NAMES[0]), 'install').source)
  assert set_repository(found[1], '--check', root=ROOT).returncode == 0
  assert set_repository('me/my.vit').stdout.count('changed') == len(NAMES) + 1
  assert set_repository('me/my.vit', '--check').returncode == 0
  text = (tmp_path / 'colabs' / 'evaluate.ipynb').read_text()
  assert "REPOSITORY = 'me/my.vit'" in text and 'com/github/me/my.vit/blob/main' in text
  nbformat.validate(json.loads(text))
  assert set_repository(found[1], '--check').returncode == 1
  assert set_repository('no_owner').returncode == 2


# In place of pip: it records its arguments, and brings the JAX that they ask for.
FAKE_PIP = """
import json, pathlib, re, sys
here = pathlib.Path(__file__).parent.parent
(here / 'arguments.json').write_text(json.dumps(sys.argv[1:]))
extra = re.search(r',(cuda|tpu)', sys.argv[-1])
backend = {'cuda': 'gpu', 'tpu': 'tpu'}[extra[1]] if extra else 'cpu'
if 'jax==' not in sys.argv[-1]:
  text = f'__version__ = "9.8.7"\\ndef default_backend(): return "{backend}"'
  (here / 'jax.py').write_text(text)
"""


def run_install_cell(folder, devices=(), driver='', jax=None, repository='me/vit', **env):
  """What the cell prints, and what it asks pip for, on a machine with these devices and JAX."""
  (folder / 'bin').mkdir()
  (folder / 'pip').mkdir()
  (folder / 'pip' / '__main__.py').write_text(FAKE_PIP)
  (folder / 'pip' / '__init__.py').touch()
  jax_text = 'raise ImportError'
  if jax:
    jax_text = f'__version__ = "{jax[1]}"\ndef default_backend(): return "{jax[0]}"'
  (folder / 'jax.py').write_text(jax_text)
  if driver:
    (folder / 'bin' / 'nvidia-smi').write_text(f'#!/bin/sh\necho {driver}\n')
    (folder / 'bin' / 'nvidia-smi').chmod(0o755)
  source = cell(read(NAMES[0]), 'install').source
  source = re.sub("(?<=REPOSITORY = ')[^']*", repository, source)
  files = f'import fnmatch, glob\nglob.glob = lambda x: fnmatch.filter({list(devices)}, x)\n'
  # Bytecode of the same second and size would hide the JAX that pip writes.
  env |= {'PYTHONPATH': str(folder), 'PYTHONDONTWRITEBYTECODE': '1'}
  env |= {'PATH': str(folder / 'bin')}
  # Without site-packages, where vit_jax may be installed.
  command = [sys.executable, '-S', '-c', files + source]
  result = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
  file = folder / 'arguments.json'
  return result, json.loads(file.read_text()) if file.exists() else []


NVIDIA, TPU = ['/dev/nvidia0'], ['/dev/accel0']
NEW, KEPT = 'JAX 9.8.7 for {} is new', 'JAX {} for {} is what this machine had.'


@pytest.mark.parametrize(
  ('devices', 'driver', 'jax', 'extras', 'pins', 'line'),
  [
    ([], '', None, 'figures', [], NEW.format('CPU')),
    ([], '', ('cpu', '0.11.0'), 'figures', ['jax==0.11.0'], KEPT.format('0.11.0', 'CPU')),
    ([], '', ('cpu', '0.9.2'), 'figures', [], 'new (it had 0.9.2)'),
    (NVIDIA, '550.54.15', ('gpu', '0.10.1'), 'figures', ['jax==0.10.1'], 'what this machine had'),
    (NVIDIA, '550.54.15', ('gpu', '0.7.2'), 'figures,cuda12', [], NEW.format('GPU')),
    (NVIDIA, '580.65.06', ('cpu', '0.11.0'), 'figures,cuda', [], NEW.format('GPU')),
    (NVIDIA, '', None, 'figures,cuda12', [], NEW.format('GPU')),
    (TPU, '', ('tpu', '0.10.2'), 'figures', ['jax==0.10.2'], KEPT.format('0.10.2', 'TPU')),
    (['/dev/vfio/0'], '', ('cpu', '0.12.0'), 'figures,tpu', [], NEW.format('TPU')),
    ([], '', ('gpu', '0.11.0'), 'figures', ['jax==0.11.0'], KEPT.format('0.11.0', 'GPU')),
  ],
)
def test_jax_is_installed_only_where_none_works(devices, driver, jax, extras, pins, line, tmp_path):
  result, arguments = run_install_cell(tmp_path, devices, driver, jax)
  package = f'vit_jax[{extras}] @ git+https://github.com/me/vit'
  assert arguments == ['install', '--quiet', package, *pins], result.stderr
  assert line in result.stdout and 'WARNING' not in result.stdout
  assert result.stdout.count('\n') == 1


def test_the_environment_of_a_tpu_counts(tmp_path):
  _, arguments = run_install_cell(tmp_path, TPU_NAME='local')
  assert '[figures,tpu]' in arguments[-1]


def test_nothing_is_installed_twice_or_from_nowhere(tmp_path):
  result, arguments = run_install_cell(tmp_path, repository='OWNER/vit_jax')
  assert not arguments and 'Set REPOSITORY' in result.stderr
  (tmp_path / 'again' / 'vit_jax').mkdir(parents=True)
  (tmp_path / 'again' / 'vit_jax' / '__init__.py').touch()
  result, arguments = run_install_cell(tmp_path / 'again')
  assert not arguments and 'nothing to do' in result.stdout


def test_the_oldest_jax_is_that_of_the_package():
  oldest = re.search(r'MIN_JAX = \((.*)\)', cell(read(NAMES[0]), 'install').source)[1]
  assert f'"jax>={oldest.replace(", ", ".")}.' in (ROOT / 'pyproject.toml').read_text()


def test_a_released_model_is_loaded_by_name_and_shown(folder):
  cells = execute('use_a_released_model', {'model': PUBLISHED}, folder)
  assert 'installed already' in stream_text(cells['install'])
  assert [num_images(cells[id]) for id in ('predict', 'attention', 'relevance')] == [1, 2, 2]
  assert vit_jax.load(folder / 'vit.safetensors').model.num_classes == 1000


def test_own_images_are_learned_and_confusions_shown(folder):
  write_pets(folder / 'pets')
  flags = f'{TINY_MODEL} --config.model.patch_size=8 --config.batch_size=8'
  settings = dict(images='pets', model='ti16', weights='tiny.npz', epochs=2, image_size=32)
  tiny(5).save(folder / 'tiny.npz')
  flags = flags.replace('depth=1', 'depth=2')
  cells = execute('finetune_on_your_images', settings | {'more_flags': flags}, folder)
  assert 'cat 6, dog 6' in stream_text(cells['data'])
  assert 'a device computes with 8 at once' in stream_text(cells['fit'])
  assert [num_images(cells[id]) for id in ('photos', 'curve', 'confusion', 'doubtful')] == [1] * 4
  assert '6 examples' in stream_text(cells['confusion'])
  assert vit_jax.load(folder / 'runs' / 'finetune' / 'model').labels == ['cat', 'dog']
  assert (folder / 'model.zip').exists()


def test_a_model_is_trained_from_scratch_and_planned(folder):
  settings = {'total_steps': 20, 'more_flags': TINY_MODEL}
  cells = execute('pretrain_from_scratch', settings, folder)
  assert [num_images(cells[id]) for id in ('data', 'curve', 'predict', 'positions')] == [1] * 4
  correct, total = re.search(r'(\d+) of (\d+) test digits', stream_text(cells['predict'])).groups()
  lines = (folder / 'runs' / 'quickstart' / 'metrics.jsonl').read_text().splitlines()
  last = [line for line in map(json.loads, lines) if 'test/accuracy' in line][-1]
  assert last['step'] == 20 and last['test/examples'] == int(total) == 360
  assert last['test/accuracy'] == pytest.approx(int(correct) / 360, abs=1e-6)
  assert '8 CPU devices' in stream_text(cells['plan']) or importlib.util.find_spec('libtpu')


def test_every_step_by_hand_agrees_with_the_model(folder):
  cells = execute('inside_a_vit', {'model': PUBLISHED, 'image_size': 32}, folder)
  difference = re.search(r'difference: (\S+)', stream_text(cells['attention']))
  assert float(difference[1]) < 1e-5
  shown = ('patches', 'tokens', 'positions', 'heads', 'distance', 'blocks', 'head')
  assert [num_images(cells[id]) for id in shown] == [1, 1, 1, 2, 1, 1, 1]


def test_any_checkpoint_is_evaluated(folder):
  write_pets(folder / 'pets')
  tiny(2, ['cat', 'dog']).save(folder / 'model', layout='model')
  settings = dict(checkpoint='model', data='pets', image_size=32)
  settings |= dict(shots='1, 2', neighbors='1, 3', batch_size=4)
  cells = execute('evaluate', settings, folder)
  text = stream_text(cells['probes'])
  assert re.search('fewshot.*\nknn.*\nlinear_probe', text), text
  assert '6 examples' in stream_text(cells['head'])
  assert num_images(cells['probes-figure']) == num_images(cells['calibration']) == 1
