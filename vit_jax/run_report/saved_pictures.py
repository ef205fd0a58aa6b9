"""Pictures that a run keeps for its report, in `workdir/report/`."""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

from etils import epath

from vit_jax.files import read_json_object, write_text

FOLDER = 'report'
FIRST_BATCH, MISTAKES = 'first_batch.json', 'mistakes.json'
MAX_PICTURES = 16
_URI = re.compile(r'data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*')


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture and what it shows.

  Attributes:
    uri: a PNG or a JPEG as a data URI.
    name: of the example: its file, or its number.
    labels: (name of the class, its weight in [0, 1]).
    predicted: (name of the class, probability); None where nothing was predicted.
  """

  uri: str
  name: str
  labels: Sequence[tuple[str, float]]
  predicted: tuple[str, float] | None = None


@dataclasses.dataclass(frozen=True)
class Pictures:
  """Pictures of a step.

  Attributes:
    step: of the batch, or after which the model was evaluated.
    note: a sentence about them.
    pictures: at most `MAX_PICTURES`.
  """

  step: int
  note: str
  pictures: Sequence[Picture]


def write_pictures(path: epath.Path, pictures: Pictures) -> None:
  """Writes them, whole or not at all; raises `OSError` if that fails."""
  path.parent.mkdir(parents=True, exist_ok=True)
  write_text(path, json.dumps(dataclasses.asdict(pictures)) + '\n')


def read_pictures(path: epath.Path) -> Pictures | None:
  """Those that were written; None for a file that does not exist, or holds anything else."""
  try:
    content = read_json_object(path)
    pictures = [_to_picture(each) for each in content['pictures'][:MAX_PICTURES]]
    return Pictures(int(content['step']), str(content['note']), pictures)
  except (OSError, ValueError, LookupError, TypeError, AttributeError):
    return None


def _to_picture(content: dict[str, Any]) -> Picture:
  if not _URI.fullmatch(content['uri']):
    raise ValueError('it is not a picture')
  labels = [(str(name), float(weight)) for name, weight in content['labels']]
  predicted = content['predicted']
  if predicted is not None:
    predicted = str(predicted[0]), float(predicted[1])
  return Picture(content['uri'], str(content['name']), labels, predicted)
