"""The families of Transformers, read and written: against stored outputs, and live.

The live tests need the `torch` extra and are skipped without it.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from tests.golden.make_transformers_families import (
  FAMILIES,
  OTHER_SIZE,
  SIZE,
  STORED,
  build_module,
  images_of_family,
  outputs_of,
)
from tests.helpers import GOLDEN
from tests.torch_models import import_or_skip

EXPECTED = np.load(GOLDEN / 'families' / 'expected.npz')


@pytest.fixture(scope='module')
def transformers():
  import_or_skip('torch')
  module = import_or_skip('transformers')
  import_or_skip('transformers.models.vit.modeling_vit')
  module.utils.logging.disable_progress_bar()
  return module


@functools.partial(jax.jit, static_argnames='names')
def _outputs(vit, images, names: tuple[str, ...]):
  outputs = {}
  if 'tokens' in names:
    patches, prefix = vit.tokens(images, return_prefix_tokens=True)
    outputs['tokens'] = jnp.concatenate([prefix, patches], axis=1)
  if 'pooled' in names:
    outputs['pooled'] = vit.features(images)
  if 'logits' in names:
    outputs['logits'] = vit(images)
  return outputs


def our_outputs(vit, images: np.ndarray, names) -> dict[str, np.ndarray]:
  """Outputs of these names, as `outputs_of` has them of a module of Transformers."""
  return jax.tree.map(np.asarray, _outputs(vit, images, tuple(names)))


def assert_close(actual, expected, tolerance=1e-5):
  assert actual.keys() == expected.keys() and actual
  for name, x in expected.items():
    np.testing.assert_allclose(actual[name], x, rtol=0, atol=tolerance * max(np.abs(x).max(), 1))


@pytest.mark.parametrize('name', FAMILIES)
def test_both_ways_live(name, transformers, tmp_path):
  module = build_module(name)
  module.save_pretrained(tmp_path / 'source')
  vit = vit_jax.load(tmp_path / 'source')
  images = images_of_family(SIZE)
  expected = outputs_of(module, vit.model, images)
  assert_close(our_outputs(vit, images, expected), expected)
  vit.save(tmp_path / 'target', layout='huggingface')
  config = json.loads((tmp_path / 'target' / 'config.json').read_text())
  (written,) = config['architectures']
  assert written == FAMILIES[name].written
  copy, info = getattr(transformers, written).from_pretrained(
    tmp_path / 'target', output_loading_info=True
  )
  assert not any(info.values()), info
  again = outputs_of(copy.eval(), vit.model, images)
  if common := expected.keys() & again.keys():
    assert_close({n: again[n] for n in common}, {n: expected[n] for n in common})
  else:  # a backbone, as a classifier without classes, gives the class token
    np.testing.assert_allclose(again['logits'], expected['tokens'][:, 0], atol=1e-5)

  loaded = vit_jax.load(tmp_path / 'target')
  assert loaded.model == vit.model
  assert loaded.preprocessing == vit.preprocessing
  jax.tree.map(np.testing.assert_array_equal, loaded.params, vit.params)
  if FAMILIES[name].is_identical:
    old, new = (
      safetensors.numpy.load_file(tmp_path / each / 'model.safetensors')
      for each in ('source', 'target')
    )
    # Towers alone have another prefix in Transformers 5, which reads both.
    new = {n.removeprefix('' if n in old else 'vision_model.'): x for n, x in new.items()}
    assert old.keys() == new.keys()
    for each in old:
      if not each.endswith('mask_token'):
        np.testing.assert_array_equal(old[each], new[each], err_msg=each)


def load_stored(name: str, size: tuple[int, int]) -> vit_jax.Classifier:
  return vit_jax.load(GOLDEN / 'families' / name.replace(' ', '_'), size)


@pytest.mark.parametrize('size', [SIZE, OTHER_SIZE])
@pytest.mark.parametrize('name', STORED)
def test_stored_outputs(name, size):
  """Those of another size need the interpolation of the family's position embeddings."""
  start = f'{name}/{"x".join(map(str, size))}/'
  expected = {n.removeprefix(start): EXPECTED[n] for n in EXPECTED.files if n.startswith(start)}
  assert_close(our_outputs(load_stored(name, size), images_of_family(size), expected), expected)
