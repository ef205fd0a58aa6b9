"""Which of two curves is higher where, in words."""

import pytest

from vit_jax.experiments.curve_comparison import compare_curves, compare_pair


@pytest.mark.parametrize(
  ('vit', 'sentence'),
  [
    ({5: (0.1, 0.2), 50: (0.3,), 500: (0.4,)}, 'resnet leads vit at all sizes.'),
    ({5: (0.1, 0.2), 50: (0.7,), 500: (0.9,)}, 'vit passes resnet between 5 and 50 examples.'),
    (  # at 50 examples the seeds overlap
      {5: (0.1, 0.2), 50: (0.3, 0.6), 500: (0.9,)},
      'vit passes resnet between 5 and 500 examples.',
    ),
    (
      {5: (0.9,), 50: (0.3,), 500: (0.9,)},
      'resnet passes vit between 5 and 50 examples, vit passes resnet between 50 and 500 examples.',
    ),
    (
      {5: (0.1, 0.4), 50: (0.5,), 500: (0.9,)},
      'vit leads resnet at 500 examples; at 5 and 50 they differ by no more than their seeds do.',
    ),
    ({5: (0.3, 0.4)}, 'vit and resnet differ at no size by more than their seeds do.'),
    ({6: (0.3, 0.4)}, ''),
  ],
)
def test_two_curves_in_words(vit, sentence):
  resnet = {5: (0.3, 0.35), 50: (0.5, 0.52), 500: (0.6, 0.65)}
  assert compare_pair('vit', vit, 'resnet', resnet) == sentence


def test_all_pairs_are_compared():
  curves = {'a': {5: (0.1,)}, 'b': {5: (0.2,)}, 'c': {5: (0.3,)}}
  assert compare_curves(curves) == [
    'b leads a at 5 examples.',
    'c leads a at 5 examples.',
    'c leads b at 5 examples.',
  ]
