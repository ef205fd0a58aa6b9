"""A confusion matrix as a picture: rows are labels, columns top classes, darker is more."""

import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vit_jax.text import printable

MAX_CLASSES = 1000
_SIDE = 1000  # pixels, of the matrix of many classes
_MAX_CELL = 48
_MAX_NAMED, _MAX_COUNTED = 50, 20  # classes whose names, and whose counts are written
_NAME_LENGTH = 24
_MARGIN, _LEGEND = 12, 40
_WHITE, _BLUE = np.array([255, 255, 255]), np.array([8, 48, 107])


def draw(matrix: np.ndarray, class_names: Sequence[str]) -> Image.Image:
  """Draws a confusion matrix.

  A cell's darkness is the square root of its share of the label's examples, so that rare confusions
  are seen; the scale below shows it. Of up to 50 classes the names are written, of up to 20 the
  counts; of others the numbers of some classes. Names lose their accents; one without any letter of
  ASCII is the number of the class.

  Args:
    matrix: (C, C) integers, the examples by (label, top class); C is at most `MAX_CLASSES`.
    class_names: C of them.

  Returns:
    An RGB image.
  """
  num_classes = len(class_names)
  cell = min(max(_SIDE // num_classes, 1), _MAX_CELL)
  font = ImageFont.load_default(min(max(cell * 0.45, 10), 14))
  shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
  texts = _tick_texts(class_names)
  margin = _MARGIN + 20 + round(max(font.getlength(text) for text in texts.values()))
  side = cell * num_classes
  picture = Image.new('RGB', (margin + max(side, 240) + _MARGIN, margin + side + _LEGEND), 'white')
  pixels = _colors(shares).repeat(cell, axis=0).repeat(cell, axis=1)
  picture.paste(Image.fromarray(pixels), (margin, margin))
  pen = ImageDraw.Draw(picture)
  pen.rectangle((margin - 1, margin - 1, margin + side, margin + side), outline='gray')
  for i, text in texts.items():
    middle = margin + cell * (i + 0.5)
    pen.text((margin - 6, middle), text, 'black', font, anchor='rm')
    _write_upwards(picture, (round(middle), margin - 6), text, font)
  if num_classes <= _MAX_COUNTED:
    for (row, column), count in np.ndenumerate(matrix):
      if count:
        place = margin + cell * (column + 0.5), margin + cell * (row + 0.5)
        color = 'white' if shares[row, column] > 0.2 else 'black'
        pen.text(place, _short_count(int(count)), color, font, anchor='mm')
  pen.text((_MARGIN, _MARGIN), 'label \\ top class', 'gray', font)
  _draw_scale(picture, (margin, margin + side + 12), font)
  return picture


def _tick_texts(class_names: Sequence[str]) -> dict[int, str]:
  """What is written beside the rows: names, or numbers at round distances."""
  num_classes = len(class_names)
  if num_classes > _MAX_NAMED:
    step = next(step for step in (10, 20, 50, 100) if num_classes <= 12 * step or step == 100)
    return {i: f'{i}' for i in range(0, num_classes, step)}
  names = [_as_ascii(name) or str(i) for i, name in enumerate(class_names)]
  shortened = [x if len(x) <= _NAME_LENGTH else f'{x[: _NAME_LENGTH - 3]}...' for x in names]
  return dict(enumerate(shortened))


def _as_ascii(name: str) -> str:
  """The letters of a name that Pillow's font has, without accents."""
  return unicodedata.normalize('NFKD', printable(name)).encode('ascii', 'ignore').decode().strip()


def _short_count(count: int) -> str:
  """At most four characters: '9999', '12k', '3M'."""
  power = next(power for power in range(4) if count < 10 ** (4 if power == 0 else 3 * power + 3))
  return f'{count // 1000**power}{("", "k", "M", "G")[power]}'


def _colors(shares: np.ndarray) -> np.ndarray:
  """Shares in [0, 1] of any shape to colors (…, 3) uint8."""
  darkness = np.sqrt(shares)[..., None]
  return np.round(_WHITE + darkness * (_BLUE - _WHITE)).astype(np.uint8)


def _write_upwards(picture: Image.Image, bottom: tuple[int, int], text: str, font) -> None:
  """Writes a text from bottom to top; `bottom` is the middle of its lower end, (x, y)."""
  _, _, width, height = font.getbbox(text, anchor='la')
  label = Image.new('L', (round(width) + 2, round(height) + 2), 0)
  ImageDraw.Draw(label).text((0, 0), text, 255, font)
  rotated = label.rotate(90, expand=True)
  x, y = bottom[0] - rotated.width // 2, bottom[1] - rotated.height
  picture.paste((0, 0, 0), (x, y), rotated)


def _draw_scale(picture: Image.Image, corner: tuple[int, int], font) -> None:
  """Draws which color is which share of the label's examples, from 0 to 100%."""
  scale = _colors(np.linspace(0, 1, 100))[None].repeat(10, axis=0)
  picture.paste(Image.fromarray(scale), corner)
  pen = ImageDraw.Draw(picture)
  x, y = corner
  pen.rectangle((x - 1, y - 1, x + 100, y + 10), outline='gray')
  pen.text((x + 106, y + 5), '0 to 100% of the label', 'black', font, anchor='lm')
