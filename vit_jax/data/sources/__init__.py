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

from vit_jax.data.sources import digits, folder, hf_dataset, mixture, synthetic, tfds
from vit_jax.data.sources.folder import image_files
from vit_jax.data.sources.source import QUICKSTART, Source, check_same_classes
from vit_jax.data.sources.splits import select
from vit_jax.data.sources.tar import webdataset
from vit_jax.errors import UserError

__all__ = ['Source', 'check_same_classes', 'image_files', 'open_source', 'split_names']

_Names = tuple[str, ...]


# kind: how it is written, what opens a whole split of it, and what names its splits.
_KINDS: dict[str, tuple[str, Callable[[str, str], Source], Callable[[str], _Names]]] = {
  'digits': ('digits', digits.open_digits, lambda path: ('train', 'test')),
  'folder': ('folder:/path', folder.open_folder, folder.split_names),
  'array_record': ('array_record:/path', tfds.open_array_record, tfds.array_record_splits),
  'tfds': ('tfds:name', tfds.open_tfds, tfds.tfds_splits),
  'hf': ('hf:name', hf_dataset.open_hugging_face, hf_dataset.split_names),
  'webdataset': ('webdataset:/path', webdataset.open_webdataset, webdataset.split_names),
  'synthetic': ('synthetic:jft', synthetic.open_synthetic, synthetic.split_names),
}


def _kind_and_path(spec: str) -> tuple[str, str]:
  kind, _, path = spec.partition(':')
  if kind not in _KINDS or (not path) != (kind == 'digits'):
    written = ', '.join(written for written, _, _ in _KINDS.values())
    raise UserError(
      f'{spec!r} is no data source; choose one of {written}, or a mixture such as '
      f"'3*folder:/a + 1*folder:/b'; {QUICKSTART}."
    )
  return kind, path


def open_source(spec: str, split: str) -> Source:
  """Opens a split of a source, for instance 'folder:/my/images' (see the top of this file).

  Raises:
    UserError: for an unknown kind, data that is not there, or data that cannot be read.
  """
  if mixture.is_mixture(spec):
    return mixture.open_mixture(spec, split, open_source)
  kind, path = _kind_and_path(spec)
  _, open_whole, _ = _KINDS[kind]
  return select(lambda name: open_whole(path, name), split)


def split_names(spec: str) -> _Names:
  """The names of the splits that a source has; of a mixture, those that all its parts have.

  Raises:
    UserError: as `open_source`.
  """
  if mixture.is_mixture(spec):
    first, *others = (split_names(part) for _, part in mixture.parse_mixture(spec))
    return tuple(name for name in first if all(name in names for names in others))
  kind, path = _kind_and_path(spec)
  _, _, names_of = _KINDS[kind]
  return names_of(path)
