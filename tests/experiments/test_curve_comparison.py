"""Which of two curves is higher where, in words."""

import pytest

from vit_jax.experiments.curve_comparison import compare_curves, compare_pair

LOW, LEVEL, HIGH = (0.1, 0.2), (0.3, 0.6), (0.7, 0.9)


@pytest.mark.parametrize(
  ('vit', 'sentence'),
  [
    ({5: LOW, 50: LOW, 500: LOW}, 'resnet leads vit at all sizes.'),
    ({5: LOW, 50: HIGH, 500: HIGH}, 'vit passes resnet between 5 and 50 examples.'),
    (
      {5: LOW, 50: LEVEL, 500: HIGH},
      'vit passes resnet between 5 and 500 examples; at 50 examples they differ by no more than '
      'their seeds do.',
    ),
    (
      {5: HIGH, 50: LOW, 500: HIGH},
      'resnet passes vit between 5 and 50 examples, vit passes resnet between 50 and 500 examples.',
    ),
    (
      {5: LEVEL, 50: LEVEL, 500: HIGH},
      'vit leads resnet at 500 examples; at 5 and 50 examples they differ by no more than their '
      'seeds do.',
    ),
    ({5: LEVEL}, 'vit and resnet differ by no more than their seeds do at 5 examples.'),
    ({5: LEVEL, 50: LEVEL}, 'vit and resnet differ by no more than their seeds do at all sizes.'),
    ({6: LEVEL}, ''),
  ],
)
def test_two_curves_in_words(vit, sentence):
  resnet = {5: (0.4, 0.45), 50: (0.5, 0.52), 500: (0.6, 0.65)}
  assert compare_pair('vit', vit, 'resnet', resnet) == sentence


@pytest.mark.parametrize(
  ('vit', 'sentence'),
  [
    (
      {5: (0.1,), 50: (0.9,), 500: (0.6499,)},
      'vit minus resnet in percentage points: -35.0 at 5, +40.0 at 50, +0.0 at 500 examples '
      '(one seed).',
    ),
    (  # a part of the runs is finished
      {5: LOW, 50: HIGH, 500: (0.75,)},
      'vit passes resnet between 5 and 50 examples. vit minus resnet in percentage points: +10.0 '
      'at 500 examples (one seed).',
    ),
    (
      {5: LOW, 500: (0.75,)},
      'resnet leads vit at 5 examples. vit minus resnet in percentage points: +10.0 at 500 '
      'examples (one seed).',
    ),
  ],
)
@pytest.mark.parametrize('seeds', [1, 2])
def test_with_one_seed_nobody_leads(vit, sentence, seeds):
  resnet = {5: (0.45, 0.45), 50: (0.5, 0.5), 500: (0.65,) * seeds}
  assert compare_pair('vit', vit, 'resnet', resnet) == sentence


def test_all_pairs_are_compared():
  curves = {'a': {5: (0.1, 0.1)}, 'b': {5: (0.2, 0.2)}, 'c': {5: (0.3, 0.3)}}
  assert compare_curves(curves) == [
    'b leads a at 5 examples.',
    'c leads a at 5 examples.',
    'c leads b at 5 examples.',
  ]


def test_many_are_compared_with_the_first():
  curves = {name: {5: (0.1 * i, 0.1 * i)} for i, name in enumerate('abcde')}
  assert compare_curves(curves) == [f'{name} leads a at 5 examples.' for name in 'bcde']
