"""Reading a config: a Python file, or the config.json of a run; overrides; differences."""

import difflib
import importlib.util
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from etils import epath
from ml_collections import config_flags

from vit_jax.errors import UserError

# Fields that change how a run is executed or watched but not what it computes: a run may go on
# in its workdir with other values of these.
EXECUTION_FIELDS = (
    'accumulation_steps', 'checkpoint.every', 'checkpoint.keep', 'data.num_classes',
    'data.most_bad', 'data.on_bad_example', 'data.threads', 'data.workers', 'eval_batch_size',
    'eval_every', 'log_every',
    'mesh.data', 'mesh.fsdp', 'mesh.num_slices', 'mesh.tensor', 'model.attention', 'model.dtype',
    'model.remat', 'model.scan_blocks',
)  # fmt: skip


def flat_fields(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'model.width': 64, …}; tuples become lists, as JSON has them."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, (dict, ml_collections.ConfigDict)):
      flat.update(flat_fields(value, f'{prefix}{name}.'))
    else:
      flat[prefix + name] = list(value) if isinstance(value, tuple) else value
  return flat


def default_config() -> ml_collections.ConfigDict:
  """The fields of configs/default.py, from the current folder or from beside this package."""
  root = str(Path(__file__).resolve().parent.parent)
  if root not in sys.path:
    sys.path.append(root)
  try:
    from configs import default
  except ImportError:
    raise UserError(
        'There is no configs/default.py in the current folder; run from a checkout of vit_jax.'
    ) from None
  return default.get_config()


def _read_python(path: Path, argument: str | None) -> ml_collections.ConfigDict:
  sys.path.insert(0, str(path.resolve().parent.parent))  # for its `from configs import default`
  try:
    spec = importlib.util.spec_from_file_location('vit_jax_config', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config() if argument is None else module.get_config(argument)
  except Exception as error:  # noqa: BLE001 - a config file can raise anything
    kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
    raise UserError(f'{path} does not give a config: {kind}{error}.') from None
  finally:
    sys.path.pop(0)
  _check_fields(config, path)
  return config


def _fits(name: str, value: Any, default: Any) -> bool:
  """Whether a JSON value can take the place of a default (numbers for numbers, and so on)."""

  def is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)

  if isinstance(value, list):
    is_sequence = isinstance(default, tuple) or name == 'data.image_size'
    return is_sequence and all(map(is_number, value))
  if isinstance(default, float):
    return is_number(value)
  return type(value) is type(default)


def _check_fields(config: Any, path: Path) -> None:
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(f'{path}: get_config() gives a {type(config).__name__}, not a ConfigDict.')
  expected, found = flat_fields(default_config()).keys(), flat_fields(config).keys()
  if differing := sorted(expected ^ found):
    raise UserError(
        f'{path}: its fields are not those of configs/default.py; the first ones that differ: '
        f'{", ".join(differing[:3])}.'
    )


def _read_json(path: epath.Path) -> ml_collections.ConfigDict:
  """A run's config.json; it is only parsed, nothing in it is executed."""
  try:
    given = flat_fields(json.loads(path.read_text()))
  except (ValueError, AttributeError) as error:
    raise UserError(f'{path} is not a JSON object: {error}.') from None
  config = default_config()
  with config.unlocked():
    for name, value in given.items():
      _check_name(name, config)
      *parents, last = name.split('.')
      holder = config
      for parent in parents:
        holder = holder[parent]
      if not _fits(name, value, holder[last]):
        raise UserError(f'{path}: the value of {name}, {value!r}, is not like {holder[last]!r}.')
      holder[last] = tuple(value) if isinstance(value, list) else value
  return config


def _check_name(name: str, config: ml_collections.ConfigDict) -> None:
  known = list(flat_fields(config))
  if name not in known:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    close += [field for field in known if field.endswith('.' + name.rpartition('.')[2])]
    hint = ', '.join(dict.fromkeys(close)) or 'see configs/default.py'
    raise UserError(f'There is no config field {name!r}; close ones: {hint}.')


def _apply_overrides(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> None:
  """Sets the fields that `--config.field=value` flags name, with the types they have."""
  for flag in overrides:
    if match := re.match(r'--?(?:no)?config\.([^=]+)', flag):
      _check_name(match[1], config)
  argv = ['vit_jax', *overrides]
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=argv)
  try:
    rest = values(argv)[1:]
  except flags.UnrecognizedFlagError as error:
    raise UserError(
        f'There is no flag --{error.flagname}; config fields are set as --config.field=value.'
    ) from None
  except (flags.Error, TypeError, ValueError) as error:
    raise UserError(f'A value does not fit its config field: {error}.') from None
  if rest:
    raise UserError(f'{rest[0]!r} is not a flag; config fields are set as --config.field=value.')
  given = {match[1] for flag in overrides if (match := re.match(r'--?config\.([^=]+)', flag))}
  for one, other in (('total_steps', 'epochs'), ('epochs', 'total_steps')):
    if one in given and other not in given:  # who counts in one does not count in the other
      config[other] = type(config[other])(0)


def load_config(source: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
  """Reads a config and locks it.

  Args:
    source: 'configs/x.py', 'configs/x.py:argument', or a run's 'config.json'.
    overrides: command-line flags '--config.field=value'.

  Raises:
    UserError: for a file that is not there or gives no config, a field that does not exist (the
      close ones are named), or a value of another type.
  """
  match = re.fullmatch(r'(.*\.py)(?::(.*))?', source)
  path = epath.Path(match[1] if match else source)
  if not match and path.suffix != '.json':
    raise UserError(f'--config takes a .py or a .json file, not {source!r}.')
  if not path.is_file():
    here = sorted(str(p) for p in Path('configs').glob('*.py') if p.stem != '__init__')
    hint = f'; there are {", ".join(here)}' if here else ''
    raise UserError(f'There is no config file {path}{hint}.')
  config = _read_python(Path(match[1]), match[2]) if match else _read_json(path)
  _apply_overrides(config, overrides)
  return config.lock()


def write_config(config: ml_collections.ConfigDict, path: epath.Path) -> None:
  """Writes config.json, whole or not at all."""
  part = path.with_name(path.name + '.part')
  part.write_text(json.dumps(json.loads(config.to_json()), indent=2, sort_keys=True) + '\n')
  part.replace(path)


def check_same_run(config: ml_collections.ConfigDict, path: epath.Path) -> None:
  """Raises `UserError` naming the fields in which a workdir's config.json differs."""
  try:
    before = flat_fields(json.loads(_read_json(path).to_json()))
  except UserError as error:
    raise UserError(f'{error} Choose another --workdir, or remove this one.') from None
  now = flat_fields(json.loads(config.to_json()))
  differing = [
      f'{name} ({before.get(name)!r} there, {now.get(name)!r} now)'
      for name in sorted(before.keys() | now.keys())
      if before.get(name) != now.get(name) and name not in EXECUTION_FIELDS
  ]
  if differing:
    raise UserError(
        f'{path.parent} holds a run with another config: {"; ".join(differing)}; choose another '
        f'--workdir, or go on with --config={path}.'
    )


def image_size(value: int | Sequence[int]) -> tuple[int, int]:
  """An image size (an int or (height, width)) as (height, width).

  Raises:
    UserError: for anything else.
  """
  size = (value, value) if isinstance(value, int) else value
  is_pair = isinstance(size, (tuple, list)) and len(size) == 2
  if not is_pair or not all(type(side) is int and side > 0 for side in size):
    raise UserError(f'The image size is {value!r}; it takes pixels, as 224 or (224, 160).')
  return tuple(size)
