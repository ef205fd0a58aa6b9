"""Folders that are not classes, recognized by their names and contents, and what to type instead.

Paths of images are relative to the folder of the class folders.
"""

import collections
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from vit_jax.data.sources.folders.folder_advice import suggest_classes, with_pattern
from vit_jax.data.sources.splitting.split_aliases import is_no_class, split_of
from vit_jax.errors import UserError
from vit_jax.text import plural, printable

_MAYBE_CLASSES = ('dev', 'eval', 'evaluation')  # although they are names of splits
_IMAGES = ('image', 'img', 'photo', 'picture', 'jpg', 'jpeg', 'png', 'data')
_PARTS = (*_IMAGES, 'part', 'batch', 'chunk', 'shard', 'archive', 'folder', 'set', 'subset', 'fold')
_MASK = re.compile(
  r'(.+?)([ _-]?[_-](?:masks?|seg|segmentation|annotation|gt|trimap))(?:[_-]?\d+)?'
)
_SAMPLE = 2000  # images that are looked at for masks


def _few(names: Iterable[str]) -> str:
  """The first of some names, for a message."""
  names = sorted(names)
  return printable(', '.join(names[:3])) + (', …' if len(names) > 3 else '')


def _letters(name: str) -> str:
  return re.sub(r'[\W\d_]+', ' ', name.lower()).strip()


def _sub_folders(images: Iterable[str]) -> dict[str, set[str]]:
  """Returns class folder -> the sub-folders that have its images; '' for itself."""
  folders: dict[str, set[str]] = collections.defaultdict(set)
  for file in images:
    name, *rest = file.split(os.sep, 2)
    if rest:
      folders[name].add(rest[0] if len(rest) > 1 else '')
  return folders


def _numbered_parts(folders: Mapping[str, set[str]]) -> bool:
  """Whether the folders are numbered parts of one set: images_001, images_002."""
  first, *others = map(_letters, folders)
  words = {word.removesuffix('s') for word in first.split()}
  return bool(others) and set(others) == {first} and not words.isdisjoint(_PARTS)


def _are_classes(names: Iterable[str]) -> bool:
  """Whether the sub-folders of parts may be classes: several, and no images/, masks/, train/."""
  names = set(names)
  return len(names) > 1 and not any(not n or is_no_class(n) or split_of(n) for n in names)


def _folder_of_images(folders: Mapping[str, set[str]]) -> str:
  """The folder of images, if the others are called as what lies beside them; else ''."""
  images = [name for name in sorted(folders) if any(word in name.lower() for word in _IMAGES)]
  are_classes = any(not is_no_class(name) and not split_of(name) for name in folders)
  return images[0] if images and not are_classes else ''


def _shared_sub_folders(folders: Mapping[str, set[str]]) -> list[str]:
  """The names that most sub-folders share with those of another folder; [] for few."""
  counts = collections.Counter(name for names in folders.values() for name in names)
  shared = sorted(name for name, count in counts.items() if count > 1)
  return shared if '' not in counts and 1 < len(shared) >= len(counts) / 2 else []


def _data_set_among(folders: Mapping[str, set[str]], images: Sequence[str]) -> tuple[str, str]:
  """Returns a folder that holds a data set, not a class, and the sub-folders that show it."""
  for folder, names in folders.items():
    if len(names & folders.keys()) > 1:
      return folder, _few(names & folders.keys())
    inside = [file for file in images if file.startswith(folder + os.sep)] if names - {''} else []
    while len(names) == 1 and '' not in names:  # a lone sub-folder
      inside = [file.partition(os.sep)[2] for file in inside]
      names = set().union(*_sub_folders(inside).values())
    splits = {split_of(name) for name in names if name}
    if 'train' in splits and len(splits - {None}) > 1:
      return folder, _few(name for name in names if split_of(name))
  return '', ''


def _masks(images: Sequence[str]) -> list[str]:
  """Images that are called as the masks of others: '1_mask.png' beside '1.png'."""
  stems = {os.path.splitext(file)[0]: file for file in images[:_SAMPLE]}
  return [
    file for stem, file in stems.items() if (match := _MASK.fullmatch(stem)) and match[1] in stems
  ]


def _problem(folder: str, images: Sequence[str], spec: str, tables: Sequence[str]) -> str:
  """What is wrong with class folders, and the smallest change; '' for classes."""
  folders = _sub_folders(images)
  if len(folders) < 2:
    return ''
  sub_folders = with_pattern(spec, '^[^/]+/([^/]+)/')
  if _numbered_parts(folders):
    change = f'if their sub-folders are the classes, use {sub_folders}'
    if not _are_classes(set().union(*folders.values())):
      change = suggest_classes(f'folder:{folder}', folder, tables, images)
    return f'The folders {_few(folders)} of {folder} look like parts of one data set; {change}'
  if name := _folder_of_images(folders):
    where = os.path.join(folder, name)
    inside = [file[len(name) + 1 :] for file in images if file.startswith(name + os.sep)]
    change = suggest_classes(f'folder:{where}', where, tables, inside)
    if '' not in folders[name]:
      change = f'use folder:{where}'
    return (
      f'The folders {_few(folders)} of {folder} look like images and what belongs to them; {change}'
    )
  if shared := _shared_sub_folders(folders):
    change = f'if the sub-folders are, use {sub_folders}'
    if all(map(split_of, shared)):
      change = f'to read one of the folders, name it, as folder:{folder}/{min(folders)}'
    return (
      f'The folders {_few(folders)} of {folder} all have the sub-folders {_few(shared)}, so it is '
      f'not clear which are the classes; {change}'
    )
  name, inside = _data_set_among(folders, images)
  if name:
    where = os.path.join(folder, name)
    return f'{where} has the folders {inside}, as a data set and not a class; use folder:{where}'
  tests = [
    name
    for name, inside in folders.items()
    if inside == {''} and split_of(name) in ('test', 'val') and name.lower() not in _MAYBE_CLASSES
  ]
  if len(tests) == 1 < len(folders) - 1:
    leave_out = with_pattern(spec, f'^(?!{re.escape(tests[0])}/)([^/]+)/')
    return (
      f'{folder} has {tests[0]} beside {_few(folders.keys() - set(tests))}; if it has images to '
      f'classify and is not a class, use {leave_out}'
    )
  return ''


def check_class_folders(
  folder: str, images: Sequence[str], spec: str, tables: Sequence[str]
) -> None:
  """Checks that folders are classes.

  Args:
    folder: the folder that has them.
    images: below it.
    spec: what the user typed.
    tables: paths of the files that may have labels.

  Raises:
    UserError: for folders that are called as parts of a data set, that have the same sub-folders,
      that are data sets themselves or test images, or that have masks beside images.
  """
  if problem := _problem(folder, images, spec, tables):
    as_classes = f'if the folders are the classes, use {with_pattern(spec, "^([^/]+)/")}'
    raise UserError(f'{problem}; {as_classes}.')
  if masks := _masks(images):
    match = _MASK.fullmatch(os.path.splitext(masks[0])[0])
    ending = match[2] if match else ''
    raise UserError(
      f'{folder} has {printable(masks[0])}, as the mask of another image; to leave out masks, use '
      f'{with_pattern(spec, rf"^(?!.*{ending}[^/]*$)([^/]+)/")}.'
    )


def merged_folders(images: Sequence[str], spec: str) -> list[str]:
  """A note on classes with several sub-folders."""
  merged = {name: subs for name, subs in _sub_folders(images).items() if len(subs - {''}) > 1}
  if not merged:
    return []
  name = min(merged)
  return [
    f'the sub-folders of {plural(len(merged), "class")}, such as {_few(merged[name])} of '
    f'{printable(name)}, are merged; if they are the classes, use '
    f'{with_pattern(spec, "([^/]+)/[^/]+$")}'
  ]
