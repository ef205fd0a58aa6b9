"""How a folder of images is arranged: wrappers, splits, classes; and what to do about it if wrong.

Paths are relative and as `all_files` lists them; a prefix is '' or ends in a separator.
"""

import collections
import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from vit_jax.data.sources.split_aliases import SPLITS, is_affix, split_and_rest, split_of
from vit_jax.errors import UserError
from vit_jax.text import plural, printable

# Where the class may be in the names of files, and how a user writes it.
_NAMES = (
  r'(\w+)\.\d+',  # cat.1.jpg
  r'(.+)_\d+',
  r'(.+)-\d+',
  r'(.+?) ?\(\d+\)',  # cat (1).jpg
  r'([^\d.]+)\d',  # cat1.jpg
  r'\d+[_-]([^\d.]+)\.',  # 1_cat.jpg
)
TABLES = ('.csv', '.tsv', '.jsonl', '.parquet')
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
  root: str, images: Sequence[str], has_class: Callable[[str], bool] | None = None
) -> Layout:
  """Finds the splits of a folder.

  Args:
    root: the folder, for messages.
    images: the images below it.
    has_class: whether the name of an image has its class; None if the class is its folder.

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
  others = sorted(set(folders) - set(splits.values())) if splits else []
  if others:
    count = sum(first_folder(child) in others for child in children)
    notes.append(
      f'{plural(count, "image")} beside the splits of {where}, in {", ".join(others[:5])}, are not '
      'used'
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


def check_class_folders(folder: str, images: Sequence[str], spec: str) -> None:
  """Raises `UserError` for folders that are not classes: all of them have the same sub-folders."""
  below_class: dict[str, set[str]] = collections.defaultdict(set)
  for file in images:
    name, *rest = file.split(os.sep)
    if rest:
      below_class[name].add(rest[0] if len(rest) > 1 else '')
  shared = set.intersection(*below_class.values()) if below_class else set()
  same = all(names == shared for names in below_class.values())
  if len(below_class) < 2 or not same or len(shared) < 2 or '' in shared:
    return
  outer, inner = ', '.join(sorted(below_class)[:3]), ', '.join(sorted(shared)[:3])
  change = f"if the sub-folders are, use '{spec}?pattern=^[^/]+/([^/]+)/'"
  if all(map(split_of, shared)):
    change = f'to read one of the folders, name it, as folder:{folder}/{min(below_class)}'
  raise UserError(
    f'The folders {printable(outer)}, … of {folder} all have the sub-folders {printable(inner)}, … '
    f"so it is not clear which are the classes; {change}; if the folders are, use '{spec}"
    "?pattern=^([^/]+)/'."
  )


def suggest_classes(spec: str, root: str, files: Sequence[str], images: Sequence[str]) -> str:
  """Returns the smallest change that gives images without class folders a class."""
  tables = [file for file in files if file.lower().endswith(TABLES)]
  if tables:
    return f'if {tables[0]} has their labels, use table:{os.path.join(root, tables[0])}'
  names = [os.path.basename(file) for file in images]
  for pattern in _NAMES:
    regex = re.compile(pattern)
    matches = [match[1] for name in names if (match := regex.search(name))]
    if len(matches) == len(names) >= 2 * len(set(matches)) and len(set(matches)) > 1:
      example = printable(names[0])
      return f"if names such as {example} have their class, use '{spec}?pattern={pattern}'"
  return 'move the images of each class into a sub-folder of its name'
