"""Data sources: a string opens a split of a data set, with random access to its examples.

  digits                scikit-learn's 1,797 handwritten digits, installed with the package
  folder:/path          {train,val,test}/class/* or class/*
  table:/path/x.csv     images whose labels are in a table: CSV, TSV, JSONL, Parquet
  array_record:/path    a data set written by prepare_data or TFDS (…/name/config/version)
  tfds:name             the same, by its TFDS name
  hf:name               a Hugging Face data set: a name on the hub, or files on disk
  webdataset:/path      tar shards
  vtab:task             a task of VTAB-1k
  synthetic:jft         303 million images generated on the fly
  3*folder:/a + 1*hf:b  a mixture: three examples of the first for each one of the second

A split is a name, a slice of it ('train[:98%]', 'train[800:1000]'), or a sum of those with '+'.
Reading needs no TensorFlow.
"""

import re
from types import ModuleType

from vit_jax.data.sources import (
  array_record,
  digits,
  hf_dataset,
  mixture,
  synthetic,
  tfds,
  vtab_data,
)
from vit_jax.data.sources.folders import folder
from vit_jax.data.sources.folders.folder_files import image_files
from vit_jax.data.sources.source import Source, check_same_classes
from vit_jax.data.sources.splitting.splits import select
from vit_jax.data.sources.tables import table
from vit_jax.data.sources.tar import webdataset
from vit_jax.errors import MissingDataError, UserError

__all__ = ['Source', 'check_same_classes', 'image_files', 'open_source', 'split_names']

# How a user writes each kind, and its module: open_split(path, split name) and split_names(path).
_KINDS = {
  'digits': ('digits', digits),
  'folder': ('folder:/path', folder),
  'table': ('table:/path/labels.csv', table),
  'array_record': ('array_record:/path', array_record),
  'tfds': ('tfds:name', tfds),
  'hf': ('hf:name', hf_dataset),
  'webdataset': ('webdataset:/path', webdataset),
  'vtab': ('vtab:task', vtab_data),
  'synthetic': ('synthetic:jft', synthetic),
}
# A '+' before what looks like a component of a mixture.
_NAMES = '|'.join(_KINDS)
_JOINED = re.compile(rf'\+\s*(?:[\d.]+\s*\*\s*(?:{_NAMES})\b|(?:{_NAMES}):)')


def _parse(spec: str) -> tuple[ModuleType, str]:
  """Returns the module and the path of 'kind:path'."""
  if _JOINED.search(spec):
    raise UserError(
      f"{spec!r} looks like a mixture; write spaces around '+', as in '3*folder:/a + 1*folder:/b'."
    )
  name, _, path = spec.partition(':')
  if name not in _KINDS or bool(path) == (name == 'digits'):
    raise MissingDataError(
      f'{spec!r} is not a data source; choose one of '
      f'{", ".join(syntax for syntax, _ in _KINDS.values())}, or a mixture such as '
      f"'3*folder:/a + 1*folder:/b'."
    )
  return _KINDS[name][1], path


def open_source(spec: str, split: str) -> Source:
  """Opens a split of a source.

  Args:
    spec: the source, such as 'folder:/my/images'; the docstring of this package lists all kinds.
    split: a name, a slice or a sum of those, such as 'train[:98%]'.

  Raises:
    UserError: for an unknown kind, missing data, or data that cannot be read.
  """
  if mixture.is_mixture(spec):
    return mixture.open_mixture(spec, split, open_source)
  module, path = _parse(spec)
  return select(lambda name: module.open_split(path, name), split)


def split_names(spec: str) -> tuple[str, ...]:
  """Lists the splits of a source; for a mixture, those that all its components have.

  Raises:
    UserError: as `open_source`.
  """
  if mixture.is_mixture(spec):
    first, *others = (split_names(component) for _, component in mixture.parse_mixture(spec))
    return tuple(name for name in first if all(name in names for names in others))
  module, path = _parse(spec)
  return module.split_names(path)
