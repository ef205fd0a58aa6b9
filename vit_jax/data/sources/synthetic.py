"""synthetic:jft: data sets of the sizes that papers pretrain on, generated on the fly.

An image is a pure function of (data set, split, index), down to its JPEG bytes: nothing is
downloaded or stored, so a run of JFT's size works anywhere. Classes follow Zipf's law; class 0 is
the most frequent. Each class is a wave with its own two colors, wavelength, direction and pattern,
on top of a texture that is independent of the class; the classes of a multi-label image share it as
vertical bands. So the data can be learned, and a model that does not learn stands out.

  synthetic:jft           303 M images, 18,291 classes, 1.26 labels per image (arXiv 1707.02968)
  synthetic:imagenet21k   14.2 M images, 21,843 classes, one label per image, as a vector
  synthetic:imagenet      1.28 M images, 1,000 equally frequent classes

The classes of the last two are called like those of ImageNet, so that models with these names can
be trained and evaluated; the images show nothing of them. JFT's names are not public.
"""

import dataclasses
import functools
import hashlib

import numpy as np
import simplejpeg

from vit_jax.data import imagenet
from vit_jax.data.sources.source import Example, Source, multi_hot
from vit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Dataset:
  """The properties of a data set; class c has a probability proportional to (c + 1)^-exponent."""

  splits: dict[str, int]  # name -> number of images
  num_classes: int
  exponent: float
  mean_draws: float = 1.0  # classes drawn per image, in [1, 2); an image may draw one twice
  multi_label: bool = True


DATASETS = {
  'jft': Dataset({'train': 303_000_000, 'test': 50_000}, 18_291, 1.0, mean_draws=1.26),
  'imagenet21k': Dataset({'train': 14_197_122, 'test': 50_000}, 21_843, 0.5),
  'imagenet': Dataset({'train': 1_281_167, 'validation': 50_000}, 1_000, 0.0, multi_label=False),
}

_JPEG_QUALITY = 85
_TEXTURE_SIZE = 1024  # pixels per side; each image is a crop of the texture
_MAX_SIDE = 448  # pixels
_TEXTURE_LEVELS = 64  # pixel values of the texture; the waves use the other 192
_PATTERNS = (np.add, np.bitwise_xor, np.maximum)  # stripes, checks, steps


def _uniform(raw: np.ndarray) -> np.ndarray:
  """Converts 64 random bits each to floats in [0, 1)."""
  return (raw >> np.uint64(11)) * 2.0**-53


def _bit_generator(*key: object) -> np.random.Philox:
  """Returns a generator seeded by the key alone, the same on every machine."""
  digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
  return np.random.Philox(key=np.frombuffer(digest, '<u8'))


@functools.cache
def _texture() -> np.ndarray:
  """Returns noise with the spectrum of photographs: (1024, 1024, 3) uint8 < `_TEXTURE_LEVELS`."""
  size = _TEXTURE_SIZE
  raw = _bit_generator('texture').random_raw(size * size * 3).reshape(size, size, 3)
  white = np.fft.rfft2(_uniform(raw) - 0.5, axes=(0, 1))
  y, x = np.fft.fftfreq(size), np.fft.rfftfreq(size)
  falloff = 1 / np.maximum(np.hypot(y[:, None], x), 1 / 256)
  pixels = np.fft.irfft2(white * falloff[..., None], axes=(0, 1))
  pixels = pixels / pixels.std() * (_TEXTURE_LEVELS / 5) + _TEXTURE_LEVELS / 2
  return np.clip(pixels, 0, _TEXTURE_LEVELS - 1).astype(np.uint8)


@functools.lru_cache(maxsize=4096)
def _class_wave(name: str, label: int) -> tuple[np.ndarray, np.ndarray, np.ufunc]:
  """Returns (256, 3) colors along the wave of a class, (2,) cycles per pixel, and its pattern."""
  u = _uniform(_bit_generator(name, 'class', label).random_raw(9))
  dark, light = u[0:3], u[3:6]
  blend = 0.5 + 0.5 * np.sin(np.arange(256) * (2 * np.pi / 256))
  colors = (dark + blend[:, None] * (light - dark)) * (255 - _TEXTURE_LEVELS - 16)
  wavelength, angle = 6 * 8 ** u[6], np.pi * u[7]  # 6 to 48 pixels
  cycles = np.array([np.sin(angle), np.cos(angle)]) / wavelength
  return colors.astype(np.uint8), cycles, _PATTERNS[int(u[8] * len(_PATTERNS))]


def _band(name: str, label: int, height: int, width: int, u: np.ndarray) -> np.ndarray:
  """Draws the wave of a class at a random phase: (height, width, 3) uint8 < 192."""
  colors, cycles, pattern = _class_wave(name, label)
  steps = cycles * (256 * (0.9 + 0.2 * u[0]))
  rows = (np.arange(height) * steps[0] + 256 * u[1]).astype(np.int64).astype(np.uint8)
  columns = (np.arange(width) * steps[1] + 256 * u[2]).astype(np.int64).astype(np.uint8)
  return np.take(colors + np.uint8(16 * u[3]), pattern.outer(rows, columns), axis=0)


def _draw(name: str, labels: np.ndarray, u: np.ndarray) -> bytes:
  """Draws an image of some classes and encodes it as JPEG; `u` is (16,) random in [0, 1)."""
  short = int(224 + 64 * u[0])
  long = min(int(short * (1 + 0.66 * u[1])), _MAX_SIDE)
  height, width = (long, short) if u[2] < 0.25 else (short, long)
  top, left = (int(x * (_TEXTURE_SIZE - _MAX_SIDE)) for x in u[3:5])
  image = _texture()[top : top + height, left : left + width].copy()
  edges = np.linspace(0, width, len(labels) + 1).astype(int)
  for n, label in enumerate(labels):
    band = image[:, edges[n] : edges[n + 1]]
    band += _band(name, int(label), height, band.shape[1], np.roll(u[5:], n))
  return simplejpeg.encode_jpeg(image, _JPEG_QUALITY, 'RGB', '420')


@functools.cache
def _cumulative_probabilities(name: str) -> np.ndarray:
  """Returns (C,) the probability of each class or one before it."""
  weights = np.arange(1, DATASETS[name].num_classes + 1) ** -DATASETS[name].exponent
  return np.cumsum(weights) / weights.sum()


def _find_dataset(name: str) -> Dataset:
  if name not in DATASETS:
    raise UserError(
      f'synthetic:{name} is not a synthetic data set; choose one of {", ".join(DATASETS)}.'
    )
  return DATASETS[name]


@functools.cache
def _class_names(num_classes: int) -> tuple[str, ...]:
  names = imagenet.class_names_of_head(num_classes)
  return names or tuple(f'class {i}' for i in range(num_classes))


def stand_in(num_classes: int) -> str | None:
  """The source that stands in for data with that many classes, or None."""
  names = [name for name, dataset in DATASETS.items() if dataset.num_classes == num_classes]
  return f'synthetic:{names[0]}' if names else None


def split_names(name: str) -> tuple[str, ...]:
  return tuple(_find_dataset(name).splits)


def open_split(name: str, split: str) -> Source:
  """Opens a split of one of the `DATASETS`; 'test' and 'validation' mean the same."""
  dataset = _find_dataset(name)
  splits = dataset.splits
  held_out = 'test' if 'test' in splits else 'validation'
  actual_split = held_out if split in ('test', 'validation') else split
  if actual_split not in splits:
    raise UserError(f'synthetic:{name} has the splits {", ".join(splits)}, not {split!r}.')
  digest = hashlib.blake2b(f'{name}/{actual_split}'.encode(), digest_size=8).digest()
  key = int.from_bytes(digest, 'little')
  cumulative = _cumulative_probabilities(name)
  # Probabilities of a second and a third draw.
  second, third = 0.8 * (dataset.mean_draws - 1), 0.2 * (dataset.mean_draws - 1)

  def read(i: int) -> Example:
    u = _uniform(np.random.Philox(key=[key, int(i)]).random_raw(20))
    draws = 1 + (u[0] < second) + (u[0] < third)
    labels = np.unique(np.searchsorted(cumulative, u[1 : 1 + draws], side='right'))
    image = _draw(name, labels, u[4:])
    if not dataset.multi_label:
      return image, np.int32(labels[0])
    return image, multi_hot(labels, dataset.num_classes)

  return Source(
    name=f'synthetic:{name} ({split})',
    size=splits[actual_split],
    read=read,
    class_names=_class_names(dataset.num_classes),
    multi_label=dataset.multi_label,
    location=lambda i: f'synthetic:{name} ({split}), image {i}',
    shuffled=True,
  )
