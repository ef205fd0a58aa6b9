"""Image files of all formats become upright RGB; damaged ones are reported in one sentence."""

import importlib.util
import random
import struct
import sys
import types
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, features

from tests.data.decoding.image_files import COLUMNS, GRAY, RGB, encode, gray_to_rgb, jpeg
from tests.helpers import ROOT
from vit_jax.data.decoding import images, limits, turbojpeg
from vit_jax.data.decoding.box import Box, crop_pixels
from vit_jax.data.decoding.images import check_image, decode_image, open_image
from vit_jax.errors import BadExampleError, UserError


def palette() -> Image.Image:
  return Image.fromarray(RGB // 64 * 64).quantize(64)


def with_alpha(mode: str) -> Image.Image:
  """The left half opaque, the right half transparent."""
  image = Image.fromarray(RGB if mode == 'RGBA' else GRAY).convert(mode)
  image.putalpha(Image.fromarray(np.where(COLUMNS < 0.5, 255, 0).astype(np.uint8)))
  return image


def over_white(pixels: np.ndarray) -> np.ndarray:
  return np.where(COLUMNS[..., None] < 0.5, pixels, 255)


def transparent_palette() -> bytes:
  indices = Image.fromarray((COLUMNS < 0.5).astype(np.uint8), 'P')
  indices.putpalette([9, 9, 9, 10, 200, 30])
  return encode(indices, 'PNG', transparency=0)


def animation(image_format: str) -> bytes:
  return encode(
    RGB, image_format, save_all=True, append_images=[Image.fromarray(255 - RGB)], lossless=True
  )


GOOD = {  # name: (bytes, expected pixels, largest mean difference)
  'JPEG': (jpeg(RGB), RGB, 2),
  'JPEG, progressive': (jpeg(RGB, progressive=True), RGB, 2),
  'JPEG, stray bytes': (jpeg(RGB).replace(b'\xff\xda', b'\0\0\xff\xda', 1), RGB, 2),
  'JPEG, bytes after its end': (jpeg(RGB) + b'appended by a camera', RGB, 2),
  'JPEG, gray': (jpeg(GRAY), gray_to_rgb(GRAY), 2),
  'JPEG, CMYK': (jpeg(Image.fromarray(RGB).convert('CMYK')), RGB, 3),
  'PNG': (encode(RGB, 'PNG'), RGB, 0),
  'PNG, gray': (encode(GRAY, 'PNG'), gray_to_rgb(GRAY), 0),
  'PNG, black and white': (
    encode(Image.fromarray(GRAY > 128), 'PNG'),
    gray_to_rgb(np.where(GRAY > 128, 255, 0)),
    0,
  ),
  'PNG, 16 bits': (encode(GRAY.astype(np.uint16) * 257, 'PNG'), gray_to_rgb(GRAY), 0),
  'PNG, palette': (encode(palette(), 'PNG'), np.asarray(palette().convert('RGB')), 0),
  'PNG, palette with transparency': (
    transparent_palette(),
    over_white(np.broadcast_to([10, 200, 30], RGB.shape)),
    0,
  ),
  'PNG, RGBA': (encode(with_alpha('RGBA'), 'PNG'), over_white(RGB), 0),
  'PNG, LA': (encode(with_alpha('LA'), 'PNG'), over_white(gray_to_rgb(GRAY)), 0),
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
  'TIFF': (encode(RGB, 'TIFF', compression='tiff_lzw'), RGB, 0),
  'TIFF, several pages': (animation('TIFF'), RGB, 0),
  'TIFF, 16 bit': (encode(GRAY.astype(np.uint16) * 257, 'TIFF'), gray_to_rgb(GRAY), 0),
  'TIFF, CMYK': (encode(Image.fromarray(RGB).convert('CMYK'), 'TIFF'), RGB, 3),
  'PPM': (encode(RGB, 'PPM'), RGB, 0),
  'PGM': (encode(GRAY, 'PPM'), gray_to_rgb(GRAY), 0),
  'BMP, gray': (encode(GRAY, 'BMP'), gray_to_rgb(GRAY), 0),
}


@pytest.mark.skipif(not features.check('avif'), reason='a Pillow without AVIF')
def test_avif():
  pixels = decode_image(encode(RGB, 'AVIF', quality=100), 'x.avif')
  assert np.abs(pixels.astype(int) - RGB).mean() < 3


@pytest.mark.parametrize('brand', [b'heic', b'heix', b'mif1'])
def test_heic_needs_a_package(brand, monkeypatch):
  data = b'\0\0\0\x18ftyp' + brand + b'\0\0\0\0mif1heic' + bytes(64)
  monkeypatch.setitem(sys.modules, 'pillow_heif', None)
  images._installed_formats.cache_clear()
  with pytest.raises(BadExampleError, match='x.heic is HEIC, which needs pip install pillow-heif'):
    decode_image(data, 'x.heic')
  images._installed_formats.cache_clear()


def test_heic_is_read_by_its_package(monkeypatch):
  plugin = types.SimpleNamespace(
    register_heif_opener=lambda: Image.register_open(
      'HEIF', lambda file, name: Image.fromarray(RGB), lambda data: data[4:8] == b'ftyp'
    )
  )
  monkeypatch.setitem(sys.modules, 'pillow_heif', plugin)
  monkeypatch.setattr(Image, 'ID', [*Image.ID])
  monkeypatch.setattr(Image, 'OPEN', dict(Image.OPEN))
  images._installed_formats.cache_clear()
  pixels = decode_image(b'\0\0\0\x18ftypheic' + bytes(64), 'x.heic')
  np.testing.assert_array_equal(pixels, RGB)
  images._installed_formats.cache_clear()


@pytest.mark.parametrize('name', GOOD)
def test_every_format_becomes_rgb(name):
  data, expected, tolerance = GOOD[name]
  pixels = decode_image(data, 'x')
  assert (pixels.dtype, pixels.shape) == (np.uint8, (24, 40, 3))
  assert np.abs(pixels.astype(int) - expected).mean() <= tolerance
  check_image(data, 'x')


def truncate(data: bytes, share: float) -> bytes:
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
    f'{image_format} truncated at {share}': truncate(encode(NOISE, image_format), share)
    for image_format in ('JPEG', 'PNG', 'WEBP', 'BMP')
    for share in (0.005, 0.5, 0.99)
  },
}


@pytest.mark.parametrize('name', BAD)
@pytest.mark.parametrize('read', [decode_image, check_image])
def test_damaged_files_are_named_in_one_line(read, name):
  with pytest.raises(UserError, match=r'cats/näme\.jpg') as caught:
    read(BAD[name], 'cats/näme.jpg')
  assert '\n' not in str(caught.value)


def test_a_decompression_bomb_is_rejected(monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    for read in (decode_image, check_image):
      with pytest.raises(UserError, match=r'x\.png'):
        read(encode(NOISE, 'PNG'), 'x.png')


def test_400_million_pixels_in_a_few_bytes_are_rejected_without_decoding():
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


def test_large_jpegs_are_checked_by_their_header_and_end():
  noise = np.random.default_rng(0).integers(0, 256, (1100, 1100, 3), dtype=np.uint8)
  data = jpeg(noise)
  assert len(data) > 2**20
  check_image(data, 'x.jpg')
  with pytest.raises(UserError, match=r'x\.jpg'):
    check_image(data[:-5000], 'x.jpg')


def random_jpegs(count: int, smallest: int = 1):
  """Yields small JPEGs with all kinds of chroma subsampling, and a box in each."""
  rng = np.random.default_rng(0)
  for _ in range(count):
    height, width = rng.integers(smallest, 150, 2)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 3, 3), dtype=np.uint8))
    image = coarse.resize((int(width), int(height)))
    options = {'subsampling': int(rng.integers(3)), 'progressive': bool(rng.integers(2))}
    left, top = int(rng.integers(width)), int(rng.integers(height))
    right, bottom = int(rng.integers(left, width)) + 1, int(rng.integers(top, height)) + 1
    yield encode(image, 'JPEG', **options), Box(left, top, right, bottom)


@pytest.mark.parametrize('has_library', [True, False])
def test_a_box_of_a_jpeg_has_the_pixels_of_the_whole(has_library, monkeypatch):
  if not has_library:
    monkeypatch.setattr(turbojpeg, '_library', lambda: None)
  for data, box in random_jpegs(150):
    for channels in (1, 3):
      whole = decode_image(data, 'x', channels)
      np.testing.assert_array_equal(
        open_image(data, 'x', channels).pixels(box), crop_pixels(whole, box), strict=True
      )


def test_reduced_jpegs_are_large_enough_smooth_and_equal_with_either_library(monkeypatch):
  reduced = 0
  for data, box in random_jpegs(150, smallest=60):
    image, size = open_image(data, 'x'), (box.height, box.width)
    pixels = image.pixels(box, min_size=(9, 12))
    assert all(
      actual >= min(full, wanted)
      for actual, full, wanted in zip(pixels.shape, size, (9, 12), strict=False)
    )
    if pixels.shape[:2] != size:
      reduced += 1
      whole = Image.fromarray(image.pixels(box)).resize(pixels.shape[1::-1], Image.BOX)
      assert np.abs(np.asarray(whole).astype(int) - pixels).mean() < 12
    with monkeypatch.context() as patch:
      patch.setattr(turbojpeg, '_library', lambda: None)
      np.testing.assert_array_equal(image.pixels(box, min_size=(9, 12)), pixels, strict=True)
  assert reduced > 20


@pytest.mark.skipif(turbojpeg._library() is None, reason='needs TurboJPEG 3')
def test_turbojpeg_decodes_only_the_box():
  data, box = next(random_jpegs(1))
  assert turbojpeg.decode_box(data, box, 3).shape == (box.height, box.width, 3)
  assert turbojpeg.decode_box(data[: len(data) // 3], box, 3) is None


@pytest.mark.parametrize('box', [(0, 0, 5, 0), (5, 5, 5, 9), (30, 0, 41, 8), (0, 20, 4, 25)])
def test_boxes_that_are_not_within_the_image_are_not_decoded(box):
  """TurboJPEG takes a height of 0 for the whole image, and would write beyond the array."""
  assert turbojpeg.decode_box(jpeg(RGB), Box(*box), 3) is None


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_files_and_arrays_are_converted_to_gray_rgb_or_rgba(channels):
  for data in (jpeg(RGB), encode(with_alpha('RGBA'), 'PNG'), jpeg(GRAY), RGB, GRAY[..., None]):
    pixels = open_image(data, 'x', channels).pixels()
    assert (pixels.shape, pixels.dtype) == ((*RGB.shape[:2], channels), np.uint8)
  gray = open_image(jpeg(GRAY), 'x', 1).pixels()
  assert np.abs(gray[..., 0].astype(int) - GRAY).mean() < 2


def test_arrays_may_have_any_number_of_channels_but_files_may_not():
  bands = np.zeros((4, 5, 13), np.uint8)
  assert open_image(bands, 'x', 13).pixels().shape == (4, 5, 13)
  with pytest.raises(UserError, match='x has 13 channels and cannot be converted to channels=3'):
    open_image(bands, 'x', 3)
  with pytest.raises(UserError, match='x is an image file, which cannot have 13 channels'):
    open_image(jpeg(RGB), 'x', 13)


def load_fuzzer():
  path = ROOT / 'benchmarks' / 'fuzz_images.py'
  spec = importlib.util.spec_from_file_location('fuzz_images', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


fuzz_images = load_fuzzer()
FILES = fuzz_images.make_files()


@pytest.fixture
def limit_of_the_fuzzer(monkeypatch):
  monkeypatch.setenv(limits.MAX_PIXELS, str(fuzz_images.MAX_PIXELS))
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', Image.MAX_IMAGE_PIXELS)
  limits.max_pixels.cache_clear()
  yield
  limits.max_pixels.cache_clear()


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', FILES)
def test_damaged_files_become_pixels_or_one_sentence(kind, limit_of_the_fuzzer):
  """A few inputs of `benchmarks/fuzz_images.py`."""
  outcomes = set()
  for data in FILES[kind]:
    assert fuzz_images.check(data, random.Random(0)) == 'pixels'
  for i in range(150):
    data = fuzz_images.make_input(FILES, kind, 0, i)
    outcomes.add(fuzz_images.check(data, random.Random(i)))
  assert outcomes == {'pixels', 'errors'}


def test_metadata_of_a_png_that_pillow_stumbles_over_is_said_in_one_sentence():
  data = encode(RGB, 'PNG')
  content = b'iCCP' + b'a profile without an end'
  chunk = struct.pack('>I', len(content) - 4) + content + struct.pack('>I', zlib.crc32(content))
  for damaged in (data[:33] + chunk + data[33:], data[:-12] + chunk + data[-12:]):
    with pytest.raises(BadExampleError, match='^x cannot be read as an image'):
      decode_image(damaged, 'x')


def test_a_jpeg_of_another_size_than_its_header_is_an_error(monkeypatch):
  data = jpeg(RGB)
  image = open_image(data, 'x')
  monkeypatch.setattr(images, '_decode_with_simplejpeg', lambda *args: None)
  assert image.pixels().shape == RGB.shape
  monkeypatch.setattr(images, '_decode_with_pillow', lambda *args, **options: RGB[1:])
  with pytest.raises(BadExampleError, match='^x cannot be read as an image: its header is damaged'):
    image.pixels()


def test_a_conversion_in_bands_changes_no_pixel(monkeypatch):
  pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 4), dtype=np.uint8)
  rgba = Image.fromarray(pixels)
  palette = rgba.convert('RGB').quantize(16)
  palette.info['transparency'] = 3
  sixteen_bits = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
  several = [rgba, palette, sixteen_bits, *map(rgba.convert, ('1', 'L', 'LA', 'RGB', 'CMYK'))]
  whole = [images.pillow_to_array(image, c) for image in several for c in (1, 3, 4)]
  monkeypatch.setattr(images, '_BAND', 7 * 20)
  bands = [images.pillow_to_array(image, c) for image in several for c in (1, 3, 4)]
  for one, other in zip(whole, bands, strict=True):
    np.testing.assert_array_equal(one, other)
