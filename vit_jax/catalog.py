"""Prints the table of published checkpoints: `python -m vit_jax.catalog [TEXT]`."""

from vit_jax import command_line
from vit_jax.errors import UserError
from vit_jax.weights.registry import CATALOG

_HEADER = ('px', 'MiB', 'ImageNet %', 'data', 'name', 'short name')


def main() -> None:
  parser = command_line.Parser('vit_jax.catalog', description=__doc__)
  parser.add_argument('text', nargs='?', default='', metavar='TEXT', help='only names with it')
  args = parser.parse_args()
  rows = [_HEADER]
  for entry in CATALOG.values():
    if args.text.lower() in f'{entry.name} {entry.alias or ""}'.lower():
      size = '' if entry.size is None else str(entry.size)
      accuracy = '' if entry.accuracy is None else f'{entry.accuracy:g}'
      pixels = str(entry.resolution)
      rows.append((pixels, size, accuracy, entry.data, entry.name, entry.alias or ''))
  if len(rows) == 1:
    raise UserError(f'No name of the catalogue has {args.text!r} in it.')
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    cells = [cell.rjust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
    cells += [cell.ljust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
    print('  '.join(cells).rstrip())


if __name__ == '__main__':
  command_line.run(main)
