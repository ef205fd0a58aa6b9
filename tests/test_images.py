"""Image files of all kinds become upright RGB; damaged ones end in one sentence."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.images import check_image, decode_image
from vit_jax.errors import UserError

# Smooth, so that JPEG keeps it; not square, so that turning shows.
_rows, _columns = np.meshgrid(np.linspace(0, 1, 24), np.linspace(0, 1, 40), indexing='ij')
GRAY = np.rint(40 + 180 * _columns).astype(np.uint8)
RGB = np.rint(255 * np.stack([_columns, _rows, 1 - _columns], axis=-1)).astype(np.uint8)
ORIENTATION = 0x0112


def encode(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def three(gray: np.ndarray) -> np.ndarray:
  return np.repeat(gray[..., None], 3, axis=-1)


def jpeg(image, **options) -> bytes:
  return encode(image, 'JPEG', quality=95, subsampling=0, **options)


def palette() -> Image.Image:
  return Image.fromarray(RGB // 64 * 64).quantize(64)


def with_alpha(mode: str) -> Image.Image:
  """The left half opaque, the right half transparent."""
  image = Image.fromarray(RGB if mode == 'RGBA' else GRAY).convert(mode)
  image.putalpha(Image.fromarray(np.where(_columns < 0.5, 255, 0).astype(np.uint8)))
  return image


def over_white(pixels: np.ndarray) -> np.ndarray:
  return np.where(_columns[..., None] < 0.5, pixels, 255)


def transparent_palette() -> bytes:
  indices = Image.fromarray((_columns < 0.5).astype(np.uint8), 'P')
  indices.putpalette([9, 9, 9, 10, 200, 30])
  return encode(indices, 'PNG', transparency=0)


def animation(kind: str) -> bytes:
  return encode(RGB, kind, save_all=True, append_images=[Image.fromarray(255 - RGB)], lossless=True)


GOOD = {  # name: (bytes, expected pixels, largest mean difference)
    'JPEG': (jpeg(RGB), RGB, 2),
    'JPEG, progressive': (jpeg(RGB, progressive=True), RGB, 2),
    'JPEG, stray bytes': (jpeg(RGB).replace(b'\xff\xda', b'\0\0\xff\xda', 1), RGB, 2),
    'JPEG, more after its end': (jpeg(RGB) + b'appended by a camera', RGB, 2),
    'JPEG, gray': (jpeg(GRAY), three(GRAY), 2),
    'JPEG, CMYK': (jpeg(Image.fromarray(RGB).convert('CMYK')), RGB, 3),
    'PNG': (encode(RGB, 'PNG'), RGB, 0),
    'PNG, gray': (encode(GRAY, 'PNG'), three(GRAY), 0),
    'PNG, black and white': (
        encode(Image.fromarray(GRAY > 128), 'PNG'), three(np.where(GRAY > 128, 255, 0)), 0
    ),
    'PNG, 16 bits': (encode(GRAY.astype(np.uint16) * 257, 'PNG'), three(GRAY), 0),
    'PNG, palette': (encode(palette(), 'PNG'), np.asarray(palette().convert('RGB')), 0),
    'PNG, palette with transparency': (
        transparent_palette(), over_white(np.broadcast_to([10, 200, 30], RGB.shape)), 0
    ),
    'PNG, RGBA': (encode(with_alpha('RGBA'), 'PNG'), over_white(RGB), 0),
    'PNG, LA': (encode(with_alpha('LA'), 'PNG'), over_white(three(GRAY)), 0),
    'WebP': (encode(RGB, 'WEBP', quality=95), RGB, 5),
    'WebP, lossless': (encode(RGB, 'WEBP', lossless=True), RGB, 0),
    'WebP, RGBA': (encode(with_alpha('RGBA'), 'WEBP', lossless=True), over_white(RGB), 0),
    'WebP, animated': (animation('WEBP'), RGB, 0),
    'BMP': (encode(RGB, 'BMP'), RGB, 0),
    'BMP, gray': (encode(GRAY, 'BMP'), three(GRAY), 0),
}  # fmt: skip


@pytest.mark.parametrize('name', GOOD)
def test_every_kind_becomes_rgb(name):
  data, expected, tolerance = GOOD[name]
  found = decode_image(data, 'x')
  assert (found.dtype, found.shape) == (np.uint8, (24, 40, 3))
  assert np.abs(found.astype(int) - expected).mean() <= tolerance
  check_image(data, 'x')


TURNED = {  # what a viewer does with the stored pixels
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
@pytest.mark.parametrize('orientation', TURNED)
def test_images_are_turned_upright(orientation, kind):
  exif = Image.Exif()
  exif[ORIENTATION] = orientation
  data = jpeg(RGB, exif=exif) if kind == 'JPEG' else encode(RGB, kind, exif=exif)
  found = decode_image(data, 'x').astype(int)
  expected = TURNED[orientation](RGB)
  assert found.shape == expected.shape
  assert np.abs(found - expected).mean() <= 2


def cut(data: bytes, share: float) -> bytes:
  return data[: int(len(data) * share)]


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
BAD = {
    'nothing': b'',
    'text': b'this is a shopping list\n' * 50,
    'one byte': b'\xff',
    'zeros': bytes(1000),
    'a PDF': b'%PDF-1.7\n' + bytes(500),
    **{
        f'{kind} cut at {share}': cut(encode(NOISE, kind), share)
        for kind in ('JPEG', 'PNG', 'WEBP', 'BMP')
        for share in (0.005, 0.5, 0.99)
    },
}


@pytest.mark.parametrize('name', BAD)
@pytest.mark.parametrize('read', [decode_image, check_image])
def test_damaged_files_are_named(read, name):
  with pytest.raises(UserError, match=r'cats/näme\.jpg') as caught:
    read(BAD[name], 'cats/näme.jpg')
  assert '\n' not in str(caught.value)


def test_a_decompression_bomb_is_refused(monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    for read in (decode_image, check_image):
      with pytest.raises(UserError, match=r'x\.png'):
        read(encode(NOISE, 'PNG'), 'x.png')
