"""What a model sees, as one HTML file: `explain` an image, then `render` all of them.

The page needs no network. Its policy allows only its own script.
"""

import base64
import collections
import dataclasses
import difflib
from collections.abc import Sequence

import numpy as np

from vit_jax.analysis.attention_weights import (
  attention_and_pooling,
  token_attention_model,
  token_grid,
)
from vit_jax.analysis.embeddings import filters, position_similarity
from vit_jax.analysis.pages import heat_maps
from vit_jax.analysis.pages.compact_attention import CompactAttention, compact
from vit_jax.analysis.relevance import relevance
from vit_jax.analysis.rollout import attention_distance, pooled_map, rollout
from vit_jax.classifier import Classifier
from vit_jax.errors import UserError
from vit_jax.models.positions import ADDED
from vit_jax.templates import environment, inline_file, policy

MAX_CLASSES = 8  # that are chosen
NUM_FILTERS = 28  # as in Figure 7
_PACKAGE = 'vit_jax.analysis.pages'
_TEMPLATES = environment(_PACKAGE)
_READERS = {
  'token': 'the class token',
  'gap': 'the mean of all patches',
  'map': 'the query of the attention pooling',
  'token_gap': 'the class token and the mean of all patches',
  'distilled': 'the class token and the distillation token',
}


@dataclasses.dataclass(frozen=True)
class PatchMap:
  """A map (h, w) of an image and what it is of; `share` is the probability of a class."""

  title: str
  values: np.ndarray
  share: float | None = None

  @property
  def uri(self) -> str:
    """The map as a picture: square roots, because few patches have much larger values."""
    low, high = self.values.min(), self.values.max()
    return heat_maps.overlay_uri(np.sqrt((self.values - low) / max(high - low, 1e-30)))

  @property
  def peak(self) -> tuple[int, int]:
    """(row, column) of the largest value, from 1."""
    row, column = np.unravel_index(self.values.argmax(), self.values.shape)
    return int(row) + 1, int(column) + 1


@dataclasses.dataclass(frozen=True)
class ExplainedImage:
  """What a page shows of an image."""

  name: str
  pixels: np.ndarray  # (H, W, C) in [-1, 1]
  top: Sequence[tuple[int, str, float]]  # (class, label, probability)
  seen: PatchMap
  of_classes: Sequence[PatchMap]
  attention: CompactAttention
  distances: np.ndarray  # (L, K) pixels


def resolve_classes(vit: Classifier, texts: Sequence[str]) -> list[int]:
  """The numbers of classes that a user names; each text is a label, the part of one before its
  first comma, a number, or several of these with commas between.

  Raises:
    UserError: for a class that the model does not have, or more than `MAX_CLASSES`.
  """
  if texts and not vit.model.num_classes:
    raise UserError('The model has no head, and so no classes; leave out --classes.')
  labels = [vit.label(i) for i in range(vit.model.num_classes)]
  synonyms = [label.split(',')[0] for label in labels]  # of ImageNet's 'tabby, tabby cat'
  count = collections.Counter(synonyms)
  names = {name: i for i, name in enumerate(synonyms) if count[name] == 1}
  names |= {label: i for i, label in reversed(list(enumerate(labels)))}

  def find(text: str) -> int | None:
    text = text.strip()
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
    valid = number is not None and number < vit.model.num_classes
    return names.get(text, number if valid else None)

  indices = []
  for text in texts:
    for part in [text] if find(text) is not None else text.split(','):
      index = find(part)
      if index is None:
        close = difflib.get_close_matches(part.strip()[:100], names, 3, 0.5)
        hint = f'did you mean {" or ".join(close)}?' if close else 'name a label or its number.'
        raise UserError(f'The model has no class {part.strip()[:100]!r}; {hint}')
      indices.append(index)
  if len(set(indices)) > MAX_CLASSES:
    raise UserError(f'There are {len(set(indices))} classes; choose at most {MAX_CLASSES}.')
  return list(dict.fromkeys(indices))


def resolve_layers(text: str | None, depth: int) -> list[int]:
  """'-1,0' -> [0, 11], None -> all; raises `UserError` for blocks that there are not."""
  try:
    layers = [range(depth)[int(part)] for part in text.split(',')] if text else range(depth)
  except (ValueError, IndexError):
    raise UserError(
      f'--layers is {text!r}; it takes numbers from {-depth} to {depth - 1}, such as 0,-1.'
    ) from None
  return sorted(set(layers))


def explain(
  vit: Classifier,
  name: str,
  pixels: np.ndarray,
  top_k: int,
  classes: Sequence[int],
  layers: Sequence[int],
  factor: int,
) -> ExplainedImage:
  """All that a page shows of one image.

  Args:
    vit: a Vision Transformer; without a head no class is explained.
    name, pixels: of the image, (H, W, C) as `vit.preprocess` returns it.
    top_k: classes to list.
    classes: explained besides the most probable one; none: the second most probable one.
    layers: blocks whose attention is shown, in [0, depth).
    factor: as for `compact`.
  """
  model, (prefix, grid) = token_attention_model(vit.model), token_grid(vit)
  images = pixels[None]
  weights, pooled = attention_and_pooling(vit, images)
  seen = np.asarray(pooled_map(rollout(weights), pooled, prefix, grid))[0]
  weights = np.asarray(weights)
  top, of_classes = [], []
  if model.num_classes:
    probabilities = np.asarray(vit.probabilities(images))[0]
    top = vit.top_classes(probabilities, max(top_k, 2))
    chosen = list(dict.fromkeys([top[0][0], *(classes or [row[0] for row in top[1:2]])]))
    maps = np.asarray(relevance(vit, images, [chosen]))[0]
    of_classes = [
      PatchMap(vit.label(index), values, float(probabilities[index]))
      for index, values in zip(chosen, maps, strict=True)
    ]
  return ExplainedImage(
    name,
    pixels,
    top[:top_k],
    PatchMap(_READERS[model.pool], seen),
    of_classes,
    compact(weights[0][list(layers)], prefix, grid, factor),
    attention_distance(weights, grid, model.patch_size),
  )


def render(
  vit: Classifier, name: str, layers: Sequence[int], images: Sequence[ExplainedImage]
) -> str:
  """The page as text. `name` is the model's; `layers` are those that were explained."""
  ramp = heat_maps.color_ramp()
  script = inline_file(_PACKAGE, 'explain_page.js')
  distances = np.mean([image.distances for image in images], axis=0)
  model, similarity = token_attention_model(vit.model), None
  if model.position_embedding in ADDED:
    similarity = heat_maps.similarity_uri(position_similarity(vit))
  return _TEMPLATES.get_template('explain_page.html.j2').render(
    name=name,
    model=model,
    size=vit.image_size,
    images=images,
    layers=list(layers),
    style=inline_file(_PACKAGE, 'explain_page.css'),
    script=script,
    policy=policy(script),
    ramp=base64.b64encode(ramp.tobytes()).decode(),
    image_uri=heat_maps.image_uri,
    filters=[heat_maps.filter_uri(each) for each in filters(vit, NUM_FILTERS)],
    similarity=similarity,
    distances=distances,
    farthest=_scale_end(float(distances.max())),
  )


def _scale_end(value: float) -> float:
  """The end of a scale of four steps, which are 1, 2, 2.5 or 5 times a power of ten."""
  power = 10.0 ** np.floor(np.log10(max(value / 4, 1e-6)))
  return 4 * next(float(power * step) for step in (1, 2, 2.5, 5, 10) if 4 * power * step >= value)
