"""Formats numbers and names for messages.

Names in files (of classes, tensors, images) are hostile: all that is shown of them, on a terminal,
in a log or on a page, passes through `printable`.
"""

import unicodedata
from collections.abc import Iterable

# In the names of metrics that are shares.
_SHARES = ('accuracy', 'precision', 'calibration', 'utilization', 'goodput', 'data_wait')


def plural(count: int, noun: str) -> str:
  """'1 image', '1,234 images', '2 processes'."""
  suffix = '' if count == 1 else 'es' if noun.endswith(('s', 'ch', 'x')) else 's'
  return f'{count:,} {noun}{suffix}'


def join_words(words: Iterable[str]) -> str:
  """'a', 'a and b', 'a, b and c'."""
  *first, last = words
  return f'{", ".join(first)} and {last}' if first else last


def printable(text: str) -> str:
  r"""The text on one line, with escapes such as \x1b and \u202e for what is no visible character.

  These are control characters (newlines among them), those that change the direction of text or
  have no width, separators of lines, lone surrogates, and code points without a character. Letters
  of all scripts, accents, emoji and spaces are kept.
  """
  if text.isprintable():
    return text
  return ''.join(
    char if char.isprintable() or unicodedata.category(char) == 'Zs' else _escape(char)
    for char in text
  )


def shortened(text: str, most: int = 2_000) -> str:
  """The text, or its beginning and its end if it has more than `most` characters."""
  return text if len(text) <= most else f'{text[: most // 2]} … {text[-most // 2 :]}'


def _escape(char: str) -> str:
  return char.encode('unicode_escape').decode('ascii')


def printable_lines(text: str) -> str:
  """As `printable`, but keeps newlines: for a text whose names were made printable before."""
  return '\n'.join(map(printable, text.split('\n')))


def format_bytes(size: int) -> str:
  """1234567 -> '1.23 MB'."""
  power = min(len(str(size)) - 1, 9) // 3
  return f'{size / 1000**power:.3g} {("B", "kB", "MB", "GB")[power]}'


def format_metric(name: str, value: float) -> str:
  """'accuracy 96.67%', 'loss 0.1503', '360 examples'."""
  name = name.replace('_', ' ')
  if name.startswith('examples'):
    return plural(round(value), 'example') + name.removeprefix('examples')
  return f'{name} {format_value(name, value)}'


def format_value(name: str, value: float) -> str:
  """The value of a metric: '96.67%' of a share, '0.1503' of others."""
  return f'{value:.2%}' if any(word in name for word in _SHARES) else f'{value:.4g}'
