"""Loads all splits of a Hugging Face data set, from the hub or from files on disk."""

import pathlib
import re
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any

from vit_jax.data.sources.splitting.split_aliases import split_of
from vit_jax.errors import MissingDataError, UserError, first_line

_OPTIONS = ('config', 'revision', 'image', 'label')
_HUB_NAME = re.compile(r'[\w-][\w.-]*(/[\w.-]+)?')


def _parse(path: str) -> tuple[str, dict[str, str]]:
  """Splits 'name?key=value&…' into the name or path and the options."""
  name, _, query = path.partition('?')
  options = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
  if unknown := sorted(set(options) - set(_OPTIONS)):
    raise UserError(
      f'hf:{path} has the unknown option {unknown[0]}; valid options are {", ".join(_OPTIONS)}, as '
      'in hf:name?image=img&label=fine_label.'
    )
  return name, options


def _arrow_splits(files: Iterable[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
  """Groups files named 'cifar10-train-00000-of-00002.arrow' or 'test.arrow' by their splits."""
  splits: dict[str, list[pathlib.Path]] = {}
  for file in sorted(files):
    if not file.name.startswith(('cache-', 'indices-', 'tmp', '.')):
      split = re.sub(r'-\d+-of-\d+$', '', file.stem).rpartition('-')[2]
      splits.setdefault('train' if split == 'data' else split, []).append(file)
  return splits


def _open_file(open_file: Callable[[str], Any], file: pathlib.Path, file_format: str) -> Any:
  """Opens a file, or raises a `UserError` that names it."""
  try:
    return open_file(str(file))
  except Exception as error:  # noqa: BLE001 - Arrow and datasets raise a dozen types
    raise UserError(
      f'{file} is not a complete {file_format} file ({first_line(error)}); copy it again.'
    ) from None


def _check_metadata(root: pathlib.Path) -> None:
  """Raises `UserError` for an imagefolder whose labels lie above its splits; they are not read."""
  for name in ('metadata.csv', 'metadata.jsonl'):
    splits = [path.name for path in root.glob('*') if path.is_dir() and split_of(path.name)]
    if splits and (root / name).is_file() and not list(root.glob(f'*/{name}')):
      raise UserError(
        f'hf: reads the {name} of each split, but that of {root} is above {min(splits)}; use '
        f'table:{root / name}.'
      )


def _load_files(datasets: Any, root: pathlib.Path, config: str | None) -> Any:
  """Loads all splits from files on disk; `root` may be a folder of the hub's cache."""
  import pyarrow.parquet

  main = root / 'refs' / 'main'
  root = root / 'snapshots' / main.read_text('utf-8').strip() if main.is_file() else root
  saved = [root] if (root / 'state.json').exists() else []
  if (root / 'dataset_dict.json').exists():
    saved = [state.parent for state in sorted(root.glob('*/state.json'))]
  arrow = [file for folder in saved or [root] for file in folder.glob('*.arrow')]
  arrow += [root] * (root.suffix == '.arrow')
  if saved:
    for file in arrow:  # for an error that names the file
      _open_file(datasets.Dataset.from_file, file, 'Arrow')
    return datasets.load_from_disk(str(root))
  if arrow:
    splits = {}
    for split, files in _arrow_splits(arrow).items():
      tables = [_open_file(datasets.Dataset.from_file, file, 'Arrow') for file in files]
      splits[split] = datasets.concatenate_datasets(tables)
    return splits
  _check_metadata(root)
  for file in [root] if root.is_file() else root.rglob('*.parquet'):
    _open_file(pyarrow.parquet.read_metadata, file, 'parquet')
  if root.suffix == '.parquet':
    return datasets.load_dataset('parquet', data_files=str(root))
  return datasets.load_dataset(str(root), config)


def load_splits(path: str) -> tuple[dict[str, Any], dict[str, str]]:
  """Loads all splits by name; also returns the options after '?' in the path.

  Raises:
    UserError: without the package `datasets`, or for a data set that cannot be loaded.
  """
  try:
    import datasets
  except ImportError:
    advice = "run pip install 'vit_jax[hf]'"
    raise UserError(f'hf:{path} needs the package datasets; {advice}.') from None
  name, options = _parse(path)
  root, config = pathlib.Path(name).expanduser(), options.get('config')
  if not root.exists() and not _HUB_NAME.fullmatch(name):
    raise MissingDataError(f'There is no {root}; hf: takes a name on the hub or a path.')
  try:
    if root.exists():
      splits = _load_files(datasets, root, config)
    else:
      splits = datasets.load_dataset(name, config, revision=options.get('revision'))
  except UserError:
    raise
  except Exception as error:  # noqa: BLE001 - every data set raises its own types
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    online = 'its name and the connection, or download it elsewhere and name its folder as hf:/path'
    advice = 'check its files' if root.exists() else f'check {online}'
    raise MissingDataError(f'hf:{path} cannot be opened ({first_line(cause)}); {advice}.') from None
  if isinstance(splits, datasets.Dataset):
    splits = {str(splits.split or 'train'): splits}
  return {str(split): dataset for split, dataset in splits.items()}, options
