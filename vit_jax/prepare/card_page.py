"""The data card as one HTML file, with pictures of each class."""

from collections.abc import Iterable, Mapping

from PIL import Image

from vit_jax.data.decoding.images import decode_image
from vit_jax.data_uri import picture_uri
from vit_jax.prepare.card import Card, class_counts, list_warnings, min_median_max
from vit_jax.templates import environment

MAX_CLASSES = 1000  # that are shown with pictures
_MAX_CLASSES_WITH_SEVERAL = 100  # beyond this number of classes, each has one picture
_THUMBNAIL_HEIGHT = 96  # pixels
_MAX_BARS = 12


_TEMPLATES = environment('vit_jax.prepare')
_TEMPLATES.filters['megabytes'] = lambda size: f'{size / 1e6:,.1f} MB'


def _thumbnail(data: bytes) -> str:
  """Returns a data URI."""
  image = Image.fromarray(decode_image(data, 'a thumbnail'))
  image.thumbnail((_THUMBNAIL_HEIGHT * 2, _THUMBNAIL_HEIGHT))
  return picture_uri(image, quality=70)


def _histogram(counts: Mapping[int, int]) -> list[tuple[str, int]]:
  """Returns (range, count) for at most `_MAX_BARS` ranges of equal width."""
  minimum, _, maximum = min_median_max(counts)
  step = max(1, -(-(maximum - minimum + 1) // _MAX_BARS))
  bars = [0] * ((maximum - minimum) // step + 1)
  for value, count in counts.items():
    bars[(value - minimum) // step] += count
  starts = range(minimum, maximum + 1, step)
  labels = [f'{start}-{start + step - 1}' if step > 1 else f'{start}' for start in starts]
  return list(zip(labels, bars, strict=True))


def render(card: Card, images: Iterable[tuple[int, bytes]]) -> str:
  """Returns the page; `images` are (class, content of an image file), a few per class."""
  thumbnails: dict[int, list[str]] = {}
  one_each = len(card.class_names) > _MAX_CLASSES_WITH_SEVERAL
  for label, data in images:
    if not (one_each and label in thumbnails):
      thumbnails.setdefault(label, []).append(_thumbnail(data))
  return _TEMPLATES.get_template('card_page.html.j2').render(
    card=card,
    warnings=list_warnings(card),
    class_counts={split: class_counts(card, split) for split in card.splits},
    thumbnails=thumbnails,
    histogram=_histogram,
    min_median_max=min_median_max,
  )
