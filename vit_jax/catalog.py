"""Prints the registry of published models: `python -m vit_jax.catalog [TEXT]`."""

from vit_jax import command_line
from vit_jax.errors import UserError
from vit_jax.weights.evaluation_protocols import protocol
from vit_jax.weights.registry import GATED, PUBLISHED_MODELS


def main() -> None:
  parser = command_line.Parser('vit_jax.catalog', description=__doc__)
  parser.add_argument(
    'text', nargs='?', default='', metavar='TEXT', help='print only names that contain it'
  )
  text = parser.parse_args().text
  rows = [('px', 'MiB', 'ImageNet %', 'evaluation', 'data', 'license', 'name', 'short name')]
  gated = {}
  for model in PUBLISHED_MODELS.values():
    if text.lower() in f'{model.name} {model.alias or ""}'.lower():
      accuracy = '' if model.accuracy is None else f'{model.accuracy:g}'
      numbers = (str(model.resolution), str(model.size or ''), accuracy)
      evaluation = protocol(model).summary()
      texts = model.data, model.license, model.name, model.alias or ''
      rows.append((*numbers, evaluation, *texts))
      if model.url is None:
        folder = f'{model.family}/'
        gated[folder] = (
          f'{GATED[model.family]}, then put the files into {folder} of $VIT_JAX_CACHE, which is '
          '~/.cache/vit_jax unless set'
        )
  if len(rows) == 1:
    raise UserError(f'No published model has {text!r} in its name.')
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
    cells[:3] = [cell.rjust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
    print('  '.join(cells).rstrip())
  for names, text in gated.items():
    print(f'\n{names}…: accept the license at {text}.')


if __name__ == '__main__':
  command_line.run(main)
