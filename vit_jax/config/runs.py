"""The config.json of a run: written at its start, compared when it is resumed."""

import dataclasses
import json

from etils import epath

from vit_jax.config.fields import flatten, walk_fields
from vit_jax.config.reading import read_json
from vit_jax.config.schema import Config
from vit_jax.errors import UserError
from vit_jax.files import write_text


def write_config(config: Config, path: epath.Path) -> None:
  """Writes config.json, whole or not at all."""
  write_text(path, json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True) + '\n')


def check_same_run(config: Config, path: epath.Path) -> None:
  """Raises `UserError` naming the fields in which a workdir's config.json differs.

  Fields that change how a run is executed but not what it computes may differ.
  """
  try:
    before, now = flatten(read_json(path)), flatten(config)
  except UserError as error:
    raise UserError(f'{error} Choose another --workdir, or remove this one.') from None
  differing = [
    f'{name} ({before[name]!r} there, {now[name]!r} now)'
    for name, _, field in sorted(walk_fields(config), key=lambda each: each[0])
    if not field.metadata['execution'] and before[name] != now[name]
  ]
  if differing:
    raise UserError(
      f'{path.parent} holds a run with another config: {"; ".join(differing)}; choose another '
      f'--workdir, or resume it with --config={path}.'
    )
