"""Headers are checked before memory is taken for pixels: one limit, for every format."""

import functools
import io
import os
import resource
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.data.decoding.image_files import RGB, encode, jpeg
from vit_jax.data.decoding import images, jpeg_tiles, limits
from vit_jax.data.decoding.box import Box
from vit_jax.data.decoding.images import check_image, decode_image, open_image, pillow_to_array
from vit_jax.errors import BadExampleError, UserError


def replaced(data: bytes, offset: int, new: bytes) -> bytes:
  return data[:offset] + new + data[offset + len(new) :]


def claiming(image_format: str, width: int, height: int) -> bytes:
  """A file of 40 x 24 pixels whose header claims others."""
  data = encode(RGB, image_format, **({'lossless': True} if image_format == 'WEBP' else {}))
  if image_format == 'JPEG':
    sizes = struct.pack('>HH', height, width)
    return replaced(data, data.index(b'\xff\xc0') + 5, sizes)
  if image_format == 'PNG':
    header = b'IHDR' + struct.pack('>II', width, height) + data[24:29]
    return replaced(data, 12, header + struct.pack('>I', zlib.crc32(header)))
  if image_format == 'GIF':
    data = replaced(data, 6, struct.pack('<HH', width, height))
    return replaced(data, data.index(b',\0\0\0\0') + 5, struct.pack('<HH', width, height))
  if image_format == 'BMP':
    return replaced(data, 18, struct.pack('<ii', width, height))
  canvas = (width - 1).to_bytes(3, 'little') + (height - 1).to_bytes(3, 'little')
  chunk = b'VP8X' + struct.pack('<I', 10) + bytes(4) + canvas
  return b'RIFF' + struct.pack('<I', len(data) + 10) + b'WEBP' + chunk + data[12:]


HUGE = {  # format: (width, height)
  'JPEG': (65_500, 65_500),
  'PNG': (65_500, 65_500),
  'WEBP': (65_500, 65_500),
  'GIF': (65_500, 65_500),
  'BMP': (65_500, 65_500),
  'tall PNG': (2, 2**31 - 1),
}


@pytest.mark.parametrize('name', HUGE)
def test_claims_of_many_pixels_are_refused_without_memory(name):
  data = claiming(name.split()[-1], *HUGE[name])
  tracemalloc.start()
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for read in (decode_image, check_image, functools.partial(decode_image, channels=4)):
    with pytest.raises(BadExampleError, match=r'^x .*pixels.* the limit'):
      read(data, 'x')
  assert tracemalloc.get_traced_memory()[1] < 2**22
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15  # KiB
  tracemalloc.stop()


def peak_memory(data: bytes) -> int:
  """MiB that decoding takes in a process of its own, or that it refuses the image with."""
  code = """
import resource, sys
from vit_jax.data.decoding.images import decode_image
from vit_jax.errors import BadExampleError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
  decode_image(sys.stdin.buffer.read(), 'x')
except BadExampleError as error:
  assert 'is an animation of' in str(error), error
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 2**10)
"""
  result = subprocess.run([sys.executable, '-c', code], input=data, capture_output=True)
  assert result.returncode == 0, result.stderr
  return int(result.stdout)


def test_an_animation_of_a_huge_canvas_takes_no_memory():
  file, frames = io.BytesIO(), [Image.new('RGBA', (8, 8), color) for color in ('red', 'blue')]
  frames[0].save(file, 'WEBP', save_all=True, append_images=frames[1:])
  data, canvas = file.getvalue(), (12_999).to_bytes(3, 'little')
  assert decode_image(data, 'x').shape == (8, 8, 3)
  assert peak_memory(replaced(data, data.index(b'VP8X') + 12, 2 * canvas)) < 100


def test_transparent_images_are_converted_in_bands():
  file = io.BytesIO()
  Image.new('P', (5000, 4000)).save(file, 'GIF', transparency=0)
  assert peak_memory(file.getvalue()) < 7 * 20  # bytes a pixel, x 20 million; at once: 17


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'P', 'L', 'LA', '1', 'I;16', 'CMYK'])
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_bands_have_the_pixels_of_the_whole(mode, channels, monkeypatch):
  values = np.random.default_rng(0).integers(0, 256, (23, 40, 4), dtype=np.uint8)
  image = Image.fromarray(values)
  image = image.convert('RGB').convert('P') if mode == 'P' else image
  if mode == 'I;16':
    image = Image.fromarray(values[..., 0].astype(np.uint16) * 250)
  elif mode != 'P':
    image = image.convert(mode)
  if mode == 'P':
    image.info['transparency'] = 3
  expected = pillow_to_array(image, channels)
  monkeypatch.setattr(images, '_BAND', 120)
  np.testing.assert_array_equal(pillow_to_array(image, channels), expected)


@pytest.mark.parametrize('image_format', ['JPEG', 'PNG', 'GIF', 'BMP', 'WEBP'])
def test_images_without_pixels_are_refused(image_format):
  width = 2**24 if image_format == 'WEBP' else 0
  for size in ((width, 24), (40, width)):
    with pytest.raises(BadExampleError, match=r'^x .*\.$'):
      decode_image(claiming(image_format, *size), 'x')


@pytest.fixture
def small_limit(monkeypatch):
  monkeypatch.setenv(limits.MAX_PIXELS, '959')
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', Image.MAX_IMAGE_PIXELS)
  limits.max_pixels.cache_clear()
  yield
  limits.max_pixels.cache_clear()


@pytest.mark.parametrize('image_format', ['JPEG', 'PNG', 'GIF', 'BMP', 'WEBP'])
def test_the_limit_is_that_of_the_environment(image_format, small_limit):
  smaller = encode(RGB[:23], image_format)
  assert decode_image(smaller, 'x').shape == (23, 40, 3)
  with pytest.raises(BadExampleError, match=f'limit .*959.*{limits.MAX_PIXELS}'):
    open_image(encode(RGB, image_format), 'x')


def test_the_limit_holds_for_pillow_images_before_they_are_decoded(small_limit):
  file = io.BytesIO(encode(RGB, 'PNG'))
  Image.MAX_IMAGE_PIXELS = None
  image = Image.open(file)
  with pytest.raises(BadExampleError, match='^the image has 40 x 24 pixels; the limit is 959'):
    pillow_to_array(image)
  assert image._im is None  # not decoded


def test_pillow_is_told_of_a_larger_limit(small_limit, monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
  monkeypatch.setenv(limits.MAX_PIXELS, '960')
  assert decode_image(encode(RGB, 'PNG'), 'x').shape == RGB.shape


@pytest.mark.parametrize('text', ['0', '-1', 'many', '1e6', '9' * 30])
def test_an_invalid_limit_is_said_in_one_sentence(text, small_limit, monkeypatch):
  monkeypatch.setenv(limits.MAX_PIXELS, text)
  with pytest.raises(UserError, match=f'{limits.MAX_PIXELS} is .*must be a number of pixels'):
    decode_image(encode(RGB, 'PNG'), 'x')


def test_other_processes_inherit_the_limit():
  code = 'from vit_jax.data.decoding import limits; print(limits.max_pixels())'
  environment = os.environ | {limits.MAX_PIXELS: '1234'}
  result = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True)
  assert result.stdout == b'1234\n'


@pytest.mark.parametrize('size', [(0, 5), (5, 0)])
def test_pillow_images_without_pixels_are_refused(size):
  with pytest.raises(BadExampleError, match='^the image has no pixels'):
    pillow_to_array(Image.new('RGB', size))


MODES = ['1', 'L', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'LAB', 'HSV', 'I', 'F', 'LA', 'La', 'PA']


@pytest.mark.parametrize('mode', [*MODES, 'RGBX', 'RGBa', 'I;16', 'I;16L', 'I;16B'])
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_pillow_images_of_any_mode_are_pixels_or_an_error(mode, channels):
  try:
    pixels = pillow_to_array(Image.new(mode, (5, 4)), channels)
  except BadExampleError as error:
    assert '\n' not in str(error) and mode in ('LAB', 'La', 'PA')
  else:
    assert (pixels.shape, pixels.dtype) == ((4, 5, channels), np.uint8)


def test_float_images_of_any_values_are_pixels():
  values = np.array([[np.nan, np.inf, -np.inf, 1e30, 254.6]], np.float32)
  with np.errstate(all='raise'):
    pixels = pillow_to_array(Image.fromarray(values), 1)
  assert pixels.ravel().tolist() == [0, 255, 0, 255, 255]


def test_pillow_images_that_turn_out_to_be_damaged_or_closed_are_errors():
  data = encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), 'PNG')
  damaged, closed = Image.open(io.BytesIO(data[:3000])), Image.open(io.BytesIO(data))
  closed.close()
  for image in (damaged, closed):
    with pytest.raises(BadExampleError, match='^cat cannot be read as an image'):
      pillow_to_array(image, name='cat')


@pytest.mark.parametrize('kind', [b'tEXt', b'zTXt', b'iTXt', b'iCCP'])
def test_chunks_of_text_that_decompress_to_gigabytes_take_no_memory(kind):
  data, text = encode(RGB, 'PNG'), zlib.compress(bytes(2**27))
  content = {
    b'tEXt': b'a\0' + bytes(2**21),
    b'zTXt': b'a\0\0' + text,
    b'iTXt': b'a\0\1\0\0\0' + text,
    b'iCCP': b'a\0\0' + text,
  }[kind]
  chunk = kind + content
  packed = struct.pack('>I', len(content)) + chunk + struct.pack('>I', zlib.crc32(chunk))
  tracemalloc.start()
  try:
    assert decode_image(data[:33] + packed + data[33:], 'x').shape == RGB.shape
  except BadExampleError as error:
    assert '\n' not in str(error)
  assert tracemalloc.get_traced_memory()[1] < 2**25
  tracemalloc.stop()


@pytest.mark.parametrize('dtype', [np.uint16, np.int64, np.float32, bool, object, 'U1'])
def test_arrays_of_other_types_and_shapes_are_refused(dtype):
  for array in (np.zeros((4, 5, 3), dtype), np.zeros((4, 5), dtype)):
    with pytest.raises(BadExampleError, match=r'^x is .*must be \(H, W, C\) uint8'):
      open_image(array, 'x')
  for shape in ((), (3,), (0, 5, 3), (5, 0, 3), (5, 5, 0), (1, 4, 5, 3)):
    with pytest.raises(BadExampleError, match='^x is uint8'):
      open_image(np.zeros(shape, np.uint8), 'x')


def test_a_box_beyond_the_image_that_tiles_claim_is_decoded_without_them(monkeypatch):
  """The index may be damaged: what it yields is used only if it holds the box."""
  data = jpeg(RGB)
  small = jpeg(RGB[:8, :8])
  image, box = open_image(data, 'x'), Box(8, 4, 20, 17)
  expected = image.pixels(box)
  monkeypatch.setattr(jpeg_tiles, 'crop', lambda *args: (small, 0, 0))
  for use_library in (True, False):
    if not use_library:
      monkeypatch.setattr(images.turbojpeg, '_library', lambda: None)
    pixels = image.pixels(box)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= 1
