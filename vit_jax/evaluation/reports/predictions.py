"""Classifies image files, on all local devices, with threads that read ahead."""

import collections
import concurrent.futures
import dataclasses
import itertools
import sys
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from vit_jax.classifier import Classifier
from vit_jax.config import MeshConfig
from vit_jax.data.decoding.images import SUFFIXES
from vit_jax.data.sources import image_files
from vit_jax.distributed import sharding
from vit_jax.errors import UserError
from vit_jax.files import read_text, user_path
from vit_jax.hardware import num_cores

_NUM_READING = 3  # batches that are read ahead


@dataclasses.dataclass(frozen=True)
class Prediction:
  """The classes of an image: (index, label, probability), most probable first; or an error."""

  path: epath.Path
  top: tuple[tuple[int, str, float], ...] = ()
  error: UserError | None = None

  def as_json(self) -> list[dict[str, Any]]:
    """The classes as {'label', 'index', 'probability'}."""
    return [{'label': x, 'index': i, 'probability': p} for i, x, p in self.top]


def find_images(arguments: Iterable[str]) -> list[epath.Path]:
  """The files among the arguments, and all images of the folders among them.

  Raises:
    UserError: for a folder without images.
  """
  paths = []
  for argument in arguments:
    path = user_path(argument)
    if not path.is_dir():
      paths.append(path)
    elif files := image_files(path):
      paths += [path / file for file in files]
    else:
      raise UserError(f'{path} has no images ({", ".join(SUFFIXES)}).')
  return paths


def read_list(file: str) -> list[str]:
  """The lines of a text file, or of stdin for '-', without empty ones.

  Raises:
    UserError: for a file that cannot be read.
  """
  try:
    text = sys.stdin.read() if file == '-' else read_text(user_path(file))
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise UserError(f'{file} cannot be read: {reason}.') from None
  return [line for line in text.split('\n') if line.strip()]


def predict_files(
  vit: Classifier, paths: Iterable[epath.Path], top_k: int, batch_size: int = 32
) -> Generator[Prediction, None, None]:
  """Classifies image files on all local devices, and yields a `Prediction` for each, in order."""
  mesh = sharding.make_mesh(MeshConfig(), jax.local_devices())
  batch_size = -(-batch_size // mesh.size) * mesh.size
  vit = dataclasses.replace(vit, params=jax.device_put(vit.params, sharding.replicated(mesh)))
  for chunk, images in _read_batches(vit, paths, batch_size):
    pixels = [image for image in images if isinstance(image, np.ndarray)]
    rows = iter(())
    if pixels:
      # Padded, because another batch size would be another compilation.
      padding = [np.zeros_like(pixels[0])] * (batch_size - len(pixels))
      batch = jax.device_put(np.stack(pixels + padding), sharding.batch_sharding(mesh))
      rows = iter(np.asarray(vit.probabilities(batch)))
    for path, image in zip(chunk, images, strict=True):
      if isinstance(image, UserError):
        yield Prediction(path, error=image)
      else:
        yield Prediction(path, tuple(vit.top_classes(next(rows), top_k)))


def _read_batches(
  vit: Classifier, paths: Iterable[epath.Path], batch_size: int
) -> Iterator[tuple[list[epath.Path], list[np.ndarray | UserError]]]:
  """Yields batches of paths and their images, which threads read ahead."""

  def read(path: epath.Path) -> np.ndarray | UserError:
    try:
      return vit.preprocess(path)
    except UserError as error:
      return error

  queue, chunks = collections.deque(), iter(paths)
  with concurrent.futures.ThreadPoolExecutor(min(num_cores(), 16)) as pool:
    while True:
      while len(queue) < _NUM_READING and (chunk := list(itertools.islice(chunks, batch_size))):
        queue.append((chunk, [pool.submit(read, path) for path in chunk]))
      if not queue:
        return
      chunk, futures = queue.popleft()
      yield chunk, [future.result() for future in futures]
