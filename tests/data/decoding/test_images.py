"""Image files of all kinds become upright RGB; damaged ones end in one sentence."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.decoding import images, turbojpeg
from vit_jax.data.decoding.images import check_image, decode_image, open_image
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
    encode(Image.fromarray(GRAY > 128), 'PNG'),
    three(np.where(GRAY > 128, 255, 0)),
    0,
  ),
  'PNG, 16 bits': (encode(GRAY.astype(np.uint16) * 257, 'PNG'), three(GRAY), 0),
  'PNG, palette': (encode(palette(), 'PNG'), np.asarray(palette().convert('RGB')), 0),
  'PNG, palette with transparency': (
    transparent_palette(),
    over_white(np.broadcast_to([10, 200, 30], RGB.shape)),
    0,
  ),
  'PNG, RGBA': (encode(with_alpha('RGBA'), 'PNG'), over_white(RGB), 0),
  'PNG, LA': (encode(with_alpha('LA'), 'PNG'), over_white(three(GRAY)), 0),
  'WebP': (encode(RGB, 'WEBP', quality=95), RGB, 5),
  'WebP, lossless': (encode(RGB, 'WEBP', lossless=True), RGB, 0),
  'WebP, RGBA': (encode(with_alpha('RGBA'), 'WEBP', lossless=True), over_white(RGB), 0),
  'WebP, animated': (animation('WEBP'), RGB, 0),
  'GIF, animated': (
    encode(palette(), 'GIF', save_all=True, append_images=[palette().rotate(180)]),
    np.asarray(palette().convert('RGB')),
    0,
  ),
  'BMP': (encode(RGB, 'BMP'), RGB, 0),
  'BMP, gray': (encode(GRAY, 'BMP'), three(GRAY), 0),
}


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
  'JPEG that ends in a marker': b'\xff\xd8\xff',
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


def test_a_bomb_of_400_million_pixels_in_a_few_bytes_is_refused_without_decoding_it():
  def chunk(kind: bytes, content: bytes) -> bytes:
    return (
      struct.pack('>I', len(content))
      + kind
      + content
      + struct.pack('>I', zlib.crc32(kind + content))
    )

  header = struct.pack('>IIBBBBB', 20_000, 20_000, 8, 0, 0, 0, 0)
  bomb = (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(bytes(1000)))
    + chunk(b'IEND', b'')
  )
  for read in (decode_image, check_image):
    with pytest.raises(UserError, match=r'x\.png .*400,000,000|x\.png .*pixels'):
      read(bomb, 'x.png')


def test_large_jpegs_are_checked_by_header_and_end():
  noise = np.random.default_rng(0).integers(0, 256, (1100, 1100, 3), dtype=np.uint8)
  data = jpeg(noise)
  assert len(data) > 2**20
  check_image(data, 'x.jpg')
  with pytest.raises(UserError, match=r'x\.jpg'):
    check_image(data[:-5000], 'x.jpg')


def random_jpegs(count: int, smallest: int = 1):
  """Small JPEGs of all kinds of sampling, and a box in each."""
  rng = np.random.default_rng(0)
  for _ in range(count):
    height, width = rng.integers(smallest, 150, 2)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 3, 3), dtype=np.uint8))
    image = coarse.resize((int(width), int(height)))
    options = {'subsampling': int(rng.integers(3)), 'progressive': bool(rng.integers(2))}
    left, top = int(rng.integers(width)), int(rng.integers(height))
    box = left, top, int(rng.integers(left, width)) + 1, int(rng.integers(top, height)) + 1
    yield encode(image, 'JPEG', **options), box


@pytest.mark.parametrize('has_library', [True, False])
def test_a_part_of_a_jpeg_has_the_pixels_of_the_whole(has_library, monkeypatch):
  if not has_library:
    monkeypatch.setattr(turbojpeg, '_library', lambda: None)
  for data, box in random_jpegs(150):
    for channels in (1, 3):
      whole = decode_image(data, 'x', channels)
      np.testing.assert_array_equal(
        open_image(data, 'x', channels).pixels(box), images.cut(whole, box), strict=True
      )


def test_reduced_jpegs_are_large_enough_smooth_and_the_same_with_either_library(monkeypatch):
  reduced = 0
  for data, box in random_jpegs(150, smallest=60):
    picture = open_image(data, 'x')
    size = box[3] - box[1], box[2] - box[0]
    found = picture.pixels(box, enough=(9, 12))
    assert all(a >= min(b, c) for a, b, c in zip(found.shape, size, (9, 12), strict=False))
    if found.shape[:2] != size:
      reduced += 1
      whole = Image.fromarray(picture.pixels(box)).resize(found.shape[1::-1], Image.BOX)
      assert np.abs(np.asarray(whole).astype(int) - found).mean() < 12
    with monkeypatch.context() as patch:
      patch.setattr(turbojpeg, '_library', lambda: None)
      np.testing.assert_array_equal(picture.pixels(box, enough=(9, 12)), found, strict=True)
  assert reduced > 20


@pytest.mark.skipif(turbojpeg._library() is None, reason='needs TurboJPEG 3')
def test_a_part_is_really_decoded_by_part():
  data, box = next(random_jpegs(1))
  assert turbojpeg.decode_box(data, box, 3).shape == (box[3] - box[1], box[2] - box[0], 3)
  assert turbojpeg.decode_box(data[: len(data) // 3], box, 3) is None


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_any_number_of_channels(channels):
  for data in (jpeg(RGB), encode(with_alpha('RGBA'), 'PNG'), jpeg(GRAY), RGB, GRAY[..., None]):
    found = open_image(data, 'x', channels).pixels()
    assert (found.shape, found.dtype) == ((*RGB.shape[:2], channels), np.uint8)
  gray = open_image(jpeg(GRAY), 'x', 1).pixels()
  assert np.abs(gray[..., 0].astype(int) - GRAY).mean() < 2


def test_arrays_keep_the_channels_they_have():
  bands = np.zeros((4, 5, 13), np.uint8)
  assert open_image(bands, 'x', 13).pixels().shape == (4, 5, 13)
  with pytest.raises(UserError, match=r'x has 13 channels, config\.data\.channels=3'):
    open_image(bands, 'x', 3)
  with pytest.raises(UserError, match='x is an image file, which cannot have 13 channels'):
    open_image(jpeg(RGB), 'x', 13)
