"""Models of huggingface.co: from the cache, by huggingface_hub, or a sentence that says how."""

import pathlib
import sys
import types

import pytest

import vit_jax
from tests.helpers import random_params
from vit_jax.classifier import Classifier
from vit_jax.errors import UserError
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights import hub

NAME = 'some-owner/some-model'


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.chdir(tmp_path)
  return tmp_path / 'cache'


def save(folder: pathlib.Path) -> pathlib.Path:
  model = VisionTransformer(4, 8, 1, 8, 2, num_classes=2)
  Classifier(model, random_params(model, (8, 8)), (8, 8)).save(folder)
  return folder


def replace_library(monkeypatch, snapshot_download) -> None:
  """In place of the network."""
  library = types.SimpleNamespace(snapshot_download=snapshot_download)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', library)


def refuse(error: Exception):
  def snapshot_download(*unused, **unused_too):
    raise error

  return snapshot_download


def test_files_in_the_cache_are_taken(cache, monkeypatch):
  replace_library(monkeypatch, refuse(AssertionError('the network is not needed')))
  cache.mkdir()
  save(cache / NAME)
  assert vit_jax.load(NAME).model.width == 8


def test_the_library_downloads_what_is_needed_alone(cache, tmp_path, monkeypatch):
  calls = []

  def snapshot_download(name, allow_patterns):
    calls.append((name, allow_patterns))
    return str(save(tmp_path / 'snapshot'))

  replace_library(monkeypatch, snapshot_download)
  assert vit_jax.load(NAME).model.width == 8
  ((name, patterns),) = calls
  assert name == NAME and 'model*.safetensors' in patterns
  assert not any('.bin' in x or 'open_clip' in x for x in patterns)


def test_other_files_are_downloaded_only_without_the_usual_ones(cache, tmp_path, monkeypatch):
  calls = []

  def snapshot_download(name, allow_patterns):
    calls.append(allow_patterns)
    if 'open_clip_model.safetensors' in allow_patterns:
      (tmp_path / 'snapshot').mkdir()
      (tmp_path / 'snapshot' / 'open_clip_model.safetensors').touch()
    return str(tmp_path / 'snapshot')

  replace_library(monkeypatch, snapshot_download)
  assert hub.fetch(NAME) == tmp_path / 'snapshot' and len(calls) == 2
  (tmp_path / 'snapshot' / 'open_clip_model.safetensors').unlink()
  replace_library(monkeypatch, lambda *unused, **unused_too: str(tmp_path / 'snapshot'))
  with pytest.raises(UserError, match='has no safetensors on huggingface.co; download other'):
    hub.fetch(NAME)


def test_without_the_library_a_sentence_says_what_to_do(cache, monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(UserError) as caught:
    vit_jax.load(NAME)
  assert str(caught.value) == (
    f'There is no file or folder {NAME}; if that is a model of huggingface.co, download '
    'config.json, preprocessor_config.json and model.safetensors from '
    f'https://huggingface.co/{NAME} '
    f"into {cache / NAME}, or run pip install 'vit_jax[hub]'."
  )


def test_what_the_library_cannot_do_is_a_sentence(cache, monkeypatch):
  replace_library(monkeypatch, refuse(OSError('no route to host')))
  with pytest.raises(UserError, match=r'as huggingface_hub could not \(no route to host\)'):
    vit_jax.load(NAME)
  for kind, text, message in (
    ('GatedRepoError', '403', 'or accept its license there and run hf auth login'),
    ('RepositoryNotFoundError', '401', 'no model of that name on huggingface.co that you may'),
    ('HfHubHTTPError', '401\nInvalid credentials in Authorization', 'refuses your token, so'),
    ('LocalEntryNotFoundError', 'no entry.', r'it is not in its cache, and no entry\)\.$'),
  ):
    replace_library(monkeypatch, refuse(type(kind, (Exception,), {})(text)))
    with pytest.raises(UserError, match=message):
      vit_jax.load(NAME)


def test_names_of_gated_models_say_that_a_license_comes_first(cache, monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(UserError) as caught:
    vit_jax.load('facebook/dinov3-vitb16-pretrain-lvd1689m')
  assert ', once you have accepted its license there, into ' in str(caught.value)


def test_paths_are_no_names(cache, tmp_path, monkeypatch):
  replace_library(monkeypatch, refuse(AssertionError('the network is not needed')))
  (tmp_path / 'runs').mkdir()
  for name in ('timm/vit_base_patch14_dinov2.lvd142m', 'facebook/dinov2-with-registers-base'):
    assert hub.is_name(name)
  for path in ('runs/typo', 'x/y/z', './a/b', '/a/b', 'a/b.npz', 'weights', '../a'):
    assert not hub.is_name(path)
  with pytest.raises(UserError, match='There is no model at'):
    vit_jax.load('runs/typo')
