"""How a folder of images is arranged: wrappers, and the splits among its folders.

Paths are relative and as `all_files` lists them; a prefix is '' or ends in a separator.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from vit_jax.data.sources.folders.folder_advice import LISTS, TABLES, find_table
from vit_jax.data.sources.splitting.split_aliases import SPLITS, is_affix, split_and_rest, split_of
from vit_jax.errors import UserError
from vit_jax.text import plural

_UNLABELED = ('unknown', 'unlabeled', 'unlabelled', 'all')


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where the images of the splits are.

  Attributes:
    prefix: of the folder of classes, or of splits.
    splits: split -> prefix of its classes; empty without splits.
    notes: what is not used, a sentence each.
  """

  prefix: str
  splits: Mapping[str, str]
  notes: tuple[str, ...] = ()


def below(paths: Iterable[str], prefix: str) -> list[str]:
  """Returns the paths below a folder, relative to it."""
  return [path[len(prefix) :] for path in paths if path.startswith(prefix)]


def first_folder(path: str) -> str:
  """The first folder of a relative path; '' without one."""
  folder, separator, _ = path.partition(os.sep)
  return folder if separator else ''


def _enter(images: Sequence[str], prefix: str, stop: Callable[[str], bool]) -> str:
  """Steps into folders that have nothing but one other folder of folders."""
  images = below(images, prefix)
  while len(children := set(map(first_folder, images))) == 1:
    (child,) = children
    deeper = below(images, child + os.sep)
    if not child or stop(child) or not all(map(first_folder, deeper)):
      break
    prefix, images = prefix + child + os.sep, deeper
  return prefix


def _named_splits(folders: Sequence[str]) -> dict[str, list[str]]:
  """Returns split -> the folders that are named after it."""
  named = {folder: split_and_rest(folder) for folder in folders}
  # 'fruits_train' and 'fruits_test': together they are splits.
  same_rest = len({rest for _, rest in named.values()}) == 1 < len(folders)
  together = same_rest and all(split for split, _ in named.values())
  splits = {split: [] for split in SPLITS}
  for folder, (split, rest) in named.items():
    if split and (together or not rest):
      splits[split].append(folder)
  return {split: names for split, names in splits.items() if names}


def _find_splits(
  where: str, folders: Sequence[str], is_split: Callable[[str], bool], has_pattern: bool
) -> dict[str, str]:
  """Returns split -> its folder; {} if the folders are classes."""
  named = _named_splits(folders)
  # Without a train/ with classes, the names of splits may be classes: {train, car, bus}.
  all_named = sum(map(len, named.values())) == len(folders)
  if not all_named and not any(map(is_split, named.get('train', ()))):
    return {}
  for names in named.values():
    if len(names) > 1 and has_pattern:
      return {}
    if len(names) > 1:
      raise UserError(
        f'{where} has both {names[0]} and {names[1]}; keep one of them, or, if they are classes, '
        "use '?pattern=^([^/]+)/' after the folder."
      )
  return {split: name for split, (name,) in named.items()}


def find_layout(
  root: str,
  images: Sequence[str],
  has_class: Callable[[str], bool] | None = None,
  tables: Sequence[str] = (),
) -> Layout:
  """Finds the splits of a folder.

  Args:
    root: the folder, for messages.
    images: the images below it.
    has_class: whether the name of an image has its class; None if the class is its folder.
    tables: paths of files that may have labels of images.

  Raises:
    UserError: when two folders are the same split.
  """
  prefix = _enter(images, '', lambda name: split_of(name) is not None)
  children = below(images, prefix)
  folders = sorted(set(map(first_folder, children)) - {''})

  def is_split(folder: str) -> bool:
    return any(map(has_class or first_folder, below(children, folder + os.sep)))

  where, notes = os.path.join(root, prefix).rstrip(os.sep), []
  splits = _find_splits(where, folders, is_split, has_pattern=has_class is not None)
  prefixes = {split: prefix + folder + os.sep for split, folder in splits.items()}
  classes: set[str] = set()
  if 'train' in prefixes:
    prefixes['train'] = _enter(images, prefixes['train'], lambda name: False)
    classes = set(map(first_folder, below(images, prefixes['train']))) - {''}
  for split in [split for split in prefixes if split != 'train']:
    prefixes[split] = _enter(images, prefixes[split], classes.__contains__)
    files = below(images, prefixes[split])
    if 'train' in splits and _is_unlabeled(files, classes, has_class):
      path = os.path.join(root, prefixes.pop(split)).rstrip(os.sep)
      notes.append(
        f'the {plural(len(files), "image")} of {path} have no classes and are not used; python -m '
        f'vit_jax.predict --model=… {path} --top_k=1 --csv=FILE classifies them'
      )
      inside = os.path.join(root, prefix, splits[split], '')
      beside = [file for file in tables if file.startswith(inside)]
      if source := find_table(beside, path, (*TABLES, *LISTS), sorted(classes)):
        notes[-1] += (
          f'; to test on them, add --config.data.test.source={source} --config.data.test.split=all'
        )
  others = sorted(set(folders) - set(splits.values())) if splits else []
  if others:
    count = sum(first_folder(child) in others for child in children)
    notes.append(
      f'{plural(count, "image")} beside the splits of {where}, in {", ".join(others[:5])}, '
      f'{"is" if count == 1 else "are"} not used'
    )
  return Layout(prefix, prefixes, tuple(notes))


def _is_unlabeled(
  files: Sequence[str], classes: set[str], has_class: Callable[[str], bool] | None
) -> bool:
  """Whether the images of a test folder have no classes."""
  if has_class is not None:
    return not any(map(has_class, files))
  folders = set(map(first_folder, files)) - {''}
  return all(split_of(f) or is_affix(f) or f in _UNLABELED for f in folders - classes) and (
    not folders & classes
  )
