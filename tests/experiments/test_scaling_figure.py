"""The picture of the scaling experiment: how its lines can be told apart."""

import importlib

import pytest
from etils import epath

from vit_jax.experiments.scaling_figure import draw

CURVES = {'vit': {5: [0.1], 50: [0.3, 0.4]}, 'resnet': {5: [0.2], 50: [0.5]}}


@pytest.fixture
def drawn(monkeypatch):
  """The figures that are drawn."""
  figures_drawn = []
  figure_class = pytest.importorskip('matplotlib.figure').Figure

  def make(**kwargs):
    figures_drawn.append(figure_class(**kwargs))
    return figures_drawn[-1]

  monkeypatch.setattr(importlib.import_module('matplotlib.figure'), 'Figure', make)
  return figures_drawn


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
def test_one_legend_tells_kinds_apart(tmp_path, drawn, kinds, labels):
  of_kinds = dict.fromkeys(kinds, CURVES)
  assert draw({'Accuracy': of_kinds, '10-shot': of_kinds}, epath.Path(tmp_path / 'x.png')) == ''
  (figure,) = drawn
  (legend,) = figure.legends
  assert [text.get_text() for text in legend.get_texts()] == labels
  for axes in figure.axes:
    assert (axes.get_legend(), axes.get_ylabel()) == (None, '')
    looks = [(line.get_color(), line.get_markerfacecolor()) for line in axes.lines]
    assert len(set(looks)) == len(labels)


def test_runs_of_one_size_are_bars(tmp_path, drawn):
  series = {
    'Accuracy': {'a': {'vit': {50: [0.5, 0.6]}, 'resnet': {50: [0.7]}}, 'b': {'vit': {50: [0.8]}}},
    '10-shot': {},  # not measured
  }
  assert draw(series, epath.Path(tmp_path / 'x.png')) == ''
  (figure,) = drawn
  accuracy, shots = figure.axes
  assert [text.get_text() for text in accuracy.get_yticklabels()] == [
    'vit, a',
    'resnet, a',
    'vit, b',
  ]
  assert [text.get_text() for text in accuracy.texts] == ['55.0%', '70.0%', '80.0%']
  widths = [bar.get_width() for bar in accuracy.patches]
  assert widths == pytest.approx([0.55, 0.7, 0.8])
  assert not shots.patches
