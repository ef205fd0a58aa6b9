"""Scores a model on a data set: `python -m vit_jax.evaluate --model=M --data=folder:/path`."""

import json

from vit_jax import command_line
from vit_jax.classifier import load
from vit_jax.config import OnBadExample, choices
from vit_jax.evaluation.score import score
from vit_jax.text import printable


def main() -> None:
  parser = command_line.Parser('vit_jax.evaluate', description=__doc__)
  parser.add_argument('--model', required=True, help='a file, folder, workdir or published name')
  parser.add_argument(
    '--data', required=True, help='folder:/path, array_record:/path, … (all: docs/data.md)'
  )
  parser.add_argument('--split', default='test', help='split of the data')
  parser.add_argument(
    '--eval', default='classification', choices=['classification'], help='what to measure'
  )
  parser.add_argument(
    '--image_size',
    type=command_line.parse_image_size,
    metavar='N|HxW',
    help="if not the model's own",
  )
  parser.add_argument(
    '--batch_size', type=int, default=64, help='examples at a time; changes no result'
  )
  parser.add_argument(
    '--on_bad_example',
    default='error',
    choices=choices(OnBadExample),
    help='an unreadable image ends the evaluation, or is left out',
  )
  parser.add_argument('--json', action='store_true', help='print one JSON object')
  args = parser.parse_args()
  model = load(args.model, image_size=args.image_size)
  command_line.print_report(model.report)
  metrics = score(model, args.data, args.split, args.batch_size, args.on_bad_example)
  if args.json:
    print(json.dumps({'model': args.model, **metrics}))
  else:
    num_correct = round(metrics['accuracy'] * metrics['examples'])
    print(
      f'{printable(metrics["data"])}: accuracy {metrics["accuracy"]:.2%} '
      f'({num_correct:,} of {metrics["examples"]:,} examples correct), loss {metrics["loss"]:.4f}'
    )


if __name__ == '__main__':
  command_line.run(main)
