"""The picture of a confusion matrix has a cell for each pair of classes, up to 1,000 of them."""

import numpy as np
import pytest

from vit_jax.evaluation.reports import confusion_picture


@pytest.mark.parametrize('num_classes', [2, 10, 21, 51, 600, 1000])
def test_a_cell_is_dark_where_the_share_is_large(num_classes):
  matrix = np.eye(num_classes, dtype=int) * 7
  matrix[0, :2] = 0, 7  # the first class is always taken for the second
  names = ['ÿ', '猫', *('class' * 9 for _ in range(num_classes - 2))]
  pixels = np.asarray(confusion_picture.draw(matrix, names))
  assert pixels.ndim == 3 and max(pixels.shape) < 1600
  cell = min(1000 // num_classes, 48)
  is_edge = (pixels == 128).all(axis=2)  # of the matrix
  rows = np.flatnonzero(is_edge.sum(axis=1) >= cell * num_classes)
  columns = np.flatnonzero(is_edge.sum(axis=0) >= cell * num_classes)
  inside = pixels[rows[0] + 1 : rows[1], columns[0] + 1 : columns[1]]
  assert inside.shape == (cell * num_classes, cell * num_classes, 3)
  is_dark = inside[::cell, ::cell].sum(axis=2) < 300  # the corner of a cell has no text
  np.testing.assert_array_equal(is_dark, matrix > 0)


def test_names_are_written_with_the_letters_that_the_font_has():
  texts = confusion_picture._tick_texts(['Käse', '猫', 'x' * 40, 'a\nb'])
  assert texts == {0: 'Kase', 1: '1', 2: 'x' * 21 + '...', 3: 'a\\nb'}
  assert list(confusion_picture._tick_texts(['x'] * 1000)) == list(range(0, 1000, 100))


@pytest.mark.parametrize(
  ('count', 'text'), [(1, '1'), (9999, '9999'), (10_000, '10k'), (999_999, '999k'), (10**6, '1M')]
)
def test_counts_have_at_most_four_characters(count, text):
  assert confusion_picture._short_count(count) == text
