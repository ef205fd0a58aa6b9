"""Pre-flight checks of the data: prints the data card, finds unreadable images."""

import jax
import tqdm

from vit_jax.config import DataConfig
from vit_jax.data.sources import Source, check_same_classes, open_source, synthetic
from vit_jax.errors import MissingDataError, UserError
from vit_jax.prepare import card as cards
from vit_jax.prepare.statistics import SplitStatistics

# Larger data sets are not read before a run; a damaged image is then met during training.
_MAX_IMAGES = 100_000
_MAX_NAMED = 3


def open_sources(config: DataConfig) -> tuple[Source, Source]:
  """Opens the training and the test examples.

  Raises:
    UserError: for data that cannot be read, or that differs in classes from the other source or
      from the config. For data that does not exist, it names the flags that need none.
  """
  try:
    train = open_source(config.train.source, config.train.split)
    test = open_source(config.test_source, config.test.split)
  except MissingDataError as error:
    message = str(error).rstrip('.')
    raise MissingDataError(f'{message}; {_advise_stand_in(config)}.') from None
  check_same_classes(train.class_names, test.class_names, test.name)
  check_num_classes(config.num_classes, train)
  return train, test


def _advise_stand_in(config: DataConfig) -> str:
  """How to run without any data."""
  source = synthetic.stand_in(config.num_classes)
  if source is None:
    return (
      'to try things without any data, run python -m vit_jax.main --config=configs/quickstart.py'
    )
  flags = f'--config.data.train.source={source}'
  if config.test.source:
    flags += f' --config.data.test.source={source}'
  return f'to run this command on generated images, add {flags}'


def check_num_classes(num_classes: int, train: Source) -> None:
  """Raises `UserError` unless the data has that many classes (0: any number)."""
  if num_classes not in (0, train.num_classes):
    raise UserError(
      f'config.data.num_classes is {num_classes}, but {train.name} has {train.num_classes} '
      'classes; --config.data.num_classes=0 takes any number.'
    )


def inspect_data(config: DataConfig, train: Source, test: Source) -> str:
  """The data card of folders and tables, in a dozen lines, and the warnings of all sources.

  Only process 0 reads; the others get an empty string.

  Raises:
    UserError: naming the images that cannot be read, unless they may be skipped; or when there
      are too many of them.
  """
  if jax.process_index():
    return ''
  sources = {'train': (config.train.source, train), 'test': (config.test_source, test)}
  folders = {
    split: source
    for split, (spec, source) in sources.items()
    if spec.startswith(('folder:', 'table:')) and not source.weights
  }
  size = sum(source.size for source in folders.values())
  folders = folders if size <= _MAX_IMAGES else {}
  others = [source for split, (_, source) in sources.items() if split not in folders]
  notes = dict.fromkeys(f'  WARNING: {note}' for source in others for note in source.notes)
  if not folders:
    return '\n'.join(notes)
  with tqdm.tqdm(total=size, unit=' images', desc='checking', leave=False, disable=None) as bar:
    card = cards.inspect(folders, bar.update)
  for split, statistics in card.splits.items():
    _check_unreadable(config, split, statistics, folders[split].size)
  return '\n'.join((cards.summary(card), *notes))


def _check_unreadable(
  config: DataConfig, split: str, statistics: SplitStatistics, size: int
) -> None:
  """Raises `UserError` when images of a split cannot be read, unless they may be skipped."""
  unreadable, skip = statistics.unreadable, config.on_bad_example == 'skip'
  if not unreadable or (skip and unreadable / size <= config.max_bad_fraction):
    return
  reasons = '; '.join(f'{name}: {reason}' for name, reason in statistics.reasons[:_MAX_NAMED])
  more = f' (and {unreadable - _MAX_NAMED:,} more)' if unreadable > _MAX_NAMED else ''
  advice = '--config.data.on_bad_example=skip trains without them'
  if skip:
    advice = f'more than --config.data.max_bad_fraction={config.max_bad_fraction:g}'
  raise UserError(
    f'{unreadable:,} of {size:,} {split} images cannot be read: {reasons}{more}; {advice}.'
  )
