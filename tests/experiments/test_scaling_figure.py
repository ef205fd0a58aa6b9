"""The picture of the scaling experiment: how its lines can be told apart."""

import importlib

import pytest
from etils import epath

from vit_jax.experiments.scaling_figure import draw

CURVES = {'vit': {5: [0.1], 50: [0.3, 0.4]}, 'resnet': {5: [0.2], 50: [0.5]}}


@pytest.mark.parametrize(
  ('kinds', 'labels'),
  [
    (['crop and flip'], ['vit', 'resnet']),
    (
      ['crop and flip', 'strong'],
      ['vit, crop and flip', 'resnet, crop and flip', 'vit, strong', 'resnet, strong'],
    ),
  ],
)
def test_one_legend_tells_kinds_apart(tmp_path, monkeypatch, kinds, labels):
  drawn = []
  figure_class = pytest.importorskip('matplotlib.figure').Figure
  figures = importlib.import_module('matplotlib.figure')
  monkeypatch.setattr(
    figures, 'Figure', lambda **kwargs: drawn.append(figure_class(**kwargs)) or drawn[0]
  )
  of_kinds = dict.fromkeys(kinds, CURVES)
  assert draw({'Accuracy': of_kinds, '10-shot': of_kinds}, epath.Path(tmp_path / 'x.png')) == ''
  (figure,) = drawn
  (legend,) = figure.legends
  assert [text.get_text() for text in legend.get_texts()] == labels
  for axes in figure.axes:
    assert (axes.get_legend(), axes.get_ylabel()) == (None, '')
    looks = [(line.get_color(), line.get_markerfacecolor()) for line in axes.lines]
    assert len(set(looks)) == len(labels)
