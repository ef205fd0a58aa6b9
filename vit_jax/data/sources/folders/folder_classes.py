"""Folders that are no classes, told by their names and contents; what a user may type instead.

Paths of images are relative to the folder of the class folders.
"""

import collections
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from vit_jax.data.sources.splitting.split_aliases import is_no_class, split_of
from vit_jax.data.sources.tables import table
from vit_jax.data.sources.tables.table_columns import split_in_name
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
LISTS = ('.txt',)  # of names and labels, without a header
_MAX_TRIES = 5  # of tables
_MAYBE_CLASSES = ('dev', 'eval', 'evaluation')  # although they are names of splits
_IMAGES = ('image', 'img', 'photo', 'picture', 'jpg', 'jpeg', 'png', 'data')
_PARTS = (*_IMAGES, 'part', 'batch', 'chunk', 'shard', 'archive', 'folder', 'set', 'subset', 'fold')
_MASK = re.compile(
  r'(.+?)([ _-]?[_-](?:masks?|seg|segmentation|annotation|gt|trimap))(?:[_-]?\d+)?'
)
_SAMPLE = 2000  # images that are looked at for masks


def _with_pattern(spec: str, pattern: str) -> str:
  return f"'{spec}{'&' if '?' in spec else '?'}pattern={pattern}'"


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
  """Returns a folder that is no class but a data set, and its sub-folders that tell; or ''."""
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
  sub_folders = _with_pattern(spec, '^[^/]+/([^/]+)/')
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
    leave_out = _with_pattern(spec, f'^(?!{re.escape(tests[0])}/)([^/]+)/')
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
    as_classes = f'if the folders are the classes, use {_with_pattern(spec, "^([^/]+)/")}'
    raise UserError(f'{problem}; {as_classes}.')
  if masks := _masks(images):
    match = _MASK.fullmatch(os.path.splitext(masks[0])[0])
    ending = match[2] if match else ''
    raise UserError(
      f'{folder} has {printable(masks[0])}, as the mask of another image; to leave out masks, use '
      f'{_with_pattern(spec, rf"^(?!.*{ending}[^/]*$)([^/]+)/")}.'
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
    f'{_with_pattern(spec, "([^/]+)/[^/]+$")}'
  ]


def _is_of_test(file: str) -> tuple[bool, ...]:
  """Whether a table is called after a split for testing, and whether its folder is."""
  folder, name = os.path.splitext(file)[0].split(os.sep)[-2:]
  return tuple(split_in_name(each) in ('test', 'val') for each in (name, folder))


def find_table(
  tables: Sequence[str],
  images: str,
  suffixes: tuple[str, ...] = TABLES,
  class_names: Sequence[str] = (),
) -> str:
  """Returns the source of the first table that has labels of images, or ''.

  Args:
    tables: paths of files.
    images: the folder of the images.
    suffixes: of the tables to try.
    class_names: that it should have; empty: any.
  """
  files = [
    file
    for file in tables
    if file.lower().endswith(suffixes) and 'submission' not in os.path.basename(file).lower()
  ]
  for file in sorted(files, key=_is_of_test)[:_MAX_TRIES]:
    root = os.path.relpath(images, os.path.dirname(file))
    columns = ['columns=image,label'] if file.lower().endswith(LISTS) else []
    for options in (columns, [*columns, f'root={root}']):
      source = '?'.join(filter(None, (file, '&'.join(options))))
      try:
        found = table.open_split(source, 'all')
      except UserError:
        continue
      fits = not class_names or found.class_names == tuple(class_names)
      if fits and found.describe(0).startswith(os.path.join(images, '')):
        return f'table:{source}'
  return ''


def _find_pattern(images: Sequence[str]) -> str:
  """The regular expression that finds the class in all names, of at least two images; or ''."""
  names = [os.path.basename(file) for file in images]
  for pattern in _NAMES:
    regex = re.compile(pattern)
    matches = [match[1] for name in names if (match := regex.search(name))]
    classes = set(matches)
    are_words = all(re.search(r'[^\W\d_]', name) for name in classes)
    if len(matches) == len(names) >= 2 * len(classes) > 2 and are_words:
      return pattern
  return ''


def _may_have_classes(images: Sequence[str]) -> bool:
  """Whether a part of the names, such as the '0' of 25_0_2017.jpg, is that of several images."""
  parts = [re.split(r'[\W_]+', os.path.basename(file)) for file in images]
  return any(1 < len(set(column)) < len(images) for column in zip(*parts, strict=False))


def suggest_classes(spec: str, folder: str, tables: Sequence[str], images: Sequence[str]) -> str:
  """Returns the smallest change that gives images without class folders a class.

  Args:
    spec: the source whose files may have the class in their names.
    folder: of the images.
    tables: paths of the files that may have labels.
    images: relative to the folder.
  """
  source = find_table(tables, folder)
  pattern = '' if source else _find_pattern(images)
  if pattern:
    example = printable(os.path.basename(images[0]))
    return f'if names such as {example} have their class, use {_with_pattern(spec, pattern)}'
  if source := source or find_table(tables, folder, LISTS):
    file = os.path.basename(source.partition('?')[0])
    return f"if {file} has their labels, use '{source}'"
  advice = (
    'move the images of each class into a sub-folder of its name, or write a table with the '
    'columns image,label and use table:/path/labels.csv'
  )
  if _may_have_classes(images):
    example, pattern = printable(os.path.basename(images[0])), _with_pattern(spec, r'^\d+_(\d+)_')
    advice += f'; or name the class in names such as {example} by a pattern, as {pattern}'
  return advice
