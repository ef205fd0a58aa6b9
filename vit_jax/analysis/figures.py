"""Matplotlib figures of images, of what the other functions of `vit_jax.analysis` return, of runs.

Each returns a `matplotlib.figure.Figure`, which notebooks show and `figure.savefig(path)` writes.
Matplotlib is optional: without it, they raise `UserError`.

Shapes: L layers (blocks), K heads, N tokens, P patch size, h w grid of patches.
"""

import importlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from vit_jax.errors import UserError, first_line
from vit_jax.files import user_path
from vit_jax.run_metrics import read_metrics


def draw_images(
  images: Sequence[np.ndarray],
  titles: Sequence[str] = (),
  columns: int = 4,
  correct: Sequence[bool] = (),
) -> Any:
  """A grid of images.

  Args:
    images: at least one, each (H, W, C) float in [-1, 1], as `vit.preprocess` returns them.
    titles: of the images, if any.
    columns: of the grid, if there are as many images.
    correct: for each image, whether its title is green or red; without it, titles are black.
  """
  columns = min(columns, len(images))
  rows = math.ceil(len(images) / columns)
  lines = max((title.count('\n') + 1 for title in titles), default=0)
  side = min(2.2, 10 / columns)
  figure = _figure(side * columns, (side + 0.18 * lines) * rows)
  for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
    axes.set_axis_off()
    if index < len(images):
      _show_image(axes, images[index])
    if index < len(titles):
      color = ('tab:red', 'tab:green')[bool(correct[index])] if len(correct) else 'black'
      axes.set_title(titles[index], fontsize='small', color=color)
  return figure


def draw_patches(image: np.ndarray, patch_size: int) -> Any:
  """An image beside the patches that a Vision Transformer cuts it into, row by row (Figure 1).

  Args:
    image: (H, W, C) float in [-1, 1]; `patch_size` divides H and W.
    patch_size: pixels.
  """
  height, width, channels = image.shape
  grid = height // patch_size, width // patch_size
  gap = max(1, patch_size // 4)
  patches = np.asarray(image).reshape(grid[0], patch_size, grid[1], patch_size, channels)
  margins = ((0, 0), (0, gap), (0, 0), (0, gap), (0, 0))
  spread = np.pad(patches, margins, constant_values=1)  # white
  spread = spread.reshape(grid[0] * (patch_size + gap), grid[1] * (patch_size + gap), channels)
  figure = _figure(9, 4.5)
  for axes, pixels in zip(figure.subplots(1, 2), (image, spread[:-gap, :-gap]), strict=True):
    _show_image(axes, pixels)
    axes.set_axis_off()
  return figure


def draw_learning_curve(workdir: epath.PathLike) -> Any:
  """The losses and the test accuracy of a run, also of one that is not finished, by steps.

  Raises:
    UserError: for a workdir without metrics.
  """
  try:
    lines = read_metrics(user_path(workdir))
  except (OSError, ValueError) as error:
    raise UserError(f'{workdir} has no metrics of a run ({first_line(error)}).') from None
  figure = _figure(9, 3.2)
  left, right = figure.subplots(1, 2)
  left.set(title='loss', xlabel='step', yscale='log')
  right.set(title='test accuracy', xlabel='step', ylim=(0, 1.03))
  right.yaxis.set_major_formatter('{x:.0%}')
  curves = (
    (left, 'train/loss', dict(color='tab:gray', label='training')),
    (left, 'test/loss', dict(color='tab:blue', label='test', marker='o', markersize=4)),
    (right, 'test/accuracy', dict(color='tab:blue', marker='o', markersize=4)),
  )
  for axes, name, look in curves:
    points = [(line['step'], line[name]) for line in lines if name in line]
    axes.plot([step for step, _ in points], [value for _, value in points], **look)
    axes.grid(alpha=0.3)
  left.legend()
  return figure


def draw_calibration(bins: np.ndarray) -> Any:
  """A reliability diagram of `calibration_bins`, (3, bins), and how confident the model is.

  Bars are the accuracies of the bins; where they reach the diagonal, an image that is given the
  probability p is correct with probability p.
  """
  counts, correct, _ = bins
  edges = np.linspace(0, 1, len(counts) + 1)
  accuracies = correct / np.maximum(counts, 1)
  figure = _figure(9, 3.6)
  left, right = figure.subplots(1, 2)
  look = dict(width=1 / len(counts), align='edge', color='tab:blue', edgecolor='white')
  left.bar(edges[:-1], accuracies, **look)
  left.plot([0, 1], [0, 1], '--', color='tab:gray', label='perfectly calibrated')
  left.set(xlabel='probability of the top class', ylabel='accuracy', xlim=(0, 1), ylim=(0, 1))
  left.legend(loc='upper left')
  right.bar(edges[:-1], counts / max(counts.sum(), 1), **look)
  right.set(xlabel='probability of the top class', ylabel='share of the images', xlim=(0, 1))
  return figure


def draw_overlay(image: np.ndarray, patch_map: np.ndarray, title: str = '') -> Any:
  """An image beside itself under a map of its patches: `attention_map`, `relevance`.

  Args:
    image: (H, W, 1 or 3) float in [-1, 1].
    patch_map: (h, w); the colors span 0 to its largest value.
    title: of the map.
  """
  figure = _figure(8, 4)
  plain, overlay = figure.subplots(1, 2)
  for axes in (plain, overlay):
    _show_image(axes, image)
  _show_map(overlay, image, patch_map)
  overlay.set_title(title)
  return figure


def draw_attention(weights: np.ndarray, token: int, grid: tuple[int, int]) -> Any:
  """What one token attends to: a row for each layer, a column for each head.

  Args:
    weights: (L, K, N, N), those of `attention` of one image.
    token: in [0, N); 0 is the class token where there is one.
    grid: (h, w); the last h w tokens are the patches. The colors of each map span its own values.
  """
  layers, heads, num_tokens, _ = weights.shape
  if not 0 <= token < num_tokens:
    raise UserError(f'There is no token {token}; the image has {num_tokens} tokens.')
  figure = _figure(1.1 * heads + 0.5, 1.1 * layers + 0.3)
  panels = figure.subplots(layers, heads, squeeze=False)
  maps = np.asarray(weights)[:, :, token, num_tokens - grid[0] * grid[1] :]
  for (layer, head), axes in np.ndenumerate(panels):
    axes.imshow(maps[layer, head].reshape(grid), vmin=0, cmap='magma')
    axes.set(xticks=[], yticks=[])
    if head == 0:
      axes.set_ylabel(f'block {layer}')
    if layer == 0:
      axes.set_title(f'head {head}', fontsize='medium')
  return figure


def draw_attention_distance(distances: np.ndarray) -> Any:
  """`attention_distance`, (L, K) pixels: a point for each head of a block (Figure 7, right)."""
  figure = _figure(5, 4)
  axes = figure.subplots()
  for head, of_head in enumerate(np.asarray(distances).T):
    axes.plot(of_head, 'o', markersize=4, color=f'C{head % 10}')
  axes.set(xlabel='block', ylabel='mean attention distance (pixels)')
  axes.set_ylim(bottom=0)
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.grid(alpha=0.3)
  return figure


def draw_filters(components: np.ndarray, columns: int = 7) -> Any:
  """`filters`, (n, P, P, channels), each scaled to its largest magnitude (Figure 7, left)."""
  count = len(components)
  rows = math.ceil(count / columns)
  figure = _figure(0.8 * columns, 0.8 * rows + 0.3)
  for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
    axes.set_axis_off()
    if index < count:
      _show_image(axes, components[index] / np.abs(components[index]).max())
  return figure


def draw_position_similarity(similarity: np.ndarray) -> Any:
  """`position_similarity`, (h, w, h, w): a map for each patch at its place (Figure 7, center)."""
  rows, columns = similarity.shape[:2]
  figure = _figure(6 * columns / max(rows, columns) + 1, 6 * rows / max(rows, columns) + 0.5)
  axes = figure.subplots()
  tiles = np.pad(similarity, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
  tiles = tiles.swapaxes(1, 2).reshape(rows * (rows + 1), columns * (columns + 1))
  image = axes.imshow(tiles[:-1, :-1], vmin=-1, vmax=1, cmap='viridis', interpolation='nearest')
  for set_ticks, count in ((axes.set_yticks, rows), (axes.set_xticks, columns)):
    shown = range(0, count, math.ceil(count / 16))
    set_ticks([(i + 0.5) * (count + 1) - 1 for i in shown], [f'{i}' for i in shown])
  axes.set(xlabel='column of the patch', ylabel='row of the patch')
  figure.colorbar(image, label='cosine similarity')
  return figure


def _figure(width: float, height: float) -> Any:
  """A figure of so many inches."""
  try:
    figures = importlib.import_module('matplotlib.figure')
  except ImportError:
    raise UserError(
      "Figures need the package matplotlib; run pip install 'vit_jax[figures]'."
    ) from None
  return figures.Figure(figsize=(width, height), layout='constrained')


def _show_image(axes: Any, image: np.ndarray) -> None:
  """Shows (H, W, 1 or 3) in [-1, 1]; of other channels their mean."""
  pixels = np.asarray(image, np.float32) / 2 + 0.5
  pixels = pixels if pixels.shape[-1] == 3 else pixels.mean(-1)
  axes.imshow(np.clip(pixels, 0, 1), cmap='gray', vmin=0, vmax=1)
  axes.set(xticks=[], yticks=[])


def _show_map(axes: Any, image: np.ndarray, patch_map: np.ndarray) -> None:
  height, width = image.shape[:2]
  corners = (-0.5, width - 0.5, height - 0.5, -0.5)
  look = dict(cmap='magma', alpha=0.65, interpolation='bilinear')
  axes.imshow(np.asarray(patch_map), vmin=0, extent=corners, **look)
