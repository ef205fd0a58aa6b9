"""The notebooks in colabs/ are short, stored without outputs, and run in a real kernel."""

import json
import os
import re

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

from tests.helpers import ROOT

NOTEBOOKS = sorted((ROOT / 'colabs').glob('*.ipynb'))
MAX_CELLS = 12
STEPS = 50
LAST_CELL = "import sys\nassert 'tensorflow' not in sys.modules, 'a cell imported TensorFlow'"

each_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)


def execute(path, workdir):
  """Runs a notebook as if opened in colabs/ of a checkout; returns it with its outputs."""
  notebook = nbformat.read(path, as_version=4)
  notebook.cells.append(nbformat.v4.new_code_cell(LAST_CELL))
  # Without kernel folders the only kernel is the Python that runs this test.
  kernels = KernelSpecManager(kernel_dirs=[])
  client = NotebookClient(
    notebook,
    km=AsyncKernelManager(kernel_spec_manager=kernels),
    resources={'metadata': {'path': str(path.parent)}},
    timeout=300,
  )
  env = os.environ | {
    'VIT_JAX_NOTEBOOK_STEPS': str(STEPS),
    'VIT_JAX_NOTEBOOK_WORKDIR': str(workdir),
    'IPYTHONDIR': str(workdir.parent / 'ipython'),
    'MPLBACKEND': 'module://matplotlib_inline.backend_inline',
  }
  return client.execute(cleanup_kc=True, env=env)


def stream_text(cell):
  return ''.join(output.text for output in cell.outputs if output.output_type == 'stream')


def has_image(cell):
  return any('image/png' in output.get('data', {}) for output in cell.outputs)


def test_the_quickstart_notebook_exists():
  assert ROOT / 'colabs' / 'quickstart.ipynb' in NOTEBOOKS


@each_notebook
def test_notebook_is_short_and_stored_without_outputs(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  assert len(notebook.cells) <= MAX_CELLS
  assert notebook.metadata == {
    'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
    'language_info': {'name': 'python'},
  }
  for cell in notebook.cells:
    assert cell.metadata == {}
    assert not cell.get('outputs') and cell.get('execution_count') is None
    assert 'tensorflow' not in cell.source.lower()


@each_notebook
def test_notebook_runs_from_top_to_bottom(path, tmp_path):
  notebook = execute(path, tmp_path / 'run')
  cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == 'code'}
  for cell in cells.values():
    assert 'Warning' not in stream_text(cell)
  if path.stem == 'quickstart':
    check_quickstart(cells, tmp_path / 'run')


def check_quickstart(cells, workdir):
  assert has_image(cells['curve']) and has_image(cells['digits'])
  text = stream_text(cells['predict'])
  correct, total = map(int, re.search(r'(\d+) of (\d+) test digits', text).groups())
  assert total == 360 and correct / total > 0.2, text  # guessing gives 0.1
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  last = [line for line in map(json.loads, lines) if 'test/accuracy' in line][-1]
  assert last['step'] == STEPS and last['test/examples'] == total
  assert last['test/accuracy'] == pytest.approx(correct / total, abs=1e-6)
  assert (workdir / 'model' / 'params.npz').exists()
