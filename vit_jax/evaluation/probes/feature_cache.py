"""Features on disk, so that a data set passes through a model once.

Their key is a hash of all they depend on: parameters, architecture, numerics, preprocessing, the
listing of the data, and the size and modification time of each of its files.
"""

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from vit_jax.data.sources import Source
from vit_jax.data.sources.source import hash_files
from vit_jax.files import cache_folder, read_json_object, scratch_path, write_text
from vit_jax.text import format_bytes, printable
from vit_jax.weights.layouts.released import flatten

_VERSION = 1  # of the files; and to be raised with any change of what features are
Rows = Iterable[tuple[np.ndarray, np.ndarray]]


def digest_params(params: Any) -> str:
  """A hash of the names, shapes and values of a parameter tree on this process's devices."""
  digest = hashlib.sha256()
  for name, tensor in sorted(flatten(params).items()):
    array = np.ascontiguousarray(jax.device_get(tensor))
    digest.update(f'{name} {array.shape} {array.dtype} '.encode())
    digest.update(array.data)
  return digest.hexdigest()


def key(
  params_digest: str,
  settings: Mapping[str, Any],
  source: Source,
  rows: tuple[int, ...] | None = None,
) -> str:
  """The key of the features of a split.

  Args:
    params_digest: see `digest_params`.
    settings: JSON values: architecture, preprocessing, and so on.
    source: the open split.
    rows: the examples of it that have features; None: all.
  """
  facts = {
    'version': _VERSION,
    'params': params_digest,
    'settings': settings,
    'source': [source.name, source.size, source.fingerprint, source.class_names],
    'files': hash_files(source.files(), times=True) if source.files else '',
  }
  if rows is not None:
    facts['rows'] = rows
  text = json.dumps(facts, sort_keys=True, default=dataclasses.asdict)
  return hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:32]


def _files(name: str) -> tuple[epath.Path, epath.Path]:
  folder = cache_folder() / 'features'
  return folder / f'{name}.json', folder / f'{name}.f32'


def load(name: str) -> tuple[np.ndarray, np.ndarray] | None:
  """Loads features by their key: (n, D) float32, memory-mapped, and labels (n,) int32.

  None if they are not there, or not complete.
  """
  description, data = _files(name)
  try:
    shape = tuple(read_json_object(description)['shape'])
    labels_at = shape[0] * shape[1] * 4
    values = np.memmap(data, np.float32, 'r', shape=shape)
    labels = np.fromfile(data, np.int32, offset=labels_at)
    return (values, labels) if len(labels) == len(values) else None
  except (OSError, ValueError, KeyError, TypeError):
    return None


def write(name: str, rows: Rows, size: int, dim: int) -> tuple[np.ndarray, np.ndarray] | None:
  """Writes features as they come, then loads them; see `load`.

  Args:
    name: their key.
    rows: what `extract` yields.
    size, dim: the most examples, and the width of features.

  Returns:
    None, with a note on stderr, if there is no room; `rows` are untouched then.

  Raises:
    OSError: when the disk is full after all.
  """
  description, data = _files(name)
  scratch, needed = scratch_path(data), size * (dim + 1) * 4
  try:
    data.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(data.parent).free) < needed:
      raise OSError(f'{format_bytes(needed)} are needed, {format_bytes(free)} are free')
    file = open(scratch, 'xb')
  except OSError as error:
    reason = error.strerror or error
    print(printable(f'note: features are not kept in {data.parent}: {reason}.'), file=sys.stderr)
    return None
  labels = []
  try:
    with file:
      for features, classes in rows:
        file.write(np.ascontiguousarray(features, np.float32).data)
        labels.append(classes)
      file.write(np.concatenate([np.zeros(0, np.int32), *labels]).data)
    scratch.replace(data)
  finally:
    scratch.unlink(missing_ok=True)
  write_text(description, json.dumps({'shape': [sum(map(len, labels)), dim]}))
  return load(name)
