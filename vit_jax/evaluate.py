"""Scores a model on data: `python -m vit_jax.evaluate --model=M --data=folder:/path`."""

import argparse
import dataclasses
import json
from typing import Any

import jax

from vit_jax import command_line
from vit_jax.classifier import Classifier
from vit_jax.config import EvalConfig, OnBadExample, choices
from vit_jax.config.evals import EvalKind
from vit_jax.config.schema import Interpolation, ResizeRule
from vit_jax.distributed import processes, sharding
from vit_jax.errors import PreemptedError, StoppedError, UserError
from vit_jax.evaluation.reports.result_files import ResultFiles
from vit_jax.evaluation.score import score
from vit_jax.load_classifier import load
from vit_jax.models.build import DTYPES
from vit_jax.text import printable


def _parse_args() -> argparse.Namespace:
  parser = command_line.Parser('vit_jax.evaluate', description=__doc__)
  add, own = parser.add_argument, "if not the model's own"
  kinds = ', '.join(choices(EvalKind))
  add('--model', required=True, help='a file, folder, workdir or published name')
  add('--data', required=True, help='folder:/path, array_record:/path, … (all: docs/data.md)')
  add('--split', default='test', help='split of the data')
  add('--eval', default='classification', metavar='KIND[,KIND…]', help=f'of {kinds}')
  add('--class_embeddings', default='', metavar='FILE', help='zero_shot: .npz of the classes')
  add('--train_data', default='', help='training data of fewshot, knn, linear_probe (as --data)')
  add('--train_split', default='train', help='its split')
  add('--shots', type=_parse_numbers, default=EvalConfig.shots, help='fewshot: images of a class')
  add('--l2', type=float, default=EvalConfig.l2, help='fewshot: the penalty; 0: choose it')
  add('--neighbors', type=_parse_numbers, default=EvalConfig.neighbors, help='knn: their numbers')
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
  add('--per_class', default='', metavar='FILE', help='write a table of the classes: .csv')
  add('--predictions', default='', metavar='FILE', help='one of the examples: .csv or .parquet')
  add('--confusion', default='', metavar='FILE', help='draw the confusion matrix: .png')
  add('--cache', action=argparse.BooleanOptionalAction, default=True, help='keep features on disk')
  add('--json', action='store_true', help='print one JSON object')
  command_line.add_process_flags(parser)
  args = parser.parse_args()
  command_line.check_range('--workers', args.workers, 0, 2**10)
  command_line.check_range('--batch_size', args.batch_size, 1, sharding.MAX_BATCH_SIZE)
  return args


def _parse_numbers(text: str) -> tuple[int, ...]:
  try:
    return tuple(map(int, text.split(',')))
  except ValueError:
    raise argparse.ArgumentTypeError(f'{text!r} is not a list such as 1,5,10') from None


def _eval_configs(args: argparse.Namespace) -> dict[str, EvalConfig]:
  """An evaluation for each kind in --eval."""
  kinds = list(dict.fromkeys(args.eval.split(',')))
  for kind in kinds:
    if kind not in choices(EvalKind):
      raise UserError(f'--eval={kind} is no evaluation; choose of {", ".join(choices(EvalKind))}.')
  return {
    kind: EvalConfig(
      kind=kind,
      source=args.data,
      split=args.split,
      train_source=args.train_data or args.data,
      train_split=args.train_split,
      shots=args.shots,
      l2=args.l2,
      neighbors=args.neighbors,
      class_embeddings=args.class_embeddings if kind == 'zero_shot' else '',
      batch_size=args.batch_size,
    )
    for kind in kinds
  }


def _load(args: argparse.Namespace) -> Classifier:
  vit = load(args.model, image_size=args.image_size, dtype=args.dtype)
  if jax.process_index() == 0:
    command_line.print_report(vit.report)
  names = ('resize', 'crop_fraction', 'interpolation', 'antialias')
  changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
  return dataclasses.replace(vit, preprocessing=dataclasses.replace(vit.preprocessing, **changes))


def main() -> None:
  args = _parse_args()
  configs = _eval_configs(args)
  files = ResultFiles(args.per_class, args.predictions, args.confusion)
  files.check_flags(configs)
  process = command_line.detect_process(args)
  names = ('model', 'data', 'split', 'eval', 'batch_size', 'image_size', 'dtype')
  settings: dict[str, Any] = {f'--{name}': getattr(args, name) for name in names}
  sizes = (args.batch_size,)
  with processes.distributed_run(process, settings, args.start_timeout, batch_sizes=sizes):
    if not jax.process_index():
      files.check_paths()
    vit = _load(args)
    try:
      scores = score(vit, configs, args.on_bad_example, args.workers, args.cache, files)
    except StoppedError:
      raise PreemptedError('received SIGTERM; rerun the same command to start over.') from None
    if jax.process_index():
      return
    if args.json:
      print(json.dumps({'model': args.model, **scores.to_json()}))
    else:
      print('\n'.join(map(printable, scores.lines())))
    files.write(scores.outcomes)


if __name__ == '__main__':
  command_line.run(main)
