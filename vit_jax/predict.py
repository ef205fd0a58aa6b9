"""Classifies images: `python -m vit_jax.predict --model=M IMAGE…`."""

import argparse
import codecs
import contextlib
import csv
import io
import json
import sys
from collections.abc import Sequence

import tqdm
from etils import epath

from vit_jax import command_line
from vit_jax.errors import UserError
from vit_jax.evaluation.reports.predictions import Prediction, find_images, predict_files, read_list
from vit_jax.evaluation.reports.submission import fill, read_template
from vit_jax.files import is_special, user_path, write_atomically
from vit_jax.load_classifier import load
from vit_jax.models.build import DTYPES
from vit_jax.text import printable

_CSV_COLUMNS = ('image', 'rank', 'index', 'label', 'probability')


def _parse_args() -> argparse.Namespace:
  parser = command_line.Parser('vit_jax.predict', description=__doc__)
  add = parser.add_argument
  add('images', nargs='*', metavar='IMAGE', help='files, or folders of them')
  add('--model', required=True, help='a file, folder, workdir or published name')
  add('--list', metavar='FILE', help='text file of further images, one a line; -: stdin')
  add('--top_k', type=int, default=5, help='classes for each image')
  add(
    '--image_size',
    type=command_line.parse_image_size,
    metavar='N|HxW',
    help="if not the model's own",
  )
  add('--labels', metavar='FILE', help='text file of class names, one a line')
  add('--dtype', choices=DTYPES, help="of matrix products, if not the model's own")
  add('--batch_size', type=int, default=32, help='images at a time; changes no result')
  add('--json', action='store_true', help='print one JSON object for each image')
  add('--csv', metavar='FILE', help=f'write a table instead of printing: {", ".join(_CSV_COLUMNS)}')
  add('--template', metavar='FILE', help='write --csv like this: sample_submission.csv')
  args = parser.parse_args()
  if args.template and not args.csv:
    raise UserError('--template says how to write a table; name that as --csv=FILE.')
  if args.top_k < 1:
    raise UserError(f'--top_k is {args.top_k}; it must be positive.')
  command_line.check_range('--batch_size', args.batch_size, 1, 2**16)
  return args


def _check_table(path: epath.Path, columns: Sequence[str]) -> None:
  """Raises `UserError` unless a table can be written to `path`, which may replace another one."""
  try:
    if is_special(path) or path.is_dir() or not path.parent.is_dir():
      reason = 'is not a file' if path.exists() else 'is in no existing folder'
      raise UserError(f'{path} {reason}; choose another one for --csv.')
    header = ','.join(columns).encode()
    with contextlib.suppress(FileNotFoundError), path.open('rb') as file:
      start = file.read(len(header) + 3).removeprefix(codecs.BOM_UTF8)
      if start and not start.startswith(header):
        raise UserError(f'{path} exists and is not a table of predictions; choose another one.')
  except OSError as error:
    raise UserError(f'{path} cannot be written: {error.strerror or error}.') from None


def _print(prediction: Prediction, as_json: bool) -> None:
  if as_json:
    print(json.dumps({'image': str(prediction.path), 'top': prediction.as_json()}))
    return
  print(printable(str(prediction.path)))
  for _, label, probability in prediction.top:
    print(f'  {probability:7.2%}  {printable(label)}')


def main() -> None:
  args = _parse_args()
  if args.csv is not None and not args.template:
    _check_table(user_path(args.csv), _CSV_COLUMNS)
  paths = find_images([*args.images, *(read_list(args.list) if args.list else [])])
  if not paths:
    raise UserError(
      'There are no images to classify; name an IMAGE or a folder, or pass --list=FILE.'
    )
  vit = load(args.model, args.image_size, labels=args.labels, dtype=args.dtype)
  command_line.print_report(vit.report)
  if not vit.model.num_classes:
    raise UserError(f'{args.model} has no head; name a model with classes.')
  template = None
  if args.template and args.csv:
    class_names = [vit.label(i) for i in range(vit.model.num_classes)]
    template = read_template(args.template, class_names)
    _check_table(user_path(args.csv), template.columns)
    args.top_k = len(class_names) if template.wants_probabilities else 1
  failed, table, for_template = 0, io.StringIO(newline=''), []
  rows = csv.writer(table)
  rows.writerow(template.columns if template else _CSV_COLUMNS)
  batch_size = min(args.batch_size, len(paths))
  with contextlib.closing(predict_files(vit, paths, args.top_k, batch_size)) as predictions:
    for each in command_line.progress(predictions, len(paths), ' images'):
      with tqdm.tqdm.external_write_mode():  # not in the line of the progress bar
        if each.error is not None:
          failed += 1
          print(f'error: {each.error}', file=sys.stderr)
        elif template:
          for_template.append(each)
        elif args.csv:
          rows.writerows((each.path, rank, *row) for rank, row in enumerate(each.top, start=1))
        else:
          _print(each, args.json)
  if template:
    rows.writerows(fill(template, for_template))
  if args.csv:
    path = user_path(args.csv)
    content = table.getvalue().encode('utf-8', 'backslashreplace')
    try:
      write_atomically(path, lambda scratch: scratch.write_bytes(content))
    except OSError as error:
      raise UserError(f'{path} cannot be written: {error.strerror or error}.') from None
  if failed:
    sys.exit(UserError.exit_code)


if __name__ == '__main__':
  command_line.run(main)
