"""What people call the splits: one table for folders, tar shards and data sets of Hugging Face."""

import re
from collections.abc import Collection

from vit_jax.errors import UserError

_ALIASES = {
  'train': ('train', 'training', 'trainval'),
  'val': ('val', 'valid', 'validation', 'validate', 'dev', 'eval', 'evaluation'),
  'test': ('test', 'testing', 'tests'),
}
# Words that may stand beside them, joined or not: 'train_set', 'ImagesTrain', 'seg_train'.
AFFIXES = (
  'set', 'data', 'dataset', 'split', 'folder', 'dir', 'image', 'images', 'img', 'imgs', 'photo',
  'photos', 'picture', 'pictures', 'pics', 'sample', 'samples', 'example', 'examples', 'seg', 'cls',
  'jpg', 'jpeg', 'png', 'raw', 'resized', 'final', 'my', 'the', 'ds',
)  # fmt: skip
# What lies beside images, in a folder of its own.
_BESIDE_IMAGES = (
  'annotation', 'bbox', 'boxe', 'box', 'classe', 'class', 'depth', 'gt', 'groundtruth', 'label',
  'mask', 'meta', 'metadata', 'object', 'segmentation', 'trimap', 'xml',
)  # fmt: skip
SPLITS = tuple(_ALIASES)
_SPLITS = {alias: split for split, aliases in _ALIASES.items() for alias in aliases}
_JOINED = re.compile(rf'(?:{"|".join(AFFIXES)})?({"|".join(_SPLITS)})(?:{"|".join(AFFIXES)})?')
# The splits that serve a request, the preferred one first.
_FALLBACKS = {'train': ('train',), 'val': ('val', 'test'), 'test': ('test', 'val')}


def _words(name: str) -> list[str]:
  """'ImagesTrain_2017' -> ['images', 'train']."""
  name = re.sub('([a-z])([A-Z])', r'\1 \2', name).lower().replace('train_val', 'trainval')
  return [word for word in re.findall(r'[^\W\d_]+', name)]


def _split_of_word(word: str) -> str | None:
  match = _JOINED.fullmatch(word)
  return _SPLITS[match[1]] if match else None


def split_and_rest(name: str) -> tuple[str | None, tuple[str, ...]]:
  """Returns the split whose name occurs in a name once, and the words that are not part of it.

  'fruits-Training' -> ('train', ('fruits',)). The split is None for any other name, and the rest
  then unspecified.
  """
  words = _words(name)
  splits = [split for word in words if (split := _split_of_word(word))]
  rest = tuple(w for w in words if not _split_of_word(w) and w not in AFFIXES)
  return (splits[0] if len(splits) == 1 else None), rest


def is_affix(name: str) -> bool:
  """Whether a name is only words such as 'images' or 'data'."""
  words = _words(name)
  return bool(words) and set(words) <= set(AFFIXES)


def _is_made_of(name: str, words: Collection[str]) -> bool:
  letters = re.sub(r'[\W\d_]+', '', name.lower())
  return bool(re.fullmatch(rf'(?:(?:{"|".join(words)})s?)+', letters))


def is_beside_images(name: str) -> bool:
  """Whether a folder is called as what lies beside images: 'masks', 'SegmentationClass'."""
  return _is_made_of(name, _BESIDE_IMAGES)


def is_no_class(name: str) -> bool:
  """Whether a folder is called as images or what lies beside them: 'JPEGImages', 'image_masks'."""
  return _is_made_of(name, (*AFFIXES, *_BESIDE_IMAGES))


def split_of(name: str) -> str | None:
  """Returns 'train', 'val' or 'test' for a name that means it, such as 'seg_train'; else None."""
  split, rest = split_and_rest(name)
  return None if rest else split


def choose_split(splits: Collection[str], request: str) -> str | None:
  """Returns which of the names of splits serves a request, or None.

  It has that name, or means the same; else 'val' serves 'test', and 'test' 'val'.

  Raises:
    UserError: when several names mean the same.
  """
  if request in splits:
    return request
  for split in _FALLBACKS.get(split_of(request) or '', ()):
    names = [name for name in splits if split_of(name) == split]
    if len(names) > 1:
      raise UserError(
        f'{request!r} may mean {" or ".join(sorted(names))}; name one of them as the split.'
      )
    if names:
      return names[0]
  return None
