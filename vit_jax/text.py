"""Formats numbers and names for messages."""


def plural(count: int, noun: str) -> str:
  """'1 image', '1,234 images', '2 processes'."""
  suffix = '' if count == 1 else 'es' if noun.endswith(('s', 'ch', 'x')) else 's'
  return f'{count:,} {noun}{suffix}'


def printable(name: str) -> str:
  """The name, with escapes if it has characters that a terminal or page cannot show."""
  return name if name.isprintable() else ascii(name)[1:-1]


def format_bytes(size: int) -> str:
  """1234567 -> '1.23 MB'."""
  power = min(len(str(size)) - 1, 9) // 3
  return f'{size / 1000**power:.3g} {("B", "kB", "MB", "GB")[power]}'
