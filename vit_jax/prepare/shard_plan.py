"""What is to be prepared, and which examples go into which shard.

That depends on the data and the settings alone, not on cores, machines or parts, so every way to
prepare a data set gives the same bytes. The examples of a split are in the order of a fixed
permutation (permutation.py), so that slices of it have all classes.
"""

import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.data import imagenet
from vit_jax.data.sources.array_record import CARD, UNFINISHED, import_array_record
from vit_jax.data.sources.splitting.permutation import permutation
from vit_jax.errors import BadExampleError, UserError
from vit_jax.prepare import target_folder, tfds_metadata
from vit_jax.prepare.examples import Examples
from vit_jax.prepare.listing import Listing, Options, list_examples
from vit_jax.prepare.shard_writer import Encoding, Shard, encode_image
from vit_jax.text import printable

_SHARD_BYTES = 256 << 20
_SHARD_EXAMPLES = 1024  # of small data, so that many cores can write and read it
_MAX_SMALL_SHARDS = 128
_NUM_SAMPLES = 32  # examples that are encoded to estimate the size of a split


@dataclasses.dataclass(frozen=True)
class Preparation:
  """What is to be prepared, where, and how; hashable, and other machines understand it.

  Attributes:
    source: see `list_examples`.
    target: a folder that does not exist, is empty, or was begun with the same settings.
    options: how to read the source.
    encoding: how images are stored; by default, files stay as they are.
    name: name of the data set; empty: derived from the source.
    shards: shards per split; 0: see `default_num_shards`.
    skip_bad: whether unreadable images are left out; otherwise they are an error.
  """

  source: str
  target: pathlib.Path
  options: Options = Options()
  encoding: Encoding = Encoding()
  name: str = ''
  shards: int = 0
  skip_bad: bool = False


@dataclasses.dataclass(frozen=True)
class Part:
  """Part `number` of `count`, the first is 1: each `count`-th shard."""

  number: int
  count: int

  def __str__(self) -> str:
    return f'{self.number}/{self.count}'

  def select(self, shards: list[Shard]) -> list[Shard]:
    return shards[self.number - 1 :: self.count]


@dataclasses.dataclass(frozen=True)
class ShardPlan:
  """A preparation that has begun: its target, its examples in order, its settings, all shards."""

  target: pathlib.Path
  listing: Listing
  settings: dict[str, Any]
  shards: list[Shard]
  skip_bad: bool

  @property
  def name(self) -> str:
    return self.settings['name']


def parse_part(text: str) -> Part:
  """'3/64' -> Part(3, 64); raises `ValueError`."""
  match = re.fullmatch('([0-9]{1,9})/([0-9]{1,9})', text)
  if not match or not 1 <= int(match[1]) <= int(match[2]):
    raise ValueError(f'{text[:40]!r} is not a part such as 3/64, from 1/64 to 64/64')
  return Part(int(match[1]), int(match[2]))


def default_name(source: str) -> str:
  """Returns the name of a data set, by its source: lower case, for the names of its files."""
  source = re.sub(r'\?\w+=.*', '', source)  # options
  names = [re.sub('[^a-z0-9]+', '_', word).strip('_') for word in re.split('[:,/]', source.lower())]
  return next((name[:100] for name in reversed(names) if name and not name[0].isdigit()), 'data')


def check_not_negative(**flags: int) -> None:
  """Raises `UserError` for a negative flag, by its name."""
  for flag, value in flags.items():
    if value < 0:
      raise UserError(f'--{flag}={value} must not be negative.')


def _check_arguments(preparation: Preparation) -> None:
  encoding, name = preparation.encoding, preparation.name
  check_not_negative(size=encoding.size, shards=preparation.shards)
  if not 1 <= encoding.quality <= 100:
    raise UserError(f'--quality={encoding.quality} is out of range; use 1 to 100.')
  if name and not re.fullmatch('[a-z][a-z0-9_]{0,99}', name):
    raise UserError(
      f'--name={printable(name)} cannot be part of file names; use lower-case letters, digits and '
      '_, beginning with a letter.'
    )


def default_num_shards(examples: Examples, encoding: Encoding) -> int:
  """Returns how many shards a split gets: one per 256 MB, estimated from a few examples.

  It is at least one per 1,024 examples, up to 128.
  """
  sizes = []
  for i in np.unique(np.linspace(0, len(examples) - 1, _NUM_SAMPLES).astype(int)).tolist():
    try:
      sizes.append(len(encode_image(examples.read(i)[0], '', encoding)))
    except BadExampleError:
      continue
  mean = sum(sizes) / max(1, len(sizes))
  by_size = -int(-len(examples) * mean // _SHARD_BYTES)
  return max(1, by_size, min(_MAX_SMALL_SHARDS, -(-len(examples) // _SHARD_EXAMPLES)))


def is_imagenet(listing: Listing) -> bool:
  """Whether its classes are those of ImageNet, so that it may have ReaL labels."""
  return listing.class_ids == imagenet.synsets()


def _shuffle(listing: Listing) -> Listing:
  splits = {
    split: examples.take(permutation(len(examples))) for split, examples in listing.splits.items()
  }
  return dataclasses.replace(listing, splits=splits)


def _plan_shards(
  listing: Listing, name: str, target: pathlib.Path, encoding: Encoding, counts: Mapping[str, int]
) -> list[Shard]:
  """Returns the shards of all splits, whose examples stay in order."""
  shards, real = [], is_imagenet(listing)
  for split, examples in listing.splits.items():
    count, size = counts[split], len(examples)
    for i in range(count):
      file = str(target / tfds_metadata.shard_name(name, split, i, count))
      members = examples.take(range(i * size // count, (i + 1) * size // count))
      shards.append(Shard(file, split, members, listing.multi_label, real, encoding))
  return shards


def open_plan(preparation: Preparation, *, begin: bool = True) -> ShardPlan | None:
  """Lists the source, begins or resumes TARGET, and returns the plan; None if it is finished.

  Any number of processes may do so at the same time.

  Args:
    preparation: what to prepare.
    begin: whether TARGET may be new; otherwise that is an error.

  Raises:
    UserError: as `list_examples`; or for wrong arguments, or a target that is taken.
  """
  _check_arguments(preparation)
  import_array_record()  # before anything is written
  target, encoding = preparation.target, preparation.encoding
  target_folder.check_available(target)
  listing = _shuffle(list_examples(preparation.source, preparation.options))
  default = 'imagenet' if is_imagenet(listing) else default_name(preparation.source)
  name = preparation.name or default
  settings = target_folder.make_settings(listing, name, encoding, preparation.shards)
  if (target / CARD).exists():
    previous = json.loads((target / CARD).read_text()).get('settings', {})
    previous |= {'version': settings['version']}  # a finished data set of any version may stay
    target_folder.check_same_settings(target, previous, settings)
    shutil.rmtree(target / UNFINISHED, ignore_errors=True)
    return None

  def count_shards() -> dict[str, int]:
    return {
      split: min(len(examples), preparation.shards or default_num_shards(examples, encoding))
      for split, examples in listing.splits.items()
    }

  counts = target_folder.begin_or_resume(target, settings, count_shards if begin else None)
  shards = _plan_shards(listing, name, target, encoding, counts)
  return ShardPlan(target, listing, settings, shards, preparation.skip_bad)
