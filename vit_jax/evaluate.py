"""Scores a model on a data set: `python -m vit_jax.evaluate --model=M --data=folder:/path`."""

import argparse
import dataclasses
import json

from vit_jax import command_line
from vit_jax.config import OnBadExample, choices
from vit_jax.config.schema import Interpolation, ResizeRule
from vit_jax.evaluation.score import score
from vit_jax.load_classifier import load
from vit_jax.models.build import DTYPES, dtype_name
from vit_jax.text import printable

_MAX_CONFUSIONS = 100  # in JSON


def _parse_args() -> argparse.Namespace:
  parser = command_line.Parser('vit_jax.evaluate', description=__doc__)
  add, own = parser.add_argument, "if not the model's own"
  add('--model', required=True, help='a file, folder, workdir or published name')
  add('--data', required=True, help='folder:/path, array_record:/path, … (all: docs/data.md)')
  add('--split', default='test', help='split of the data')
  add('--eval', default='classification', choices=['classification'], help='what to measure')
  add('--image_size', type=command_line.parse_image_size, metavar='N|HxW', help=own)
  add('--crop', dest='resize', choices=choices(ResizeRule), help=f'resize rule, {own}')
  add('--crop_fraction', type=float, metavar='X', help=f'central share of the image, {own}')
  add('--interpolation', choices=choices(Interpolation), help=own)
  add('--antialias', action=argparse.BooleanOptionalAction, help=f'average when shrinking, {own}')
  add('--dtype', choices=DTYPES, help=f'of matrix products, {own}')
  add('--batch_size', type=int, default=64, help='examples at a time; changes no result')
  add('--workers', type=int, default=0, help='reading processes; 0: threads')
  add(
    '--on_bad_example',
    default='error',
    choices=choices(OnBadExample),
    help='an unreadable image ends the evaluation, or is left out',
  )
  add('--json', action='store_true', help='print one JSON object')
  args = parser.parse_args()
  command_line.check_range('--workers', args.workers, 0, 2**10)
  return args


def main() -> None:
  args = _parse_args()
  vit = load(args.model, image_size=args.image_size, dtype=args.dtype)
  command_line.print_report(vit.report)
  names = ('resize', 'crop_fraction', 'interpolation', 'antialias')
  changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
  vit = dataclasses.replace(vit, preprocessing=dataclasses.replace(vit.preprocessing, **changes))
  source, result = score(
    vit, args.data, args.split, args.batch_size, args.on_bad_example, args.workers
  )
  names = vit.labels or source.class_names
  if args.json:
    report = {
      'model': args.model,
      'preprocessing': dataclasses.asdict(vit.preprocessing),
      'data': source.name,
      'dtype': dtype_name(vit.model),
      **result.metrics,
      'confusions': [
        {'label': names[label], 'top_class': names[other], 'count': count, 'examples': total}
        for label, other, count, total in result.confusions()[:_MAX_CONFUSIONS]
      ],
    }
    print(json.dumps(report))
    return
  mean = result.metrics.get('mean_per_class_accuracy')
  print(
    f'{printable(source.name)}: accuracy {result.accuracy:.2%} ({result.correct:,} of '
    f'{result.examples:,} examples correct)'
    + ('' if mean is None else f', mean per class {mean:.2%}')
    + f', loss {result.loss:.4f}'
  )
  for line in result.mistakes(names):
    print(printable(line))


if __name__ == '__main__':
  command_line.run(main)
