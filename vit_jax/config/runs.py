"""The config.json of a run: written at its start, compared when it is resumed."""

import json

from etils import epath

from vit_jax.config.fields import field_table
from vit_jax.config.reading import json_fields, read_json, to_json
from vit_jax.config.schema import Config
from vit_jax.errors import UserError
from vit_jax.files import write_text


def write_config(config: Config, path: epath.Path) -> None:
  """Writes config.json, whole or not at all."""
  write_text(path, json.dumps(to_json(config), indent=2, sort_keys=True) + '\n')


def check_same_run(config: Config, path: epath.Path) -> None:
  """Raises `UserError` naming the fields in which a workdir's config.json differs.

  Fields that change how a run is executed but not what it computes may differ.
  """
  try:
    before = json_fields(read_json(path))
  except UserError as error:
    raise UserError(f'{error} Choose another --workdir, or remove this one.') from None
  now = json_fields(config)
  table = field_table(config)
  differing = [
    f'{name} ({before[name]!r} there, {value!r} now)'
    for name, value in sorted(now.items())
    if before[name] != value and not table[name][1].metadata['execution']
  ]
  if differing:
    raise UserError(
      f'{path.parent} holds a run with another config: {"; ".join(differing)}; choose another '
      f'--workdir, or resume it with --config={path}.'
    )
