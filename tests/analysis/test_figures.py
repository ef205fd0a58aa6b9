"""Figures: what they show is what was computed."""

import sys

import numpy as np
import pytest

from tests.analysis.models import noise, tiny
from tests.helpers import write_finished_run
from vit_jax import analysis
from vit_jax.errors import UserError


@pytest.fixture(scope='module')
def vit():
  pytest.importorskip('matplotlib')
  return tiny((8, 12))


def size(figure) -> int:
  figure.canvas.draw()  # all of it can be drawn
  return len(figure.axes)


def test_an_overlay_shows_the_map_on_the_image(vit):
  images = noise(vit)
  patch_map = np.random.default_rng(0).uniform(size=(2, 3))
  figure = analysis.draw_overlay(images[0], patch_map, 'rollout')
  assert size(figure) == 2
  image, overlay = figure.axes[1].images
  np.testing.assert_array_equal(overlay.get_array(), patch_map)
  assert [*overlay.get_extent()] == [*image.get_extent()] == [-0.5, 11.5, 7.5, -0.5]
  assert figure.axes[1].get_title() == 'rollout'


def test_an_overlay_on_a_gray_image():
  pytest.importorskip('matplotlib')
  assert size(analysis.draw_overlay(np.zeros((8, 8, 1)), np.ones((2, 2)))) == 2


def test_attention_of_all_heads_and_layers(vit):
  weights = np.asarray(analysis.attention(vit, noise(vit)))[0]
  figure = analysis.draw_attention(weights, 3, (2, 3))
  assert size(figure) == 4
  panel = figure.axes[2]  # of the second layer, the first head
  np.testing.assert_array_equal(panel.images[0].get_array().ravel(), weights[1, 0, 3, 1:])
  assert (panel.get_ylabel(), figure.axes[1].get_title()) == ('block 1', 'head 1')
  with pytest.raises(UserError, match='no token 7'):
    analysis.draw_attention(weights, 7, (2, 3))


def test_distances_are_points_over_the_depth(vit):
  distances = np.arange(6.0).reshape(3, 2)
  figure = analysis.draw_attention_distance(distances)
  assert size(figure) == 1
  points = [line.get_ydata() for line in figure.axes[0].lines]
  np.testing.assert_array_equal(np.transpose(points), distances)


def test_filters_and_positions(vit):
  figure = analysis.draw_filters(analysis.filters(vit, 9))
  assert size(figure) == 14 and [len(axes.images) for axes in figure.axes[7:10]] == [1, 1, 0]
  similarity = analysis.position_similarity(vit)
  figure = analysis.draw_position_similarity(similarity)
  assert size(figure) == 2  # with the scale
  shown = figure.axes[0].images[0].get_array()
  np.testing.assert_array_equal(shown[3:5, 4:7], similarity[1, 1])


def test_a_grid_of_images_with_titles_in_the_color_of_right_and_wrong(vit):
  images = noise(vit)
  figure = analysis.draw_images([*images, *images, images[0]], ['cat', 'dog'], 3, [True, False])
  assert size(figure) == 6 and not figure.axes[5].images
  shown = figure.axes[4].images[0].get_array()
  np.testing.assert_allclose(shown, images[0] / 2 + 0.5, atol=1e-6)
  titles = [(axes.get_title(), axes.title.get_color()) for axes in figure.axes[:2]]
  assert titles == [('cat', 'tab:green'), ('dog', 'tab:red')]
  assert size(analysis.draw_images(images[:1])) == 1


def test_patches_stand_apart_at_their_places(vit):
  image = noise(vit)[0]
  figure = analysis.draw_patches(image, 4)
  assert size(figure) == 2
  whole, apart = (np.asarray(axes.images[0].get_array()) for axes in figure.axes)
  assert whole.shape == (8, 12, 3) and apart.shape == (9, 14, 3)
  np.testing.assert_array_equal(apart[5:9, 10:14], whole[4:8, 8:12])
  assert (apart[4] == 1).all() and (apart[:, 9] == 1).all()


def test_a_learning_curve_has_the_metrics_of_the_run(tmp_path):
  pytest.importorskip('matplotlib')
  write_finished_run(tmp_path / 'run', 0.75, loss=0.5)
  figure = analysis.draw_learning_curve(tmp_path / 'run')
  assert size(figure) == 2
  (losses, accuracy) = figure.axes[0].lines[1], figure.axes[1].lines[0]
  assert [*losses.get_xdata()] == [6] and [*losses.get_ydata()] == [0.5]
  assert [*accuracy.get_xdata()] == [3, 6] and [*accuracy.get_ydata()] == [0, 0.75]
  with pytest.raises(UserError, match='no metrics of a run'):
    analysis.draw_learning_curve(tmp_path)


def test_bars_of_the_calibration_are_the_accuracies_of_bins():
  pytest.importorskip('matplotlib')
  figure = analysis.draw_calibration(np.array([[4.0, 0, 12], [1, 0, 12], [0.5, 0, 11]]))
  assert size(figure) == 2
  heights = [[bar.get_height() for bar in axes.patches] for axes in figure.axes]
  assert heights == [[0.25, 0, 1], [0.25, 0, 0.75]]


def test_without_matplotlib_one_sentence_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
  with pytest.raises(UserError, match=r'vit_jax\[figures\]'):
    analysis.draw_attention_distance(np.zeros((2, 2)))
