"""Rectangles of pixels."""

from typing import NamedTuple

import numpy as np


class Box(NamedTuple):
  """A rectangle in an image, in pixels; `right` and `bottom` are exclusive."""

  left: int
  top: int
  right: int
  bottom: int

  @property
  def height(self) -> int:
    return self.bottom - self.top

  @property
  def width(self) -> int:
    return self.right - self.left

  def is_within(self, height: int, width: int) -> bool:
    """Whether the box has pixels, and only such as an image of that size has."""
    return 0 <= self.left < self.right <= width and 0 <= self.top < self.bottom <= height

  def padded(self, margin: int) -> 'Box':
    """The box with a margin on all sides; it may reach beyond the image."""
    left, top, right, bottom = self
    return Box(left - margin, top - margin, right + margin, bottom + margin)

  def shifted(self, x: int, y: int) -> 'Box':
    """The box moved `x` to the right and `y` down."""
    return Box(self.left + x, self.top + y, self.right + x, self.bottom + y)

  def enlarged(self, factor: int) -> 'Box':
    """The same box of an image that is `factor` times as large."""
    return Box(*(side * factor for side in self))

  def reduced(self, factor: int) -> 'Box':
    """The smallest box that covers this one in an image reduced to 1/`factor`."""
    left, top, right, bottom = self
    return Box(left // factor, top // factor, -(-right // factor), -(-bottom // factor))


def crop_pixels(pixels: np.ndarray, box: Box | None) -> np.ndarray:
  """Crops an array (H, W, …) to a box; None keeps all of it."""
  return pixels if box is None else pixels[box.top : box.bottom, box.left : box.right]
