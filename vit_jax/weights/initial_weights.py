"""What the models of a run inherit from the weights it starts from: initial_weights.json."""

import json
from typing import Any

from etils import epath

from vit_jax.files import write_text
from vit_jax.weights.metadata import damage_explained, read_json

FILE = 'initial_weights.json'  # in the workdir
_INHERITED = ('license', 'position_resize')  # fields of ModelMetadata


def write_inherited(workdir: epath.Path, inherited: dict[str, Any]) -> None:
  """Records in the workdir what `read_inherited` returns."""
  write_text(workdir / FILE, json.dumps(inherited, indent=2) + '\n')


def read_inherited(workdir: epath.Path) -> dict[str, Any]:
  """{'license': …, 'position_resize': …}, those that are known, of the weights a run started from.

  Raises:
    UserError: for a damaged file.
  """
  with damage_explained(str(workdir / FILE)):
    content = read_json(workdir / FILE)
    return {name: content[name] for name in _INHERITED if content.get(name)}
