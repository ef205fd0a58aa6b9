"""A data set to sharded ArrayRecord in TFDS's format, on all cores, restartable.

One task is one shard: written under another name, synced, renamed; then a file of what it holds,
in TARGET/.unfinished. Shards that have both are not written again. TARGET is whole when it has
dataset.json, which is written last. The same settings give the same bytes, whatever was
interrupted, on however many processes.
"""

import dataclasses
import fcntl
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import simplejpeg
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image

from vit_jax.data import card as cards
from vit_jax.data import card_page, example_proto, imagenet, pool
from vit_jax.data.card import Card, Tally
from vit_jax.data.images import open_image
from vit_jax.data.listing import Examples, Listing, Options, list_examples
from vit_jax.data.sources.tfds import CARD, UNFINISHED
from vit_jax.errors import BadExampleError, UserError

_SHARD_BYTES = 256 << 20
_SAMPLES = 32  # examples that are tried to find the size of the shards
_SETTINGS = 'settings.json'
_VERSION = 1  # of what is written; another one is not continued
_NAMED = 10  # bad examples in a message
_NO_SPACE = (('No space left', 28), ('Disk quota', 122), ('File too large', 27))


@dataclasses.dataclass(frozen=True)
class Encoding:
  """How images are stored.

  Attributes:
    size: the shorter side of larger images; 0 keeps all bytes as they are.
    quality: of the JPEGs that resized images become.
  """

  size: int = 0
  quality: int = 95


@dataclasses.dataclass(frozen=True)
class Shard:
  """A task: the examples of one file."""

  file: str
  examples: Examples
  multi_label: bool
  real: bool
  encoding: Encoding

  @property
  def facts(self) -> pathlib.Path:
    """Where its counts are kept until the data set is whole."""
    path = pathlib.Path(self.file)
    return path.parent / UNFINISHED / f'{path.name}.json'


def store(data: bytes | np.ndarray, name: str, encoding: Encoding) -> bytes:
  """The bytes that are stored for an image: as it came, pixels as PNG, too large ones as JPEG.

  Raises:
    BadExampleError: when it cannot be decoded.
  """
  picture = open_image(data, name)
  pixels = picture.pixels(None)
  height, width = pixels.shape[:2]
  if encoding.size and min(height, width) > encoding.size:
    scale = encoding.size / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    return simplejpeg.encode_jpeg(np.asarray(small), encoding.quality, colorsubsamp='420')
  if isinstance(data, bytes):
    return data
  file = io.BytesIO()
  Image.fromarray(data[..., 0] if data.shape[2] == 1 else data).save(file, 'PNG')
  return file.getvalue()


def _record(stored: bytes, labels: list[int], name: str, shard: Shard) -> bytes:
  number = imagenet.val_number(name) if shard.real else None
  return example_proto.encode({
      'image': [stored],
      'labels' if shard.multi_label else 'label': labels,
      'file_name': [name.encode('utf-8', 'backslashreplace')],
      **({} if number is None else {'real': imagenet.real_labels()[number]}),
  })


def _sync(path: pathlib.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _write(path: pathlib.Path, content: bytes) -> None:
  """Writes a file, whole or not at all."""
  part = path.with_name(path.name + '.part')
  with open(part, 'wb') as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  part.rename(path)
  _sync(path.parent)


def _sha256(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _write_records(shard: Shard, part: pathlib.Path, tell: pool.Tell) -> tuple[Tally, bytes]:
  """Writes the records of a shard; returns the counts and the hashes of its examples."""
  found, hashes, examples = Tally(), bytearray(), shard.examples
  writer = ArrayRecordWriter(str(part), 'group_size:1,uncompressed')
  try:
    for i in range(len(examples)):
      name, digest = '', bytes(cards.HASH_BYTES)
      try:
        name = examples.name(i)
        data, label = examples.read(i)
        facts = cards.examine(data, name, decode=False)
        stored = store(data, name, shard.encoding)
        labels = cards.label_list(label, shard.multi_label)
        writer.write(_record(stored, labels, name, shard))
        found.add(facts, labels, name, len(stored))
        digest = cards.content_hash(data)
      except BadExampleError as error:
        found.add_unreadable(name, cards.reason(error, name))
      hashes += digest
      tell(1)
  finally:
    writer.close()
  return found, bytes(hashes)


def write_shard(shard: Shard, tell: pool.Tell) -> None:
  """Writes a shard, then its facts."""
  path = pathlib.Path(shard.file)
  part = path.with_name(path.name + '.part')
  try:
    found, hashes = _write_records(shard, part, tell)
    if ArrayRecordReader(str(part)).num_records() != found.examples:
      raise OSError(5, 'it does not hold what was written', str(path))
  except (RuntimeError, ValueError) as error:  # how ArrayRecord says that it cannot write
    for said, number in _NO_SPACE:
      if said in str(error):
        raise OSError(number, os.strerror(number), str(path)) from None
    raise
  _sync(part)
  facts = {'file': path.name, 'records': found.examples, 'bytes': part.stat().st_size,
           'sha256': _sha256(part)}  # fmt: skip
  part.rename(path)
  _sync(path.parent)
  _write(shard.facts.with_suffix('.hashes'), hashes)
  _write(shard.facts, json.dumps({'shard': facts, 'tally': found.to_json()}).encode())


def _is_done(shard: Shard, keep_bad: bool) -> int | None:
  """The examples in a shard that is written; None for one that is to be written."""
  try:
    facts = json.loads(shard.facts.read_text())
    if pathlib.Path(shard.file).stat().st_size != facts['shard']['bytes']:
      return None
    if facts['tally']['unreadable'] and not keep_bad:
      return None  # the files may have been mended
  except (OSError, ValueError, KeyError):
    return None
  return len(shard.examples)


def _estimate(examples: Examples, encoding: Encoding) -> float:
  """The mean size of an example as it is stored."""
  sizes = []
  for i in sorted({int(i) for i in np.linspace(0, len(examples) - 1, _SAMPLES)}):
    try:
      sizes.append(len(store(examples.read(i)[0], '', encoding)))
    except BadExampleError:
      continue
  return float(np.mean(sizes)) if sizes else 0.0


def _shard_counts(listing: Listing, encoding: Encoding, given: int, workers: int) -> dict[str, int]:
  counts = {}
  for split, examples in listing.splits.items():
    by_size = -int(-len(examples) * _estimate(examples, encoding) // _SHARD_BYTES)
    counts[split] = min(len(examples), given or max(by_size, workers))
  return counts


def _settings(listing: Listing, name: str, encoding: Encoding, shards: int) -> dict[str, Any]:
  """All that a set depends on, but the bytes of the images."""
  return {
      'version': _VERSION,
      'name': name,
      'source': listing.source,
      'listing': listing.fingerprint,
      'splits': {split: len(examples) for split, examples in listing.splits.items()},
      'classes': len(listing.class_names),
      'size': encoding.size,
      'quality': encoding.quality,
      'shards': shards,
  }


def _begin(target: pathlib.Path, settings: dict[str, Any], count: Callable) -> dict[str, int]:
  """Makes TARGET, or checks what is there; returns the number of shards of each split."""
  file = target / UNFINISHED / _SETTINGS
  if not file.exists():
    if target.exists() and any(entry.name != UNFINISHED for entry in target.iterdir()):
      raise UserError(f'{target} is there already and is not empty; name another TARGET.')
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, json.dumps({'settings': settings, 'shards': count()}, indent=2).encode())
  known = json.loads(file.read_text())
  _refuse_other(target, known['settings'], settings)
  return known['shards']


def _refuse_other(target: pathlib.Path, known: dict[str, Any], settings: dict[str, Any]) -> None:
  for key, value in settings.items():
    if known.get(key) != value:
      if key == 'listing':
        raise UserError(
            f'The files of {settings["source"]} have changed since the preparation of {target} '
            'began; remove it, or name another TARGET.'
        )
      raise UserError(
          f'{target} was begun with {key}={known.get(key)}, not {value}; run the command as it '
          'was, or name another TARGET.'
      )


def _plan(listing: Listing, name: str, target: pathlib.Path, encoding: Encoding,
          counts: dict[str, int]) -> dict[str, list[Shard]]:  # fmt: skip
  plan = {}
  is_1k = listing.class_ids == imagenet.synsets()
  for split, examples in listing.splits.items():
    count, size = counts[split], len(examples)
    digits = max(5, len(str(count)))
    plan[split] = [
        Shard(
            str(target / f'{name}-{split}.array_record-{i:0{digits}}-of-{count:0{digits}}'),
            examples.part(i * size // count, (i + 1) * size // count),
            listing.multi_label,
            is_1k and split != 'train',
            encoding,
        )
        for i in range(count)
    ]
  return plan


def _feature(kind: str, **fields: Any) -> dict[str, Any]:
  module = re.sub('(?<=[a-z])(?=[A-Z])', '_', kind).lower()
  suffix = '' if module == 'features_dict' else '_feature'
  module = {'class_label': 'class_label_feature'}.get(module, f'{module}{suffix}')
  return {'pythonClassName': f'tensorflow_datasets.core.features.{module}.{kind}', **fields}


def _features(listing: Listing, real: bool) -> dict[str, Any]:
  """features.json, as TFDS writes it."""
  label = _feature('ClassLabel', classLabel={'numClasses': str(len(listing.class_names))})
  several = _feature('Sequence', sequence={'feature': label, 'length': '-1'})
  shape = {'dimensions': ['-1', '-1', '3']}
  features = {
      'image': _feature('Image', image={'dtype': 'uint8', 'shape': shape}),
      'file_name': _feature('Text', text={}),
      'labels' if listing.multi_label else 'label': several if listing.multi_label else label,
  }
  if real:
    features['real'] = several
  return _feature('FeaturesDict', featuresDict={'features': features})


def _dataset_info(name: str, card: Card) -> dict[str, Any]:
  splits = [
      {
          'name': split,
          'numBytes': str(card.splits[split].bytes),
          'shardLengths': [str(shard['records']) for shard in shards],
          'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
      }
      for split, shards in card.shards.items()
  ]
  return {'name': name, 'version': '1.0.0', 'fileFormat': 'array_record', 'splits': splits}


def _finish(target: pathlib.Path, listing: Listing, plan: dict[str, list[Shard]],
            settings: dict[str, Any], skip_bad: bool) -> Card:  # fmt: skip
  """Reads the facts of all shards, and writes what a whole data set has besides them."""
  tallies, shards = {}, {}
  for split, tasks in plan.items():
    facts = [json.loads(task.facts.read_text()) for task in tasks]
    shards[split] = [fact['shard'] for fact in facts]
    hashes = [task.facts.with_suffix('.hashes').read_bytes() for task in tasks]
    found = [Tally.from_json(fact['tally']) for fact in facts]
    tallies[split] = list(zip(found, hashes, strict=True))
  card = cards.make_card(listing, tallies, settings['name'])
  card = dataclasses.replace(card, shards=shards, settings=settings)
  if card.unreadable and not skip_bad:
    raise bad_examples(card)
  for split, found in card.splits.items():
    if not found.examples:
      raise UserError(f'No image of the split {split} can be read.')
  real = any(task.real for tasks in plan.values() for task in tasks)
  label = 'labels' if listing.multi_label else 'label'
  names = ''.join(f'{name}\n' for name in listing.class_names)
  for key in ('labels.txt', f'{label}.labels.txt', *(['real.labels.txt'] if real else [])):
    _write(target / key, names.encode())
  _write_json(target / 'features.json', _features(listing, real))
  _write_json(target / 'dataset_info.json', _dataset_info(settings['name'], card))
  _write(target / 'dataset.html', card_page.page(card, thumbnails(target, card)).encode())
  _write_json(target / CARD, cards.to_json(card))
  return card


def _write_json(path: pathlib.Path, content: Any) -> None:
  _write(path, (json.dumps(content, indent=2) + '\n').encode())


def bad_examples(card: Card) -> UserError:
  """The error that names the examples that cannot be read."""
  reasons = [each for found in card.splits.values() for each in found.reasons]
  named = '; '.join(f'{cards.shown(name)}: {reason}' for name, reason in reasons[:_NAMED])
  more = f'; and {card.unreadable - _NAMED:,} more' if card.unreadable > _NAMED else ''
  return UserError(
      f'{card.unreadable:,} images cannot be read ({named}{more}); mend them and run again, or '
      'leave them out with --on_bad_example=skip.'
  )


def thumbnails(target: pathlib.Path, card: Card) -> Iterator[tuple[int, bytes]]:
  """(class, an image of it) for a few images of each class, of the first split that has any."""
  seen: set[int] = set()
  for split, found in card.splits.items():
    ends = np.cumsum([shard['records'] for shard in card.shards[split]])
    readers: dict[int, ArrayRecordReader] = {}
    for label, places in sorted(found.firsts.items()):
      if label in seen or len(seen) >= card_page.MOST_CLASSES:
        continue
      seen.add(label)
      for place in places:
        shard = int(np.searchsorted(ends, place, side='right'))
        if shard not in readers:
          readers = {shard: ArrayRecordReader(str(target / card.shards[split][shard]['file']))}
        readers[shard].seek(place - (int(ends[shard - 1]) if shard else 0))
        yield label, example_proto.decode(readers[shard].read(), ('image',))['image'][0]


@dataclasses.dataclass(frozen=True)
class Progress:
  """What a preparation tells while it is at work.

  Attributes:
    start: called once with the number of images, and of those that were there already.
    tell: called with the number of images that were done since the last call.
  """

  start: Callable[[int, int], None] = lambda total, there: None
  tell: pool.Tell = lambda count: None


def default_name(source: str) -> str:
  """A name for a data set that file names can begin with."""
  base = re.split(r'[:,]', source.rstrip('/'))[-1].rstrip('/').rpartition('/')[2]
  name = re.sub(r'[^a-z0-9]+', '_', base.lower()).strip('_')
  return name if name and not name[0].isdigit() else f'data_{name}'.rstrip('_')


def prepare(
    source: str,
    target: pathlib.Path,
    options: Options | None = None,
    encoding: Encoding | None = None,
    *,
    name: str = '',
    shards: int = 0,
    workers: int = 0,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Card:
  """Writes a data set to `target`, or what is missing of it there; returns its card.

  Args:
    source: see `list_examples`.
    target: a folder that is not there, empty, or was begun with the same settings.
    options: how to understand the source.
    encoding: how images are stored; as they come without one.
    name: of the data set; that of the source if empty.
    shards: files a split; 0: of about 256 MB, at least one a worker.
    workers: processes; 0: one a core.
    skip_bad: whether images that cannot be read are left out, else they are an error.
    progress: what to tell.

  Raises:
    UserError: see `list_examples`; and for images that cannot be read, or another TARGET.
  """
  encoding, progress = encoding or Encoding(), progress or Progress()
  workers = workers or len(os.sched_getaffinity(0))
  _refuse_taken(target)
  listing = list_examples(source, options)
  name = name or ('imagenet' if listing.class_ids == imagenet.synsets() else default_name(source))
  settings = _settings(listing, name, encoding, shards)
  if (target / CARD).exists():
    raise _whole_already(target, settings)
  counts = _begin(target, settings, lambda: _shard_counts(listing, encoding, shards, workers))
  with _locked(target):
    plan = _plan(listing, name, target, encoding, counts)
    tasks = [task for tasks in plan.values() for task in tasks]
    done = [_is_done(task, skip_bad) for task in tasks]
    there = sum(count or 0 for count in done)
    progress.start(sum(settings['splits'].values()), there)
    missing = [task for task, count in zip(tasks, done, strict=True) if count is None]
    for _ in pool.run_tasks(write_shard, missing, workers, progress.tell):
      pass
    card = _finish(target, listing, plan, settings, skip_bad)
    shutil.rmtree(target / UNFINISHED)
  return card


def _refuse_taken(target: pathlib.Path) -> None:
  if target.exists() and not target.is_dir():
    raise UserError(f'{target} is a file; TARGET is a folder.')
  if target.exists() and not (target / UNFINISHED).exists() and not (target / CARD).exists():
    if any(target.iterdir()):
      raise UserError(f'{target} is there already and is not empty; name another TARGET.')


def _whole_already(target: pathlib.Path, settings: dict[str, Any]) -> UserError:
  known = json.loads((target / CARD).read_text()).get('settings', {})
  _refuse_other(target, known, settings)
  return UserError(f'{target} is prepared already; there is nothing to do.')


class _locked:  # noqa: N801 - reads as a function
  """Keeps other processes from preparing the same TARGET."""

  def __init__(self, target: pathlib.Path):
    self._target = target

  def __enter__(self) -> None:
    self._file = open(self._target / UNFINISHED / _SETTINGS, 'rb')
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(f'Another process is preparing {self._target}; wait for its end.') from None

  def __exit__(self, *args: object) -> None:
    self._file.close()


def check(source: str, options: Options | None, workers: int, progress: Progress) -> Card:
  """Reads and decodes a data set wholly, on processes; writes nothing."""
  listing = list_examples(source, options)
  tasks, splits = [], []
  for split, examples in listing.splits.items():
    for part in cards.parts(examples, 512):
      tasks.append((part, listing.multi_label))
      splits.append(split)
  progress.start(sum(map(len, listing.splits.values())), 0)
  workers = workers or len(os.sched_getaffinity(0))
  results = dict(pool.run_tasks(_check_part, tasks, workers, progress.tell))
  tallies: dict[str, list] = {split: [] for split in listing.splits}
  for number, split in enumerate(splits):
    tallies[split].append(results[number])
  return cards.make_card(listing, tallies)


def _check_part(task: tuple[Examples, bool], tell: pool.Tell) -> tuple[Tally, bytes]:
  return cards.tally(*task, decode=True, tell=tell)
