"""Mixtures: weights, the union of classes, and components that cannot be mixed."""

import numpy as np
import pytest

from vit_jax.data.sources import Source, open_source, split_names
from vit_jax.data.sources.mixture import is_mixture, open_mixture, parse_mixture
from vit_jax.errors import UserError

CLASSES = {'pets': ('cat', 'dog'), 'birds': ('owl', 'cat', 'hen'), 'more pets': ('cat', 'dog')}
SIZES = {'pets': 4, 'birds': 6, 'more pets': 2}


def open_component(spec: str, split: str) -> Source:
  """Labels run through the classes; a spec ending in '!' is multi-label, with two classes each."""
  name, multi_label = spec.rstrip('!'), spec.endswith('!')
  classes = CLASSES[name]

  def read(i: int):
    if not multi_label:
      return spec.encode(), np.int32(i % len(classes))
    label = np.zeros(len(classes), np.uint8)
    label[[i % len(classes), 0]] = 1
    return spec.encode(), label

  return Source(f'{spec} ({split})', SIZES[name], read, classes, multi_label, fingerprint=spec)


@pytest.mark.parametrize(
  ('spec', 'components'),
  [
    ('3*folder:/a + 1*hf:b', ((3, 'folder:/a'), (1, 'hf:b'))),
    ('folder:/a + hf:b', ((1, 'folder:/a'), (1, 'hf:b'))),
    ('0.25 * digits + .75*tfds:x', ((0.25, 'digits'), (0.75, 'tfds:x'))),
    ('2*digits', ((2, 'digits'),)),
    ('folder:/a+b,c  +  1e:/x*y', ((1, 'folder:/a+b,c'), (1, '1e:/x*y'))),
  ],
)
def test_mixtures_are_parsed(spec, components):
  assert is_mixture(spec)
  assert parse_mixture(spec) == components


@pytest.mark.parametrize('spec', ['digits', 'folder:/a+b', 'folder:/3*x', 'hf:a/b?image=x,y', ''])
def test_other_sources_are_not_mixtures(spec):
  assert not is_mixture(spec)


@pytest.mark.parametrize('spec', ['0*digits + digits', '-1*digits', '3*', '3* + digits'])
def test_an_invalid_component_is_an_error_of_one_sentence(spec):
  with pytest.raises(
    UserError, match='is not a valid component of a mixture; write weight[*]source'
  ):
    open_source(spec, 'train')


@pytest.mark.parametrize(
  'spec',
  [
    '1*folder:/a+1*folder:/b',
    'folder:/a+folder:/b',
    'folder:/a +hf:b',
    'digits + folder:/b+ table:/c.csv',
    '2*folder:/a+3*digits',
  ],
)
def test_the_spaces_around_a_plus_are_named(spec):
  for open_spec in (split_names, lambda spec: open_source(spec, 'train')):
    with pytest.raises(UserError, match=r"write spaces around '\+', as in '3\*folder:/a \+ 1"):
      open_spec(spec)


def test_a_folder_may_have_a_plus_in_its_name(tmp_path):
  for name in ('a+digits/x/1.png', 'a+digits/y/1.png'):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
  assert open_source(f'folder:{tmp_path}/a+digits', 'all').class_names == ('x', 'y')


def test_components_follow_each_other():
  source = open_mixture('3*pets + more pets', 'test', open_component)
  assert (source.size, source.component_sizes, source.weights) == (6, (4, 2), (3.0, 1.0))
  assert (source.name, source.class_names) == ('3*pets + more pets (test)', ('cat', 'dog'))
  assert [source.read(i)[0] for i in range(6)] == [b'pets'] * 4 + [b'more pets'] * 2
  assert source.describe(4) == 'more pets (test), example 0'
  assert source.fingerprint != open_mixture('pets', 'test', open_component).fingerprint


def test_classes_of_the_same_name_are_one_class():
  source = open_mixture('pets + birds', 'train', open_component)
  assert source.class_names == ('cat', 'dog', 'owl', 'hen')
  labels = [source.read(i)[1] for i in range(source.size)]
  assert all(label.dtype == np.int32 and label.shape == () for label in labels)
  named = [source.class_names[label] for label in labels]
  assert named == ['cat', 'dog'] * 2 + ['owl', 'cat', 'hen'] * 2


def test_multi_label_classes_of_the_same_name_are_one_class():
  source = open_mixture('pets! + birds!', 'train', open_component)
  label = source.read(5)[1]
  assert (label.dtype, list(label)) == (np.uint8, [1, 0, 1, 0])
  assert list(source.read(1)[1]) == [1, 1, 0, 0]


def test_single_label_and_multi_label_sources_cannot_be_mixed():
  with pytest.raises(
    UserError, match='pets .train. has one label per image and birds! .train. has several'
  ):
    open_mixture('pets + birds!', 'train', open_component)


def test_each_component_is_opened_with_the_split():
  source = open_source('2*digits + digits', 'train[:10]+test[:5]')
  assert (source.component_sizes, source.size, source.num_classes) == ((15, 15), 30, 10)
  assert split_names('digits + synthetic:imagenet') == ('train',)
  with pytest.raises(UserError, match='digits has the splits'):
    open_source('digits + digits', 'validation')
