"""Fuzzes the decoding of images: a damaged file ends in pixels or in one clean sentence.

  python benchmarks/fuzz_images.py --count=200000 --seed=0 --kinds=JPEG,PNG

Small valid files of every kind are damaged: bits, bytes, numbers and chunks changed, removed,
repeated or spliced, and in a PNG also within chunks whose checksums are then right. Each file is
checked as by `prepare_data`, then decoded as a whole, at a reduced size, in a box, as a training
crop and as a test image, and as a Pillow image. It passes if each gives (H, W, C) uint8 of the
right size, or a `BadExampleError` of one line; if file and Pillow image, both decoded, have the
same pixels. Everything else is a failure: another exception, a crash, more than five seconds, more
than 128 MiB of memory (the limit of pixels is 2**20). Failing files go to --failures.

Input i of a kind depends on --seed and i alone. The counts are kept in --failures, too: the same
command, run again, resumes. One row for each kind goes to
benchmarks/results/fuzz_images_<date>.csv.
"""

import argparse
import csv
import datetime
import faulthandler
import io
import json
import mmap
import os
import pathlib
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.config import AugmentConfig, Preprocessing
from vit_jax.data.augmentation import transforms
from vit_jax.data.augmentation.preprocessing import preprocess
from vit_jax.data.decoding import jpeg_tiles
from vit_jax.data.decoding.box import Box
from vit_jax.data.decoding.images import check_image, open_image, pillow_to_array
from vit_jax.errors import BadExampleError

MAX_PIXELS = 2**20
MAX_SECONDS = 5
MAX_BYTES = 2**27
JOB = 5000  # inputs of one process
SIZE = (16, 20)  # of training and test images
COUNTS = ('inputs', 'pixels', 'errors', 'failures')  # of which a process keeps its parent informed

# --- valid files ----------------------------------------------------------------------------


def _picture(height: int, width: int, channels: int = 3) -> Image.Image:
  """A smooth picture with a little noise."""
  rng = np.random.default_rng(height)
  coarse = Image.fromarray(rng.integers(0, 256, (4, 5, channels), dtype=np.uint8))
  pixels = np.asarray(coarse.resize((width, height))).astype(int)
  return Image.fromarray((pixels + rng.integers(0, 9, pixels.shape)).clip(0, 255).astype(np.uint8))


def _encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
  file = io.BytesIO()
  image.save(file, image_format, **options)
  return file.getvalue()


def _exif(orientation: int) -> Image.Exif:
  exif = Image.Exif()
  exif[0x010F], exif[0x0112], exif[0x011A] = 'a camera', orientation, 72.5
  return exif


def _chunk(kind: bytes, content: bytes) -> bytes:
  checksum = zlib.crc32(kind + content)
  return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', checksum)


def _interlaced_png(image: Image.Image) -> bytes:
  pixels = np.asarray(image)
  passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
  rows = [
    b'\0' + row.tobytes()
    for top, left, down, right in (*passes, (1, 0, 2, 1))
    for row in pixels[top::down, left::right]
  ]
  header = struct.pack('>IIBBBBB', image.width, image.height, 8, 2, 0, 0, 1)
  data = zlib.compress(b''.join(rows))
  chunks = ((b'IHDR', header), (b'IDAT', data), (b'IEND', b''))
  return b'\x89PNG\r\n\x1a\n' + b''.join(_chunk(*chunk) for chunk in chunks)


def _run_length_bmp(bits: int) -> bytes:
  width, height = 40, 24
  palette = bytes(range(256))[: 4 * 2**bits] * (4 * 2**bits // 256 or 1)
  row = bytes((10, 17, 0, 5, 1, 2, 3, 4, 5, 0, 25, 34, 0, 0))  # a run, literals, a run, the end
  data = row * (height - 3) + bytes((0, 2, 7, 2, 33, 51, 0, 1))  # a jump
  offset = 54 + len(palette)
  info = (40, width, height, 1, bits, {8: 1, 4: 2}[bits], len(data), 0, 0, 2**bits, 0)
  header = b'BM' + struct.pack('<IHHI', offset + len(data), 0, 0, offset)
  return header + struct.pack('<IiiHHIIiiII', *info) + palette + data


def make_files() -> dict[str, list[bytes]]:
  """Valid files of each kind."""
  small, large = _picture(40, 48), _picture(90, 120)
  tiled = _picture(120, 160)
  palette = small.quantize(64)
  alpha = _picture(40, 48, 4)
  deep = Image.fromarray(np.asarray(small.convert('L')).astype(np.uint16) * 257)
  frames = {'save_all': True, 'append_images': [small.rotate(180), small.rotate(90)]}
  xmp = b'<x:xmpmeta tiff:Orientation="8"></x:xmpmeta>'
  return {
    'JPEG': [_encode(small, 'JPEG', subsampling=0), _encode(large, 'JPEG')],
    'progressive JPEG': [_encode(image, 'JPEG', progressive=True) for image in (small, large)],
    'tiled JPEG': [jpeg_tiles.encode(image, 90) for image in (tiled, tiled.convert('L'))],
    'JPEG with EXIF': [
      _encode(small, 'JPEG', exif=_exif(6)),
      _encode(large, 'JPEG', exif=_exif(3), dpi=(72, 72)),
      _encode(small, 'JPEG', xmp=xmp),
    ],
    'gray JPEG': [_encode(image.convert('L'), 'JPEG') for image in (small, large)],
    'CMYK JPEG': [_encode(small.convert('CMYK'), 'JPEG')],
    'PNG': [_encode(small, 'PNG', exif=_exif(5)), _encode(small.convert('L'), 'PNG')],
    'palette PNG': [_encode(palette, 'PNG'), _encode(palette, 'PNG', transparency=bytes(30))],
    '16-bit PNG': [_encode(deep, 'PNG')],
    'PNG with alpha': [_encode(alpha, 'PNG'), _encode(alpha.convert('LA'), 'PNG')],
    'interlaced PNG': [_interlaced_png(small)],
    'WebP': [_encode(small, 'WEBP', exif=_exif(7)), _encode(large, 'WEBP')],
    'lossless WebP': [_encode(image, 'WEBP', lossless=True) for image in (small, alpha)],
    'animated WebP': [_encode(small, 'WEBP', **frames)],
    'GIF': [_encode(palette, 'GIF'), _encode(small, 'GIF', transparency=3, **frames)],
    'BMP': [_encode(image, 'BMP') for image in (small, palette, small.convert('1'))],
    'run-length BMP': [_run_length_bmp(8), _run_length_bmp(4)],
  }


# --- damage ---------------------------------------------------------------------------------

_EXTREMES = (0, 1, 2, 2**7, 2**8 - 1, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)


def damaged(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
  """Changes a few places of a file, half of them in its first 64 bytes or near a marker."""
  changed = bytearray(data)
  for _ in range(rng.choice((1, 1, 1, 2, 4))):
    _damage_once(rng, changed, others)
  return bytes(changed)


def _damage_once(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
  size = len(data)
  i = rng.randrange(size + 1)
  if rng.random() < 0.25:
    i = rng.randrange(min(64, size + 1))
  elif rng.random() < 0.3:
    i = min(size, max(0, data.find(b'\xff', i)) + rng.randrange(12))
  end = i + rng.choice((1, 2, 4, 8, rng.randrange(1, 2000)))
  kind = rng.randrange(9)
  if kind == 0 and i < size:
    data[i] ^= 1 << rng.randrange(8)
  elif kind == 1:
    data[i : i + 1] = rng.randbytes(1)
  elif kind == 2:
    del data[i:]
  elif kind == 3:
    data[i:i] = rng.randbytes(end - i)
  elif kind == 4:
    del data[i:end]
  elif kind == 5:
    data[i:i] = data[i:end]
  elif kind == 6:
    j = rng.randrange(size + 1)
    data[j : j + end - i] = data[i:end]
  elif kind == 7:
    width, order = rng.choice((2, 4)), rng.choice(('little', 'big'))
    number = rng.choice((*_EXTREMES, size, rng.randrange(300)))
    data[i : i + width] = (number % 2 ** (8 * width)).to_bytes(width, order)
  else:
    other = rng.choice(others)
    j = rng.randrange(len(other))
    data[i:end] = other[j : j + end - i]


def damaged_png(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
  """Changes chunks of a PNG, or their order; lengths and checksums are right."""
  chunks, offset = [], 8
  while offset < len(data):
    end = offset + 8 + int.from_bytes(data[offset : offset + 4])
    chunks.append((data[offset + 4 : offset + 8], data[offset + 8 : end]))
    offset = end + 4
  i, j = rng.randrange(len(chunks)), rng.randrange(len(chunks))
  kind, content = chunks[i]
  action = rng.randrange(6)
  if action == 0:
    chunks[i], chunks[j] = chunks[j], chunks[i]
  elif action == 1:
    kinds = (b'tRNS', b'PLTE', b'zTXt', b'iTXt', b'iCCP', b'gAMA', b'eXIf', b'acTL', b'fdAT')
    new = rng.choice((content, zlib.compress(content), b'a\0\0' + zlib.compress(bytes(2**21))))
    chunks.insert(j, (rng.choice((kind, *kinds)), new))
  elif kind == b'IDAT' and action < 5:  # the filters of rows, and how many there are
    chunks[i] = kind, zlib.compress(damaged(rng, zlib.decompress(content), others))
  else:
    chunks[i] = kind, damaged(rng, content, others)
  return data[:8] + b''.join(_chunk(*chunk) for chunk in chunks)


def make_input(files: dict[str, list[bytes]], kind: str, seed: int, i: int) -> bytes:
  """Damages one of the files of a kind."""
  rng = random.Random(f'{kind} {seed} {i}')
  data = rng.choice(files[kind])
  others = files[rng.choice(list(files))]
  while True:
    damage = damaged_png if 'PNG' in kind and rng.random() < 0.5 else damaged
    if (changed := damage(rng, data, others)) != data:
      return changed


# --- checks of an input -------------------------------------------------------------------


def _pixels(read: Callable[[], np.ndarray], shape: Sequence[int | None]) -> np.ndarray | None:
  """Calls `read`: pixels of `shape`, or None for a BadExampleError; else it raises."""
  try:
    pixels = read()
  except BadExampleError as error:
    text = str(error)
    assert text.startswith('x ') and len(text.splitlines()) == 1, f'not one line: {text!r}'
    assert len(text) < 500, f'a long sentence: {text}'
    assert 'memory' not in text.lower(), f'too much memory: {text}'
    return None
  assert pixels.dtype == np.uint8, f'{pixels.dtype}'
  same = [side in (None, actual) for side, actual in zip(shape, pixels.shape, strict=True)]
  assert all(same), f'{pixels.shape} instead of {shape}'
  return pixels


def check(data: bytes, rng: random.Random) -> str:
  """Decodes a file in every way: 'pixels' or 'errors'; what is wrong raises."""
  channels = rng.choice((1, 3, 3, 3, 4))
  try:
    check_image(data, 'x')
  except BadExampleError as error:
    assert 'memory' not in str(error).lower(), f'too much memory: {error}'
  try:
    image = open_image(data, 'x', channels)
  except BadExampleError as error:
    assert 'memory' not in str(error).lower(), f'too much memory: {error}'
    return 'errors'
  height, width = image.height, image.width
  whole = _pixels(image.pixels, (height, width, channels))
  left, top = rng.randrange(width), rng.randrange(height)
  box = Box(left, top, rng.randrange(left, width) + 1, rng.randrange(top, height) + 1)
  _pixels(lambda: image.pixels(box), (box.height, box.width, channels))
  for part in (None, box):
    _pixels(lambda part=part: image.pixels(part, (5, 6)), (None, None, channels))
  generator = np.random.default_rng(rng.randrange(2**32))
  config = AugmentConfig(crop='inception', reduced_decoding=rng.random() < 0.5)
  _pixels(lambda: transforms.augment(image, SIZE, config, generator), (*SIZE, channels))
  if whole is not None:
    _pixels(lambda: prepare_test_image(whole), (*SIZE, channels))
  _check_pillow(data, channels, whole)
  return 'errors' if whole is None else 'pixels'


def prepare_test_image(pixels: np.ndarray) -> np.ndarray:
  return preprocess(pixels, SIZE, Preprocessing())


def _check_pillow(data: bytes, channels: int, whole: np.ndarray | None) -> None:
  """Compares the pixels of a file with those of the same file opened by Pillow."""
  try:
    opened = Image.open(io.BytesIO(data), formats=('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF'))
  except Exception:  # noqa: BLE001 - it never gets to us
    return
  pixels = _pixels(lambda: pillow_to_array(opened, channels, 'x'), (None, None, channels))
  if pixels is not None and whole is not None:
    assert pixels.shape == whole.shape, f'{pixels.shape} of a Pillow image, {whole.shape} of a file'
    if data[:2] != b'\xff\xd8' or channels != 1:  # a gray JPEG is its luma, not a weighted sum
      assert np.array_equal(pixels, whole), 'other pixels of a Pillow image than of a file'


# --- processes ------------------------------------------------------------------------------


def _limit_memory() -> None:
  """Lets this process have MAX_BYTES more than it has."""
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[5])
  _, hard = resource.getrlimit(resource.RLIMIT_DATA)
  limit = pages * resource.getpagesize() + MAX_BYTES
  resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def run_job(kind: str, first: int, count: int, seed: int, failures: pathlib.Path) -> None:
  """Checks inputs `first`, …; keeps the file of counts, `failures/.KIND`, up to date."""
  warnings.simplefilter('ignore')
  os.environ['VIT_JAX_MAX_PIXELS'] = str(MAX_PIXELS)
  files = make_files()
  try:
    assert all(check(data, random.Random(0)) == 'pixels' for data in files[kind])
  except Exception:  # noqa: BLE001
    traceback.print_exc()
    sys.exit(2)
  with open(_counts_path(failures, kind), 'r+b') as file:
    counts = np.frombuffer(mmap.mmap(file.fileno(), 8 * len(COUNTS)), np.int64)
    for i in range(first, first + count):
      data = make_input(files, kind, seed, i)
      if i % 100 == first % 100:
        _limit_memory()
      faulthandler.dump_traceback_later(20, exit=True)
      start = time.process_time()
      try:
        outcome = check(data, random.Random(i))
        seconds = time.process_time() - start
        assert seconds < MAX_SECONDS, f'{seconds:.1f} seconds'
      except Exception:  # noqa: BLE001
        keep(failures, kind, seed, i, data, traceback.format_exc())
        outcome = 'failures'
      counts[COUNTS.index(outcome)] += 1
      counts[0] += 1


def _counts_path(failures: pathlib.Path, kind: str) -> pathlib.Path:
  return failures / f'.{kind}'


def keep(failures: pathlib.Path, kind: str, seed: int, i: int, data: bytes, text: str) -> None:
  """Stores a failing input, and what happened."""
  path = failures / f'{kind.replace(" ", "_")}_{seed}_{i}'
  path.write_bytes(data)
  path.with_suffix('.txt').write_text(text)
  print(f'\rFAILURE {path}: {text.strip().splitlines()[-1][:150]}', flush=True)


def start_job(kind: str, first: int, count: int, seed: int, failures: pathlib.Path) -> dict:
  """Runs a job in a process of its own, which may crash or hang; what became of its inputs."""
  path = _counts_path(failures, kind)
  path.write_bytes(bytes(8 * len(COUNTS)))
  job = f'--job={kind},{first},{count}'
  command = [sys.executable, __file__, job, f'--seed={seed}', f'--failures={failures}']
  start = time.perf_counter()
  result = subprocess.run(command, stderr=subprocess.PIPE)
  counts = dict(zip(COUNTS, np.fromfile(path, np.int64).tolist(), strict=True))
  path.unlink()
  text = f'{result.stderr.decode(errors="replace")}\nexit code {result.returncode}\n'
  if result.returncode == 2:
    sys.exit(f'A valid {kind} is not decoded:\n{text}')
  if result.returncode:
    i = first + counts['inputs']
    keep(failures, kind, seed, i, make_input(make_files(), kind, seed, i), text)
    counts['inputs'] += 1
    counts['failures'] += 1
  return counts | {'seconds': time.perf_counter() - start}


def fuzz(args: argparse.Namespace, kinds: Sequence[str]) -> dict[str, dict[str, float]]:
  """Checks `args.count` inputs of each kind, in turn; what became of them."""
  file = args.failures / f'counts_{args.seed}.json'
  totals = json.loads(file.read_text()) if file.exists() else {}
  for kind in kinds:
    totals.setdefault(kind, dict.fromkeys((*COUNTS, 'seconds'), 0))
  end = time.monotonic() + 60 * args.minutes
  while time.monotonic() < end:
    kind = min(kinds, key=lambda kind: totals[kind]['inputs'])
    total = totals[kind]
    if total['inputs'] >= args.count:
      break
    count = min(JOB, args.count - total['inputs'])
    for key, value in start_job(kind, total['inputs'], count, args.seed, args.failures).items():
      total[key] += value
    file.write_text(json.dumps(totals))
    share = sum(totals[kind]['inputs'] for kind in kinds) / args.count / len(kinds)
    failed = sum(totals[kind]['failures'] for kind in kinds)
    bar = '#' * int(30 * share)
    print(f'\r[{bar:.<30}] {share:.1%}, {failed} failures', end='', file=sys.stderr, flush=True)
  print(file=sys.stderr)
  return {kind: totals[kind] for kind in kinds}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--count', type=int, default=200_000, help='inputs of each kind')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--kinds', help='separated by commas; default: all')
  parser.add_argument('--minutes', type=float, default=float('inf'), help='stop after that long')
  parser.add_argument(
    '--failures',
    type=pathlib.Path,
    help='where they are kept',
    default=pathlib.Path(tempfile.gettempdir(), 'fuzz_images'),
  )
  parser.add_argument('--out', type=pathlib.Path, default='benchmarks/results')
  parser.add_argument('--job', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.job:
    kind, first, count = args.job.split(',')
    return run_job(kind, int(first), int(count), args.seed, args.failures)
  names = list(make_files())
  kinds = args.kinds.split(',') if args.kinds else names
  if unknown := set(kinds) - set(names):
    parser.error(f'no kind {", ".join(unknown)}; there are {", ".join(names)}')
  args.failures.mkdir(parents=True, exist_ok=True)
  totals = fuzz(args, kinds)
  totals['all'] = {key: sum(total[key] for total in totals.values()) for key in totals[kinds[0]]}
  rows = [
    {
      'date': datetime.date.today().isoformat(),
      'kind': kind,
      'inputs': total['inputs'],
      'pixels': total['pixels'],
      'clean_errors': total['errors'],
      'failures': total['failures'],
      'inputs_per_second': round(total['inputs'] / max(total['seconds'], 1e-9), 1),
      'seed': args.seed,
    }
    for kind, total in totals.items()
  ]
  widths = {key: 2 + max(len(str(row[key])) for row in [*rows, {key: key}]) for key in rows[0]}
  for row in ({key: key for key in rows[0]}, *rows):
    print(''.join(f'{row[key]!s:<{width}}' for key, width in widths.items()))
  path = args.out / f'fuzz_images_{datetime.date.today()}.csv'
  with path.open('w', newline='') as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
  sys.exit(1 if rows[-1]['failures'] else 0)


if __name__ == '__main__':
  main()
