"""Models are scored over the classes that the data has, whatever their order and their names."""

import numpy as np
import pytest

import vit_jax
from tests.helpers import GOLDEN, write_images
from vit_jax.config import EvalConfig
from vit_jax.data import imagenet
from vit_jax.data.sources import Source, open_source
from vit_jax.errors import UserError
from vit_jax.evaluation.class_subset import describe_outputs, find_outputs
from vit_jax.evaluation.score import score

IDS = imagenet.synsets()
NAMES = imagenet.class_names(IDS)


def make_source(names) -> Source:
  return Source('x', 1, lambda i: (b'', np.int32(0)), tuple(names))


@pytest.mark.parametrize('model', [None, IDS, NAMES])
def test_outputs_of_imagenet_are_named_in_several_ways(model):
  everything = tuple(range(1000))
  assert find_outputs(model, 1000, make_source(IDS)) == everything
  assert find_outputs(model, 1000, make_source(NAMES)) == everything
  as_text = sorted(map(str, everything))  # as the folders of ImageNet-V2 are sorted
  assert as_text[:3] == ['0', '1', '10']
  assert find_outputs(model, 1000, make_source(as_text))[:3] == (0, 1, 10)
  assert find_outputs(model, 1000, make_source([IDS[7], IDS[3]])) == (7, 3)
  assert find_outputs(model, 1000, make_source([NAMES[3], NAMES[7]])) == (3, 7)
  assert describe_outputs(everything[::-1], 1000) == ''


def test_classes_of_imagenet_that_imagenet_21k_has_are_scored():
  ids_21k = imagenet.synsets('21k')
  shared = [synset for synset in IDS if synset in ids_21k]
  outputs = find_outputs(None, 21843, make_source(shared))
  assert [ids_21k[i] for i in outputs] == shared and len(shared) == 999
  assert describe_outputs(outputs, 21843) == '999 of 21,843 classes'
  with pytest.raises(UserError, match='not expected: teddy, teddy bear'):
    find_outputs(imagenet.class_names_of_head(21843), 21843, make_source(IDS))


@pytest.mark.parametrize(('name', 'first'), [('ImageNet-A', 6), ('ImageNet-R', 1)])
def test_published_subsets_are_recognized(name, first):
  outputs = sorted(imagenet.subsets()[name])
  assert (len(outputs), outputs[0]) == (200, first)
  assert describe_outputs(outputs, 1000) == f'200 of 1,000 classes (those of {name})'
  assert describe_outputs(outputs[1:], 1000) == '199 of 1,000 classes'


@pytest.mark.parametrize('names', [['ant', 'cow'], ['ant', 'ant'], ['0', '1'], ['1', '2', '3']])
def test_other_classes_are_refused(names):
  with pytest.raises(UserError, match='missing: .*bee'):
    find_outputs(['ant', 'bee', 'cat'], 3, make_source(names))


def test_classes_without_names_are_told_by_their_number():
  assert find_outputs(None, 3, make_source('abc')) == (0, 1, 2)
  assert find_outputs(None, 3, make_source('201')) == (2, 0, 1)
  with pytest.raises(UserError, match='2 classes, but the model has 3'):
    find_outputs(None, 3, make_source('ab'))


def test_logits_of_other_classes_are_masked(tmp_path):
  vit = vit_jax.load(GOLDEN / 'vit_gap.npz').with_head(4, ['ant', 'bee', 'cat', 'dog'])
  rng = np.random.default_rng(0)
  vit.params['head']['kernel'] = rng.normal(size=vit.params['head']['kernel'].shape).astype('f')
  write_images(tmp_path, {f'test/{name}/{i}.png': (9, 9) for name in ('bee', 'dog') for i in '123'})
  config = EvalConfig(source=f'folder:{tmp_path}', split='test', batch_size=8)
  scores = score(vit, {'classification': config})
  report, outcome = scores.to_json(), scores.outcomes['classification']

  source = open_source(f'folder:{tmp_path}', 'test')
  images = vit.preprocess([source.describe(i) for i in range(source.size)])
  logits = np.array(vit(images))
  logits[:, [0, 2]] = -np.inf
  probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  labels = np.repeat([1, 3], 3)
  assert report['classes'] == '2 of 4 classes' and report['examples'] == 6
  assert report['accuracy'] == np.mean(logits.argmax(axis=1) == labels)
  losses = -np.log(probabilities[range(6), labels])
  np.testing.assert_allclose(report['loss'], losses.mean(), rtol=1e-5)
  np.testing.assert_allclose(outcome.rows.confidence, probabilities.max(axis=1), rtol=1e-5)
  assert outcome.class_names == ('bee', 'dog')
  assert ', over 2 of 4 classes: accuracy' in list(scores.lines())[1]
  assert report['preprocessing']['pixel_range'] == (-1, 1)
