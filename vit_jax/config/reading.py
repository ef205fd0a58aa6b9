"""From what a user writes to a `Config`: a Python file or a run's config.json, and overrides."""

import dataclasses
import difflib
import re
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from etils import epath
from ml_collections import config_dict, config_flags

from vit_jax.config.evals import EvalConfig, make_evals
from vit_jax.config.fields import Section, describe_type, flatten, replace_fields, walk_fields
from vit_jax.config.schema import Config
from vit_jax.errors import UserError, first_line
from vit_jax.files import parse_json, read_text, user_path

# Fields of the config.json of older versions, and what they are called now.
_RENAMED = {
  'polyak_decay': 'ema_decay',
  'data.most_bad': 'data.max_bad_fraction',
  'data.crop_fraction': 'data.test.crop_fraction',
}


def default_config() -> Any:
  """Every field with its default, for a config file to override: a locked `ConfigDict`.

  Its type is Any because checkers know no fields of a `ConfigDict`.
  """
  return _to_config_dict(Config())


def eval_config(kind: str, **fields: Any) -> Any:
  """An evaluation for a config file: `config.evals.real = eval_config('real', source=…)`."""
  return _to_config_dict(EvalConfig(**{'kind': kind, **fields}))


def _to_config_dict(section: Section) -> Any:
  config: Any = ml_collections.ConfigDict()
  for each in dataclasses.fields(section):
    value = getattr(section, each.name)
    if isinstance(value, Section):
      value = _to_config_dict(value)
    elif each.name == 'image_size':  # an int or a pair, where ConfigDict keeps the type
      value = config_dict.FieldReference(value, field_type=object)
    config[each.name] = value
  config.lock()
  if isinstance(section, Config):
    config.evals.unlock()  # for new names
  return config


def _flatten(
  config: Mapping[str, Any] | ml_collections.ConfigDict, prefix: str = ''
) -> dict[str, Any]:
  """{'model.width': 64, …} of nested mappings."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, (dict, ml_collections.ConfigDict)):
      flat |= _flatten(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = value
  return flat


def from_config_dict(config: ml_collections.ConfigDict) -> Config:
  """The typed config; see `from_fields`."""
  return from_fields(_flatten(config))


def from_fields(values: Mapping[str, Any]) -> Config:
  """The config of flat fields {'model.width': 64, …}; those left out keep their defaults.

  Raises:
    UserError: naming the field, for one that does not exist, or a value that it cannot have.
  """
  config = _with_evals(values)
  for name in values:
    _check_name(name, config)
  return replace_fields(config, values)


def _with_evals(names: Iterable[str]) -> Config:
  """The default config with the evaluations that fields 'evals.NAME.kind' have."""
  evals = [name.split('.')[1] for name in names if re.match(r'evals\.[^.]*\.', name)]
  return Config(evals=make_evals(evals))


def changed_fields(config: Config) -> dict[str, tuple[Any, Any]]:
  """{'model.width': (64, 0), …}: the fields that are not their defaults, with these."""
  fields = flatten(config)
  defaults = flatten(_with_evals(fields))
  return {name: (x, defaults[name]) for name, x in fields.items() if x != defaults[name]}


def _check_name(name: str, config: Config) -> None:
  known = list(flatten(config))
  if name not in known:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    close += [field for field in known if field.endswith('.' + name.rpartition('.')[2])]
    hint = ', '.join(dict.fromkeys(close)) or 'see python -m vit_jax.main --help'
    raise UserError(f'There is no config field {name!r}; close ones: {hint}.')


def load_config(source: str, overrides: Sequence[str] = ()) -> Config:
  """Reads a config.

  Args:
    source: 'configs/x.py', 'configs/x.py:argument', or a run's 'config.json'. Without such a file
      here, configs/ means the experiments that are installed with the package.
    overrides: command-line flags '--config.field=value'.

  Raises:
    UserError: for a file that does not exist or gives no config, a field that does not exist
      (naming close ones), or a value that a field cannot have.
  """
  path, argument = _locate(source)
  is_python = path.suffix == '.py'
  config = _read_python(Path(path), argument) if is_python else _to_config_dict(read_json(path))
  _apply_overrides(config, overrides)
  return from_config_dict(config)


def call_config_function(source: str, function: str) -> Any:
  """Calls another function of a config file than get_config, with the same argument.

  Args:
    source: 'configs/x.py' or 'configs/x.py:argument'.
    function: its name.

  Raises:
    UserError: for a file that does not exist or has no such function, or what the function raises.
  """
  path, argument = _locate(source)
  if path.suffix != '.py':
    raise UserError(f'{path} is no .py file, so it has no {function}().')
  return _call(Path(path), function, argument)


def _locate(source: str) -> tuple[epath.Path, str | None]:
  """The file of a config, and the argument of its functions."""
  match = re.fullmatch(r'(.*\.py)(?::(.*))?', source)
  path = user_path(match[1] if match else source)
  if not match and path.suffix != '.json':
    raise UserError(f'--config takes a .py or a .json file, not {source!r}.')
  return path if path.exists() else _installed(path), match[2] if match else None


def _installed(path: epath.Path) -> epath.Path:
  """The experiment of that name in the checkout or package that this module belongs to."""
  package = epath.Path(__file__).parent.parent
  for folder in (package.parent, package):  # a checkout, a wheel
    if path.parts[:1] == ('configs',) and (folder / path).exists():
      return folder / path
  files = sorted(str(each) for each in Path('configs').glob('*.py') if each.stem != '__init__')
  hint = f'; there are {", ".join(files)}' if files else ''
  raise UserError(f'There is no config file {path}{hint}.')


def _call(path: Path, function: str, argument: str | None) -> Any:
  sys.path.insert(0, str(path.resolve().parent.parent))  # for its `from configs import …`
  try:
    namespace: dict[str, Any] = {'__name__': 'vit_jax_config', '__file__': str(path)}
    exec(compile(read_text(path), str(path), 'exec'), namespace)
    if function not in namespace:
      raise UserError(f'{path} has no function {function}().')
    return namespace[function](*([] if argument is None else [argument]))
  except UserError:
    raise
  except Exception as error:  # noqa: BLE001 - a config file can raise anything
    kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
    raise UserError(f'{path}: {kind}{error}.') from None
  finally:
    sys.path.pop(0)


def _read_python(path: Path, argument: str | None) -> ml_collections.ConfigDict:
  config = _call(path, 'get_config', argument)
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(f'{path}: get_config() gives a {type(config).__name__}, not a ConfigDict.')
  fields = _flatten(config)
  if differing := sorted(flatten(_with_evals(fields)).keys() ^ fields.keys()):
    raise UserError(
      f'{path}: its fields are not those of vit_jax.config.default_config(); the first ones '
      f'that differ: {", ".join(differing[:3])}.'
    )
  return config


def read_json(path: epath.Path) -> Config:
  """Reads the config.json of a run, also of older versions; nothing in it is executed.

  Raises:
    UserError: for anything else than a JSON object of fields and values of a config.
  """
  try:
    values = _flatten(parse_json(read_text(path)))
  except (OSError, ValueError, AttributeError, RecursionError) as error:
    raise UserError(f'{path} is not a JSON object: {first_line(error)}.') from None
  try:
    return from_fields(_translate(values))
  except UserError as error:
    raise UserError(f'{path}: {error}') from None


def _translate(values: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of a config.json as they are now: those of ResNets once had a patch size, too."""
  values = {_RENAMED.get(name, name): value for name, value in values.items()}
  if str(values.get('model.variant')).startswith('R'):
    values.pop('model.patch_size', None)
  return values


def _value_error(message: str) -> str:
  """A sentence for a value that absl's flags refuse."""
  match = re.match(r'flag --config\.([\w.]+)=(.*?): ', message)
  if not match:
    return message.rstrip('.') + '.'
  fields = walk_fields(_with_evals([match[1]]))
  section = next(section for name, section, _ in fields if name == match[1])
  annotation = typing.get_type_hints(type(section))[match[1].rpartition('.')[2]]
  return f'config.{match[1]} is {match[2]!r}; it must be {describe_type(annotation)}.'


def _apply_overrides(config: Any, overrides: Sequence[str]) -> None:
  """Sets the fields that `--config.field=value` flags name, with the types they have."""
  matches = (re.match(r'--?(?:no)?config\.([^=]+)', flag) for flag in overrides)
  names = {match[1] for match in matches if match}
  known = _with_evals([*_flatten(config), *names])
  for name in names:
    _check_name(name, known)
  with config.unlocked():
    for each in dataclasses.fields(known.evals):
      if each.name not in config.evals:
        config.evals[each.name] = _to_config_dict(getattr(known.evals, each.name))
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
    raise UserError(_value_error(str(error))) from None
  if rest:
    raise UserError(f'{rest[0]!r} is not a flag; config fields are set as --config.field=value.')
  # Setting the length of a run in one unit resets the other.
  if 'total_steps' in names and 'epochs' not in names:
    config.epochs = 0.0
  if 'epochs' in names and 'total_steps' not in names:
    config.total_steps = 0
