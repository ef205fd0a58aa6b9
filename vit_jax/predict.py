"""Classifies images: `python -m vit_jax.predict --model=M IMAGE…`."""

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath

from vit_jax import command_line
from vit_jax.classifier import Classifier, load
from vit_jax.data.decoding.images import SUFFIXES
from vit_jax.data.sources import image_files
from vit_jax.errors import UserError
from vit_jax.files import read_bytes
from vit_jax.text import printable


def find_images(arguments: Iterable[str]) -> Iterator[epath.Path]:
  """Yields the files among the arguments, and all images of the folders among them.

  Raises:
    UserError: for a folder without images.
  """
  for argument in arguments:
    path = epath.Path(argument).expanduser()
    if not path.is_dir():
      yield path
    elif files := image_files(path):
      yield from (path / file for file in files)
    else:
      raise UserError(f'{path} has no images ({", ".join(SUFFIXES)}).')


def read_image(vit: Classifier, path: epath.Path) -> np.ndarray | UserError:
  """The preprocessed image, or the error if it cannot be read."""
  try:
    return vit.preprocess(read_bytes(path), str(path))
  except OSError as error:
    return UserError(f'{path} cannot be read: {error.strerror or error}.')
  except UserError as error:
    return error


def predict(
  vit: Classifier, paths: Iterable[epath.Path], top_k: int, batch_size: int = 32
) -> Iterator[tuple[epath.Path, list[dict[str, Any]] | UserError]]:
  """Yields each path with its `top_classes`, or with the error if it cannot be read."""
  paths = iter(paths)
  while chunk := list(itertools.islice(paths, batch_size)):
    images = [read_image(vit, path) for path in chunk]
    readable = [image for image in images if isinstance(image, np.ndarray)]
    # The last chunk is not padded: compiling again for its size is cheaper.
    size = batch_size if len(chunk) == batch_size else len(readable)
    padding = [np.zeros((*vit.image_size, vit.channels), np.float32)] * (size - len(readable))
    rows = iter(())
    if readable:
      rows = iter(np.asarray(vit.probabilities(np.stack(readable + padding))))
    for path, image in zip(chunk, images, strict=True):
      yield path, image if isinstance(image, UserError) else top_classes(vit, next(rows), top_k)


def top_classes(vit: Classifier, probabilities: np.ndarray, k: int) -> list[dict[str, Any]]:
  """The `k` most probable classes of one image, most probable first."""
  return [
    {
      'label': vit.labels[i] if vit.labels else f'class {i}',
      'index': int(i),
      'probability': float(probabilities[i]),
    }
    for i in np.argsort(-probabilities, kind='stable')[:k]
  ]


def main() -> None:
  parser = command_line.Parser('vit_jax.predict', description=__doc__)
  parser.add_argument('images', nargs='+', metavar='IMAGE', help='files, or folders of them')
  parser.add_argument('--model', required=True, help='a file, folder, workdir or published name')
  parser.add_argument('--top_k', type=int, default=5, help='classes to print for each image')
  parser.add_argument('--json', action='store_true', help='print one JSON object for each image')
  args = parser.parse_args()
  if args.top_k < 1:
    raise UserError(f'--top_k is {args.top_k}; it must be positive.')
  vit = load(args.model)
  command_line.print_report(vit.report)
  if not vit.model.num_classes:
    raise UserError(f'{args.model} has no head; name a model with classes.')
  failed = 0
  for path, classes in predict(vit, find_images(args.images), args.top_k):
    if isinstance(classes, UserError):
      failed += 1
      print(f'error: {classes}', file=sys.stderr)
    elif args.json:
      print(json.dumps({'image': str(path), 'top': classes}))
    else:
      print(printable(str(path)))
      for entry in classes:
        print(f'  {entry["probability"]:7.2%}  {printable(entry["label"])}')
  if failed:
    sys.exit(UserError.exit_code)


if __name__ == '__main__':
  command_line.run(main)
