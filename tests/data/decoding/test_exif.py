"""Files, bytes and Pillow images are turned upright alike, also if they are damaged."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data.decoding.image_files import ORIENTATION, ORIENTATIONS, RGB, encode, jpeg
from vit_jax.data.decoding.box import Box, crop_pixels
from vit_jax.data.decoding.images import check_image, decode_image, open_image, pillow_to_array
from vit_jax.errors import BadExampleError

OPTIONS = {'JPEG': {'quality': 95}, 'PNG': {}, 'WEBP': {'lossless': True}}


def exif(orientation: int) -> Image.Exif:
  exif = Image.Exif()
  exif[0x010F], exif[ORIENTATION], exif[0x0132] = 'a camera', orientation, '2020:01:01 00:00:00'
  return exif


def xmp(orientation: int) -> bytes:
  return b'<x:xmpmeta tiff:Orientation="%d"></x:xmpmeta>' % orientation


def opened(data: bytes) -> Image.Image:
  return Image.open(io.BytesIO(data))


@pytest.mark.parametrize('image_format', OPTIONS)
@pytest.mark.parametrize('orientation', ORIENTATIONS)
def test_pillow_images_and_bytes_have_the_same_upright_pixels(orientation, image_format, tmp_path):
  data = encode(RGB, image_format, exif=exif(orientation), **OPTIONS[image_format])
  upright = decode_image(data, 'x')
  assert np.abs(upright.astype(int) - ORIENTATIONS[orientation](RGB)).mean() < 3
  path = tmp_path / 'x'
  path.write_bytes(data)
  with Image.open(path) as image:
    np.testing.assert_array_equal(pillow_to_array(image), upright, strict=True)
    np.testing.assert_array_equal(pillow_to_array(image), upright)  # `image` is unchanged
  np.testing.assert_array_equal(pillow_to_array(opened(data).convert('RGB')), upright)
  transposed = ImageOps.exif_transpose(opened(data))
  np.testing.assert_array_equal(pillow_to_array(transposed), upright)  # not turned twice


@pytest.mark.parametrize('orientation', ORIENTATIONS)
def test_orientations_in_xmp_are_obeyed_alike(orientation):
  data = encode(RGB, 'JPEG', quality=95, xmp=xmp(orientation))
  upright = decode_image(data, 'x')
  assert np.abs(upright.astype(int) - ORIENTATIONS[orientation](RGB)).mean() < 3
  np.testing.assert_array_equal(pillow_to_array(opened(data)), upright)


def test_an_unknown_orientation_means_upright():
  data = encode(RGB, 'PNG', exif=exif(0))
  np.testing.assert_array_equal(decode_image(data, 'x'), RGB)
  np.testing.assert_array_equal(pillow_to_array(opened(data)), RGB)


@pytest.mark.parametrize('value', [9, 65535])
def test_an_orientation_that_does_not_exist_is_damage(value):
  with pytest.raises(BadExampleError, match='EXIF metadata'):
    decode_image(encode(RGB, 'PNG', exif=exif(value)), 'x')


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('has_more', [False, True])
def test_one_damaged_byte_of_exif_is_noticed(order, has_more):
  """Except in the orientation itself: its tag, its value; and where the directory begins."""
  block = Image.Exif()
  block.endian, block[0x0112] = order, 6
  if has_more:
    block[0x010F], block[0x0132] = 'Camera', '2020:01:01 00:00:00'
  data = jpeg(RGB, exif=block)
  start = data.index(b'Exif') + 6
  entry = data.index(struct.pack(f'{order}HHI', 0x0112, 3, 1), start)
  unnoticed = {entry, entry + 1, entry + 8, entry + 9, start + 4, start + 7}
  for i in range(start, start + len(block.tobytes()) - 6):
    for change in (1, 2, 4, 8, 16, 32, 64, 128, 255):
      damaged = bytearray(data)
      damaged[i] ^= change
      try:
        assert decode_image(bytes(damaged), 'x').shape != RGB.shape or i in unnoticed, (i, change)
      except BadExampleError:
        pass


@pytest.mark.parametrize('dpi', [None, (72, 72)])  # Pillow hides errors of files without
def test_exif_that_cannot_be_parsed_is_said_in_one_sentence(dpi):
  options = {'dpi': dpi} if dpi else {}
  data = jpeg(RGB, exif=exif(6), **options).replace(b'Exif\0\0MM', b'Exif\0\0??')
  for read in (decode_image, check_image):
    with pytest.raises(BadExampleError, match=r'^x\.jpg .*EXIF metadata.* is damaged\.$'):
      read(data, 'x.jpg')
  with pytest.raises(BadExampleError, match='^the image .*EXIF'):
    pillow_to_array(opened(data))


@pytest.mark.parametrize('dpi', [None, (72, 72)])
@pytest.mark.parametrize('progressive', [False, True])
def test_a_damaged_jpeg_is_upright_or_an_error(progressive, dpi):
  """Every byte up to the pixels is damaged once, and some of theirs."""
  options = {'dpi': dpi} if dpi else {}
  data = jpeg(RGB, exif=exif(6), progressive=progressive, **options)
  # In these bytes the orientation itself may be lost.
  block = range(data.index(b'MM\0*') + 4, data.index(b'2020:01:01'))
  positions = [
    *range(2, data.index(b'\xff\xda') + 14),
    *range(data.index(b'\xff\xda'), len(data), 3),
  ]
  rng = np.random.default_rng(0)
  upright, box, errors = decode_image(data, 'x'), Box(3, 5, 20, 31), 0
  for i in positions:
    damaged = bytearray(data)
    damaged[i] ^= int(rng.integers(1, 256))
    try:
      image = open_image(bytes(damaged), 'x.jpg')
      pixels = image.pixels()
    except BadExampleError as error:
      assert str(error).startswith('x.jpg ') and '\n' not in str(error)
      errors += 1
      continue
    np.testing.assert_array_equal(image.pixels(box), crop_pixels(pixels, box))
    if i not in block:
      assert pixels.shape != RGB.shape, f'byte {i}: sideways'
  assert upright.shape == (40, 24, 3) and 20 < errors < len(positions) / 2


def test_a_wrong_length_or_inserted_bytes_do_not_hide_the_orientation():
  data = jpeg(RGB, exif=exif(6))
  start = data.index(b'Exif')
  lengths = [data[: start - 1] + bytes([n]) + data[start:] for n in range(0, 256, 3)]
  longer = [data[:i] + b'A' * n + data[i:] for i in range(2, start + 6) for n in (1, 2, 5)]
  for damaged in (*lengths, *longer):
    try:
      assert decode_image(damaged, 'x').shape != RGB.shape
    except BadExampleError:
      pass


def test_flaws_that_do_no_harm_are_silent():
  data = encode(RGB, 'PNG', exif=b'Exif\0\0' + exif(6).tobytes()[6:-20])  # the last value is cut
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', category=UserWarning, module=r'PIL\.')
    assert decode_image(data, 'x').shape == (40, 24, 3)
