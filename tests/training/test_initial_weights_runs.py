"""The models of a run carry the terms of the weights that it started from."""

import dataclasses
import json
import shutil

import jax
import pytest

import vit_jax
from tests.helpers import GOLDEN, TINY, make_program
from vit_jax.config import load_config
from vit_jax.files import user_path
from vit_jax.training.export import export_models
from vit_jax.training.initial_state import open_start
from vit_jax.training.preflight import open_sources
from vit_jax.training.same_data import check_same_on_all_processes

FLAGS = (
  *TINY,
  '--config.data.image_size=14',
  '--config.model.patch_size=7',
  '--config.model.width=24',
  '--config.model.mlp_dim=40',
  '--config.model.pool=token',
  '--config.init_from=weights',
)


def run_without_steps(config, workdir) -> None:
  """What `train_and_evaluate` does before and after its loop."""
  train, test = open_sources(config.data)
  facts = check_same_on_all_processes({'train': train, 'test': test})
  config = config.resolve_steps(train.size)
  program = make_program(config, train.num_classes, jax.devices()[:1])
  start = open_start(config, program, train, test, facts, user_path(workdir))
  state = start.make_state(program)
  with start.checkpointer as checkpointer:
    for step, score in () if start.first_step else ((2, 0.5), (3, 0.4)):
      checkpointer.save(step, state, score, is_last=True)
    export_models(config, program.model, checkpointer, test, user_path(workdir))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Runs in first/, which starts from weights/, and second/, which starts from its state."""
  folder = tmp_path_factory.mktemp('runs')
  shutil.copytree(GOLDEN / 'families' / 'MAE', folder / 'weights')
  with pytest.MonkeyPatch.context() as patch:
    config = load_config('configs/quickstart.py', list(FLAGS))
    patch.chdir(folder)
    run_without_steps(config, folder / 'first')
    (folder / 'weights').rename(folder / 'moved')
    shutil.rmtree('first/model')
    run_without_steps(config, folder / 'first')  # started again at its end
    run_without_steps(dataclasses.replace(config, resume_from='first@2'), folder / 'second')
  return folder


@pytest.mark.parametrize('model', ['first/model', 'first/best_model', 'second/model'])
def test_the_models_of_a_run_carry_them(model, folder):
  license = json.loads((folder / 'first' / 'initial_weights.json').read_text())['license']
  assert 'MAE' in license and 'CC BY-NC 4.0' in license
  config = json.loads((folder / model / 'config.json').read_text())
  assert (config['license'], config['position_resize']) == (license, 'bicubic')
  assert (folder / model / 'LICENSE').read_text() == license + '\n'


@pytest.mark.parametrize('layout', ['huggingface', 'timm'])
def test_so_do_folders_of_other_libraries_and_what_is_loaded_from_them(layout, folder, tmp_path):
  unfinished = vit_jax.load(folder / 'first' / 'checkpoints')
  assert unfinished.license and 'MAE' in unfinished.license
  unfinished.save(tmp_path / layout, layout)
  assert (tmp_path / layout / 'LICENSE').read_text() == unfinished.license + '\n'
  vit = vit_jax.load(tmp_path / layout)
  assert (vit.license, vit.position_resize) == (unfinished.license, 'bicubic')
