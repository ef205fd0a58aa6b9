"""Where examples come from: one string, random access, labels and class names.

  digits                scikit-learn's 1,797 handwritten digits, installed with the package
  folder:/path          {train,val,test}/class/* or class/*
  array_record:/path    what prepare_data or TFDS has written (…/name/config/version)
  tfds:name             the same, by the name TFDS knows it by
  hf:name               a data set of Hugging Face: a name on its hub, or files on disk
  webdataset:/path      tar shards
  synthetic:jft         303 million images made on the fly
  3*folder:/a + 1*hf:b  a mixture: three examples of the first for one of the second

A split is a name, a slice of it ('train[:98%]', 'train[800:1000]'), or a sum of those with '+'.
None of them needs TensorFlow to be read.
"""

from collections.abc import Callable

from vit_jax.data.sources import digits, folder, tfds
from vit_jax.data.sources.base import QUICKSTART, Source, check_same_classes
from vit_jax.data.sources.folder import image_files
from vit_jax.errors import UserError

__all__ = ['Source', 'check_same_classes', 'image_files', 'open_source']

_OPENERS: dict[str, Callable[[str, str], Source]] = {
    'digits': digits.open_digits,
    'folder': folder.open_folder,
    'array_record': tfds.open_array_record,
    'tfds': tfds.open_tfds,
}


def open_source(spec: str, split: str) -> Source:
  """Opens 'kind:what', for instance 'folder:/my/images' (see the top of this file).

  Raises:
    UserError: for an unknown kind, data that is not there, or data that cannot be read.
  """
  kind, _, rest = spec.partition(':')
  if kind not in _OPENERS or (not rest) != (kind == 'digits'):
    raise UserError(
        f'{spec!r} is no data source; choose digits, folder:/path, tfds:name or '
        f'array_record:/path; {QUICKSTART}.'
    )
  return _OPENERS[kind](rest, split)
