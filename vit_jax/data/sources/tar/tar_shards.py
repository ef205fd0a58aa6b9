"""Which tar files a path means, and which of them are of which split."""

import pathlib
import re
from collections.abc import Sequence

from vit_jax.data.sources.source import QUICKSTART
from vit_jax.errors import UserError

Shards = dict[str, list[pathlib.Path]]  # by split; '' when nothing names one

_SPLITS = {
  'train': 'train',
  'training': 'train',
  'val': 'val',
  'valid': 'val',
  'validation': 'val',
  'test': 'test',
}
_MARK = re.compile(rf'(?:^|[-_.])({"|".join(_SPLITS)})(?=[-_.\d]|$)')
_INSTEAD = {'train': ('train',), 'val': ('val', 'test'), 'test': ('test', 'val')}


def expand(pattern: str) -> list[str]:
  """'a-{00..12}.tar' and 'a-{x,y}.tar' -> all names."""
  match = re.search(r'\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}', pattern)
  if not match:
    return [pattern]
  first, last, listed = match.groups()
  if listed is None:
    middles = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
  else:
    middles = listed.split(',')
  before, after = pattern[: match.start()], pattern[match.end() :]
  return [before + middle + rest for middle in middles for rest in expand(after)]


def find_shards(path: str) -> tuple[pathlib.Path, Shards]:
  """The folder that class names are beside, and the shards by split."""
  if '://' in path:
    raise UserError(f'webdataset:{path} is no local path; copy the shards to a disk, or mount it.')
  root = pathlib.Path(path).expanduser()
  if not root.is_dir():
    files = [pathlib.Path(name) for name in expand(str(root))]
    for file in files:
      if not file.is_file():
        raise UserError(
          f'There is no {file}; webdataset: takes a folder of .tar files, a .tar file, or '
          f'several as /path/{{000000..000127}}.tar; {QUICKSTART}.'
        )
    return root.parent, _by_name(files)
  folders = {_SPLITS[f.name]: f for f in sorted(root.iterdir()) if f.name in _SPLITS and f.is_dir()}
  shards = {split: sorted(folder.glob('*.tar')) for split, folder in folders.items()}
  shards = {split: files for split, files in shards.items() if files}
  shards = shards or _by_name(sorted(root.glob('*.tar')))
  if not shards:
    raise UserError(f'{root} holds no .tar files, and no train/ and val/ with some.')
  return root, shards


def _by_name(files: Sequence[pathlib.Path]) -> Shards:
  """The shards by the split that their names say."""
  shards: Shards = {}
  for file in files:
    match = _MARK.search(file.stem)
    shards.setdefault(_SPLITS[match[1]] if match else '', []).append(file)
  if '' in shards and len(shards) > 1:
    split = next(split for split in shards if split)
    raise UserError(
      f'{shards[""][0]} names no split, but {shards[split][0]} does; rename one of them, or '
      'name the shards as /path/{000000..000127}.tar.'
    )
  return shards


def choose_shards(shards: Shards, split: str, spec: str) -> tuple[list[pathlib.Path], bool | None]:
  """The shards of a split, and whether it is the held out (False: the other) examples of them."""
  everything = [file for files in shards.values() for file in files]
  if split == 'all':
    return everything, None
  if split in _SPLITS and set(shards) <= {'', 'train'}:
    return everything, _SPLITS[split] != 'train'
  for name in _INSTEAD.get(_SPLITS.get(split), ()):
    if name in shards:
      return shards[name], None
  names = ', '.join(names_of_splits(shards))
  raise UserError(f'{spec} has the splits {names} and all, not {split!r}.')


def names_of_splits(shards: Shards) -> tuple[str, ...]:
  """The splits that some shards have; of the training data alone a test split is held out."""
  return ('train', 'test') if set(shards) <= {'', 'train'} else tuple(shards)
