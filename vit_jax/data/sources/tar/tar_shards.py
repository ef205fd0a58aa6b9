"""Finds the tar shards of a path, and the split of each."""

import itertools
import pathlib
import re
from collections.abc import Sequence

from vit_jax.data.sources.splits import SPLIT_ALIASES, SPLIT_FALLBACKS
from vit_jax.errors import MissingDataError, UserError
from vit_jax.files import is_remote

Shards = dict[str, list[pathlib.Path]]  # by split; '' if the names give none

# alias -> split; unlike folders of images, shards are never called 'testing'.
_SPLITS = {alias: split for split, aliases in SPLIT_ALIASES.items() for alias in aliases}
del _SPLITS['testing']
_SPLIT_IN_NAME = re.compile(rf'(?:^|[-_.])({"|".join(_SPLITS)})(?=[-_.\d]|$)')


def expand(pattern: str) -> list[str]:
  """Expands the braces of 'a-{00..12}.tar' and 'a-{x,y}.tar'."""
  match = re.search(r'\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}', pattern)
  if not match:
    return [pattern]
  first, last, words = match.groups()
  if words is None:
    middles = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
  else:
    middles = words.split(',')
  before, after = pattern[: match.start()], pattern[match.end() :]
  return [before + middle + rest for middle in middles for rest in expand(after)]


def find_shards(path: str) -> tuple[pathlib.Path, Shards]:
  """Returns the folder of the shards, which may also list the class names, and the shards."""
  if is_remote(path):
    raise UserError(
      f'webdataset:{path} is not a local path; copy the shards to a local disk, or mount them.'
    )
  root = pathlib.Path(path).expanduser()
  if not root.is_dir():
    files = [pathlib.Path(name) for name in expand(str(root))]
    for file in files:
      if not file.is_file():
        raise MissingDataError(
          f'There is no {file}; webdataset: takes a folder of .tar files, a .tar file, or '
          f'several as /path/{{000000..000127}}.tar.'
        )
    return root.parent, _group_by_split(files)
  folders = {_SPLITS[f.name]: f for f in sorted(root.iterdir()) if f.name in _SPLITS and f.is_dir()}
  shards = {split: sorted(folder.glob('*.tar')) for split, folder in folders.items()}
  shards = {split: files for split, files in shards.items() if files}
  shards = shards or _group_by_split(sorted(root.glob('*.tar')))
  if not shards:
    raise UserError(f'{root} has no .tar files, nor sub-folders train/ or val/ with .tar files.')
  return root, shards


def _group_by_split(files: Sequence[pathlib.Path]) -> Shards:
  shards: Shards = {}
  for file in files:
    match = _SPLIT_IN_NAME.search(file.stem)
    shards.setdefault(_SPLITS[match[1]] if match else '', []).append(file)
  if '' in shards and len(shards) > 1:
    split = next(split for split in shards if split)
    raise UserError(
      f'{shards[""][0]} has no split in its name, but {shards[split][0]} does; rename one of them, '
      'or give the shards as /path/{000000..000127}.tar.'
    )
  return shards


def choose_shards(shards: Shards, split: str, spec: str) -> tuple[list[pathlib.Path], bool | None]:
  """Returns the shards of a split, and which of their examples belong to it.

  True stands for the held-out ones, False for the others, None for all.
  """
  all_shards = list(itertools.chain(*shards.values()))
  if split == 'all':
    return all_shards, None
  if split in _SPLITS and set(shards) <= {'', 'train'}:
    return all_shards, _SPLITS[split] != 'train'
  for name in SPLIT_FALLBACKS[_SPLITS[split]] if split in _SPLITS else ():
    if name in shards:
      return shards[name], None
  raise UserError(f'{spec} has the splits {", ".join(split_names(shards))} and all, not {split!r}.')


def split_names(shards: Shards) -> tuple[str, ...]:
  """Lists the splits; training data alone has a held-out test split."""
  return ('train', 'test') if set(shards) <= {'', 'train'} else tuple(shards)
