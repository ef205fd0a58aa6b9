"""What is said of the data before a run; folders of images are looked through for bad ones."""

import jax
import ml_collections
import tqdm

from vit_jax.data.preparing import card as cards
from vit_jax.data.preparing.tally import Tally
from vit_jax.data.sources import Source
from vit_jax.errors import UserError

# More images are not read through before a run; a damaged one is then met on the way.
_AT_MOST = 100_000
_NAMED = 3


def inspect_data(config: ml_collections.ConfigDict, train: Source, test: Source) -> str:
  """The data card of folders, in a dozen lines, and what is to be said of the sources.

  Process 0 alone looks.

  Raises:
    UserError: naming the images that cannot be read, unless they may be skipped; or when those
      are too many.
  """
  given = {'train': (config.data.train.source, train), 'test': (config.data.test.source, test)}
  found = {
      split: source for split, (spec, source) in given.items()
      if spec.startswith('folder:') and not source.weights
  }  # fmt: skip
  size = sum(source.size for source in found.values())
  if jax.process_index():
    return ''
  if size > _AT_MOST:
    found = {}
  notes = dict.fromkeys(
      f'  WARNING: {note}'
      for split, (_, source) in given.items() if split not in found for note in source.notes
  )  # fmt: skip
  if not found:
    return '\n'.join(notes)
  with tqdm.tqdm(total=size, unit=' images', desc='looking', leave=False, disable=None) as bar:
    card = cards.inspect(found, tell=bar.update)
  for split, tally in card.splits.items():
    share = tally.unreadable / found[split].size
    if tally.unreadable and (config.data.on_bad_example == 'error' or
                             share > config.data.most_bad):  # fmt: skip
      raise UserError(_unreadable(split, tally, found[split].size, config.data))
  return '\n'.join((cards.summary(card), *notes))


def _unreadable(split: str, tally: Tally, size: int, data: ml_collections.ConfigDict) -> str:
  reasons = '; '.join(f'{name}: {reason}' for name, reason in tally.reasons[:_NAMED])
  more = f' (and {tally.unreadable - _NAMED:,} more)' if tally.unreadable > _NAMED else ''
  hint = '--config.data.on_bad_example=skip goes on without them'
  if data.on_bad_example == 'skip':
    hint = f'more than config.data.most_bad={data.most_bad:.1%}'
  return (
      f'{tally.unreadable:,} of {size:,} {split} images cannot be read: {reasons}{more}; {hint}.'
  )
