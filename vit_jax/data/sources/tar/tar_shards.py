"""Finds the tar shards of a path, and the split of each."""

import itertools
import pathlib
import re
from collections.abc import Sequence

from vit_jax.data.sources.splitting.split_aliases import choose_split, split_and_rest, split_of
from vit_jax.errors import MissingDataError, UserError
from vit_jax.files import is_remote

Shards = dict[str, list[pathlib.Path]]  # by split; '' if the names give none


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
  root = _enter(root)
  shards: Shards = {}
  for folder in sorted(root.iterdir()):
    files = sorted(folder.glob('*.tar')) if folder.is_dir() else []
    if files and (split := split_of(folder.name)):
      if split in shards:
        raise UserError(
          f'{root} has both {shards[split][0].parent.name} and {folder.name}; keep one.'
        )
      shards[split] = files
  shards = shards or _group_by_split(sorted(root.glob('*.tar')))
  if not shards:
    raise UserError(f'{root} has no .tar files, nor sub-folders train/ or val/ with .tar files.')
  return root, shards


def _enter(root: pathlib.Path) -> pathlib.Path:
  """Steps into folders that have nothing but one other folder."""
  while not any(root.glob('*.tar')):
    folders = [f for f in root.iterdir() if f.is_dir() and not f.name.startswith(('.', '__MACOSX'))]
    if len(folders) != 1 or split_of(folders[0].name):
      break
    root = folders[0]
  return root


def _group_by_split(files: Sequence[pathlib.Path]) -> Shards:
  shards: Shards = {}
  for file in files:
    shards.setdefault(split_and_rest(file.stem)[0] or '', []).append(file)
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
  if split_of(split) and set(shards) <= {'', 'train'}:
    return all_shards, split_of(split) != 'train'
  if (name := choose_split(shards, split)) is not None:
    return shards[name], None
  raise UserError(f'{spec} has the splits {", ".join(split_names(shards))} and all, not {split!r}.')


def split_names(shards: Shards) -> tuple[str, ...]:
  """Lists the splits; training data alone has a held-out test split."""
  return ('train', 'test') if set(shards) <= {'', 'train'} else tuple(shards)
