"""synthetic:jft: data sets of the sizes that papers pretrain on, made on the fly.

An image is a pure function of (kind, split, index), JPEG bytes and all: nothing is downloaded or
kept, so that a run of JFT's size goes anywhere. Classes are drawn from Zipf's law, class 0 most
often. Each shows as a wave of its own two colors, wavelength, direction and pattern, over
a texture that says nothing; several labels share the picture as bands. So there is something to
learn, and a model that learns nothing shows.

  synthetic:jft           303 M, 18,291 classes, 1.26 labels an image (arXiv 1707.02968)
  synthetic:imagenet21k   14.2 M, 21,843 classes, one label an image, as a vector
  synthetic:imagenet      1.28 M, 1,000 classes alike in number
"""

import dataclasses
import functools
import hashlib

import numpy as np
import simplejpeg

from vit_jax.data.sources.source import Source, multi_hot
from vit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Kind:
  """What a data set is like.

  Attributes:
    splits: name -> number of images.
    classes: their number.
    exponent: of Zipf's law: class c is drawn in proportion to (c + 1) ** -exponent.
    labels: draws per image on average; two may be of the same class.
    multi_label: whether labels are vectors.
  """

  splits: dict[str, int]
  classes: int
  exponent: float
  labels: float = 1.0
  multi_label: bool = True


KINDS = {
  'jft': Kind({'train': 303_000_000, 'test': 50_000}, 18_291, 1.0, labels=1.26),
  'imagenet21k': Kind({'train': 14_197_122, 'test': 50_000}, 21_843, 0.5),
  'imagenet': Kind({'train': 1_281_167, 'validation': 50_000}, 1_000, 0.0, multi_label=False),
}

_QUALITY = 85  # of the JPEG
_TILE = 1024  # pixels of the texture that images are cut from
_LARGEST = 448  # pixels of a side
_DEPTH = 64  # gray values of the texture; the waves take the other 192
_WAVES = (np.add, np.bitwise_xor, np.maximum)  # stripes, checks, steps


def _uniform(raw: np.ndarray) -> np.ndarray:
  """64 random bits each -> numbers in [0, 1)."""
  return (raw >> np.uint64(11)) * 2.0**-53


def _random(*key: object) -> np.random.Philox:
  """Random bits that are a function of the key, the same on every machine."""
  digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
  return np.random.Philox(key=np.frombuffer(digest, '<u8'))


@functools.cache
def _texture() -> np.ndarray:
  """(1024, 1024, 3) uint8 below `_DEPTH`: noise with the spectrum of photographs."""
  raw = _random('texture').random_raw(_TILE * _TILE * 3).reshape(_TILE, _TILE, 3)
  white = np.fft.rfft2(_uniform(raw) - 0.5, axes=(0, 1))
  y, x = np.fft.fftfreq(_TILE), np.fft.rfftfreq(_TILE)
  falloff = 1 / np.maximum(np.hypot(y[:, None], x), 1 / 256)
  pixels = np.fft.irfft2(white * falloff[..., None], axes=(0, 1))
  pixels = pixels / pixels.std() * (_DEPTH / 5) + _DEPTH / 2
  return np.clip(pixels, 0, _DEPTH - 1).astype(np.uint8)


@functools.lru_cache(maxsize=4096)
def _look(name: str, label: int) -> tuple[np.ndarray, np.ndarray, np.ufunc]:
  """What a class looks like: (256, 3) colors along its wave, (2,) cycles a pixel, its pattern."""
  u = _uniform(_random(name, 'class', label).random_raw(9))
  dark, light = u[0:3], u[3:6]
  along = 0.5 + 0.5 * np.sin(np.arange(256) * (2 * np.pi / 256))
  colors = (dark + along[:, None] * (light - dark)) * (255 - _DEPTH - 16)
  wavelength, angle = 6 * 8 ** u[6], np.pi * u[7]  # 6 to 48 pixels
  cycles = np.array([np.sin(angle), np.cos(angle)]) / wavelength
  return colors.astype(np.uint8), cycles, _WAVES[int(u[8] * len(_WAVES))]


def _band(name: str, label: int, height: int, width: int, u: np.ndarray) -> np.ndarray:
  """(height, width, 3) uint8 below 256 - _DEPTH: the wave of a class, at a random phase."""
  colors, cycles, pattern = _look(name, label)
  steps = cycles * (256 * (0.9 + 0.2 * u[0]))
  rows = (np.arange(height) * steps[0] + 256 * u[1]).astype(np.int64).astype(np.uint8)
  columns = (np.arange(width) * steps[1] + 256 * u[2]).astype(np.int64).astype(np.uint8)
  return np.take(colors + np.uint8(16 * u[3]), pattern.outer(rows, columns), axis=0)


def _draw(name: str, labels: np.ndarray, u: np.ndarray) -> bytes:
  """The JPEG of an image of some classes; `u` holds 16 random numbers in [0, 1)."""
  short = int(224 + 64 * u[0])
  long = min(int(short * (1 + 0.66 * u[1])), _LARGEST)
  height, width = (long, short) if u[2] < 0.25 else (short, long)
  top, left = (int(x * (_TILE - _LARGEST)) for x in u[3:5])
  image = _texture()[top : top + height, left : left + width].copy()
  edges = np.linspace(0, width, len(labels) + 1).astype(int)
  for n, label in enumerate(labels):
    band = image[:, edges[n] : edges[n + 1]]
    band += _band(name, int(label), *band.shape[:2], np.roll(u[5:], n))
  return simplejpeg.encode_jpeg(image, _QUALITY, 'RGB', '420')


@functools.cache
def _cumulative(kind: str) -> np.ndarray:
  """The chance of a class or one before it."""
  chances = np.arange(1, KINDS[kind].classes + 1) ** -KINDS[kind].exponent
  return np.cumsum(chances) / chances.sum()


def split_names(name: str) -> tuple[str, ...]:
  """The splits of a kind."""
  if name not in KINDS:
    raise UserError(f'synthetic:{name} is not known; there are {", ".join(KINDS)}.')
  return tuple(KINDS[name].splits)


def open_synthetic(path: str, split: str) -> Source:
  """A data set of one of the `KINDS`; where there is a validation split, test means it, too."""
  names, kind = split_names(path), KINDS.get(path)
  split_meant = 'validation' if split == 'test' and 'test' not in names else split
  if split_meant not in names:
    raise UserError(f'synthetic:{path} has the splits {", ".join(names)}, not {split!r}.')
  key = hashlib.blake2b(f'{path}/{split_meant}'.encode(), digest_size=8).digest()
  key = int.from_bytes(key, 'little')
  cumulative = _cumulative(path)
  second, third = 0.8 * (kind.labels - 1), 0.2 * (kind.labels - 1)  # the chance of a 2nd, a 3rd

  def read(i: int) -> tuple[bytes, np.ndarray]:
    u = _uniform(np.random.Philox(key=[key, int(i)]).random_raw(20))
    count = 1 + (u[0] < second) + (u[0] < third)
    labels = np.unique(np.searchsorted(cumulative, u[1 : 1 + count], side='right'))
    image = _draw(path, labels, u[4:])
    if not kind.multi_label:
      return image, np.int32(labels[0])
    return image, multi_hot(labels, kind.classes)

  return Source(
    f'synthetic:{path} ({split})',
    kind.splits[split_meant],
    read,
    tuple(f'class {i}' for i in range(kind.classes)),
    kind.multi_label,
    where=lambda i: f'synthetic:{path} ({split}), image {i}',
  )
