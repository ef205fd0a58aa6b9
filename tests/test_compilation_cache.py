"""Compiled programs are kept in the cache folder, unless the user says otherwise."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from vit_jax import catalog

pytestmark = pytest.mark.skipif(jax.__version_info__ < (0, 12), reason='keeps none before 0.12')

SCRIPT = """
import jax, jax.numpy as jnp
from vit_jax import compilation_cache
compilation_cache.enable_cache()
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
"""


def compile_with(folder: pathlib.Path, **environment: str) -> list[pathlib.Path]:
  """Compiles a program in a process of its own; returns the programs kept below the folder."""
  env = {
    **os.environ,
    'VIT_JAX_CACHE': str(folder),
    'JAX_PLATFORMS': 'cpu',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '0',
  }
  env.pop('JAX_COMPILATION_CACHE_DIR', None)
  command = [sys.executable, '-W', 'error', '-c', SCRIPT]
  result = subprocess.run(command, env=env | environment, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  return sorted(path for path in folder.rglob('*-cache') if path.is_file())


def test_a_program_is_kept_and_found_again(tmp_path):
  programs = compile_with(tmp_path)
  assert programs
  assert all(path.is_relative_to(tmp_path / 'compiled') for path in programs)
  assert compile_with(tmp_path) == programs


def test_the_user_chooses_the_folder_or_none(tmp_path):
  elsewhere = tmp_path / 'elsewhere'
  assert not compile_with(tmp_path / 'cache', JAX_COMPILATION_CACHE_DIR=str(elsewhere))
  assert list(elsewhere.iterdir())
  assert not compile_with(tmp_path / 'cache', JAX_ENABLE_COMPILATION_CACHE='false')


def test_a_folder_that_cannot_be_made_keeps_nothing(tmp_path):
  (tmp_path / 'file').touch()
  assert not compile_with(tmp_path / 'file' / 'cache')


@pytest.mark.parametrize('folder', ['gs://bucket/cache', 'file/cache'])
def test_a_command_runs_without_a_folder_to_keep_programs_in(
  folder, tmp_path, monkeypatch, command
):
  (tmp_path / 'file').touch()
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  monkeypatch.setenv('VIT_JAX_CACHE', folder if '://' in folder else str(tmp_path / folder))
  code, out, err = command(catalog)
  assert (code, err) == (0, '')
  assert 'ViT-B_16' in out
