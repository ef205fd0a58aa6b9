"""Simulates how busy the data loader keeps many readers: share of their time that they read.

  python benchmarks/reader_simulation.py

Drives the real `DataLoader` with threads that sleep instead of reading, so that a few cores can
stand for the 112 of a host. The seconds of an image are drawn from a log-normal distribution (sigma
0.6, as of photos of different sizes), and one image in a thousand takes twenty times as long. The
mean (--milliseconds) is longer than in reality, because the interpreter's lock is shared: at 112
readers and 50 ms 2,240 images arrive each second.
Ideal (1) would be that all readers read all the time; the consumer takes each batch at once.

Writes benchmarks/results/reader_simulation_<date>.csv.
"""

import argparse
import csv
import datetime
import os
import pathlib
import sys
import threading
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
CASES = [(2, 32), (16, 32), (16, 128), (16, 1024), (112, 32), (112, 512), (112, 4096)]
SIZE = 1_281_167  # examples
_SIGMA, _SLOW, _TIMES_SLOWER = 0.6, 1e-3, 20


class SleepingSource:
  """Counts the seconds slept; the duration of an example is a function of its index."""

  def __init__(self, mean_seconds: float):
    self.mean, self.seconds, self.images = mean_seconds, 0.0, 0
    self._lock = threading.Lock()

  def read(self, index: int) -> tuple[np.ndarray, np.int32]:
    rng = np.random.Generator(np.random.Philox(index))
    seconds = self.mean * rng.lognormal(-(_SIGMA**2) / 2, _SIGMA)
    seconds *= (_TIMES_SLOWER if rng.random() < _SLOW else 1) / (1 + _SLOW * (_TIMES_SLOWER - 1))
    start = time.perf_counter()
    time.sleep(seconds)
    with self._lock:
      self.seconds += time.perf_counter() - start
      self.images += 1
    return np.zeros((2, 2, 3), np.uint8), np.int32(0)


def simulate(readers: int, batch_size: int, mean_seconds: float, seconds: float) -> dict:
  """Returns the share of the readers' time that they read, after a warmup."""
  from vit_jax.config import MeshConfig
  from vit_jax.data.loading import loader
  from vit_jax.data.loading.reader import Reader
  from vit_jax.data.sources import Source
  from vit_jax.distributed import sharding

  sleeping = SleepingSource(mean_seconds)
  source = Source('simulation', SIZE, sleeping.read, ('a', 'b'))
  reader = Reader(source, lambda image, rng: image.pixels(), (2, 2, 3))
  stream = loader.Stream(reader, batch_size, loader.example_order(source, 0))
  mesh = sharding.make_mesh(MeshConfig())
  with loader.DataLoader({'train': stream}, mesh, threads=readers) as data_loader:
    batches = data_loader.batches('train', 0, 10**9)
    warmup = time.perf_counter() + max(40 * mean_seconds, seconds / 4)
    while time.perf_counter() < warmup:
      next(batches)
    before = (time.perf_counter(), sleeping.seconds, sleeping.images)
    while time.perf_counter() - before[0] < seconds:
      next(batches)
    now = (time.perf_counter(), sleeping.seconds, sleeping.images)
    elapsed, slept, images = (b - a for a, b in zip(before, now, strict=True))
    batches.close()
  return {
    'readers': readers,
    'batch_size': batch_size,
    'milliseconds_per_image': 1000 * mean_seconds,
    'images': images,
    'images_per_second': round(images / elapsed),
    'share_of_ideal': round(slept / elapsed / readers, 3),
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--milliseconds', type=float, default=50, help='mean time of an image')
  parser.add_argument('--seconds', type=float, default=20, help='duration of each simulation')
  parser.add_argument('--out', type=pathlib.Path, default=ROOT / 'benchmarks' / 'results')
  args = parser.parse_args()
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  records = []
  for readers, batch_size in CASES:
    records.append(simulate(readers, batch_size, args.milliseconds / 1000, args.seconds))
    print(records[-1], flush=True)
  path = args.out / f'reader_simulation_{datetime.date.today().isoformat()}.csv'
  with path.open('w', newline='') as file:
    writer = csv.DictWriter(file, records[0], lineterminator='\n')
    writer.writeheader()
    writer.writerows(records)


if __name__ == '__main__':
  main()
