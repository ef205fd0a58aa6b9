"""Measures PyTorch's DataLoader for input_pipeline.py, with torchvision; prints images/s.

  python benchmarks/input_pipeline_torch.py FOLDER WORKERS SECONDS

The standard pipeline: ImageFolder, RandomResizedCrop(224) of (5 %, 100 %) of the area, flips, uint8
batches of 128.
"""

import itertools
import sys
import time

import torch
from torchvision import datasets
from torchvision.transforms import v2

BATCH_SIZE, SIZE = 128, 224


def main() -> None:
  folder, workers, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
  transform = v2.Compose(
    [v2.PILToTensor(), v2.RandomResizedCrop(SIZE, (0.05, 1.0)), v2.RandomHorizontalFlip()]
  )
  loader = torch.utils.data.DataLoader(
    datasets.ImageFolder(folder, transform),
    BATCH_SIZE,
    shuffle=True,
    num_workers=workers,
    drop_last=True,
    persistent_workers=True,
  )
  batches = itertools.chain.from_iterable(itertools.repeat(loader))
  for _ in range(10):
    next(batches)
  num_images, start = 0, time.perf_counter()
  while (elapsed := time.perf_counter() - start) < seconds:
    next(batches)
    num_images += BATCH_SIZE
  print(num_images / elapsed)


if __name__ == '__main__':
  main()
