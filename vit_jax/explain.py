"""Shows what a model sees: `python -m vit_jax.explain --model=M IMAGE… --out=report.html`."""

import argparse
import sys

from vit_jax import command_line
from vit_jax.analysis.attention_weights import token_attention_model, token_grid
from vit_jax.analysis.pages.compact_attention import choose_factor
from vit_jax.analysis.pages.explain_page import explain, render, resolve_classes, resolve_layers
from vit_jax.errors import UserError
from vit_jax.evaluation.reports.predictions import find_images
from vit_jax.load_classifier import load
from vit_jax.text import plural

MAX_IMAGES = 100
_LAYERS = 'blocks whose attention is shown, from 0, or from -1 backwards: 0,5,-1 (default: all)'
_MAX_MB = 'of attention in the file; what has more is shown for squares of patches'


def _parse_args() -> argparse.Namespace:
  parser = command_line.Parser('vit_jax.explain', description=__doc__)
  add = parser.add_argument
  add('images', nargs='+', metavar='IMAGE', help='files, or folders of them')
  add('--model', required=True, help='a file, folder, workdir or published name')
  add('--out', default='report.html', metavar='X.html', help='the page to write')
  add(
    '--image_size', type=command_line.parse_image_size, metavar='N|HxW', help="if not the model's"
  )
  add('--labels', metavar='FILE', help='text file of class names, one a line')
  add('--top_k', type=int, default=5, help='classes to list for each image')
  add('--classes', action='append', default=[], metavar='A,B', help='labels or numbers to explain')
  add('--layers', metavar='I,J', help=_LAYERS)
  add('--max_mb', type=int, default=32, metavar='N', help=_MAX_MB)
  args = parser.parse_args()
  command_line.check_range('--top_k', args.top_k, 1, 1000)
  command_line.check_range('--max_mb', args.max_mb, 1, 1000)
  command_line.check_page(args.out)
  return args


def main() -> None:
  args = _parse_args()
  paths = find_images(args.images)
  if len(paths) > MAX_IMAGES:
    raise UserError(f'There are {len(paths):,} images; a page shows at most {MAX_IMAGES}.')
  vit = load(args.model, args.image_size, labels=args.labels)
  command_line.print_report(vit.report)
  model, (prefix, grid) = token_attention_model(vit.model), token_grid(vit)
  layers = resolve_layers(args.layers, model.depth)
  classes = resolve_classes(vit, args.classes)
  max_bytes = args.max_mb * 1_000_000 // len(paths)
  factor = choose_factor(len(layers), model.num_heads, prefix, grid, max_bytes)
  explained, failed = [], 0
  for path in command_line.progress(paths, len(paths), ' images'):
    try:
      pixels = vit.preprocess(path)
    except UserError as error:
      failed += 1
      print(f'error: {error}', file=sys.stderr)
    else:
      explained.append(explain(vit, path.name, pixels, args.top_k, classes, layers, factor))
  if explained:
    command_line.write_page(args.out, render(vit, args.model, layers, explained))
    print(f'{args.out}: {plural(len(explained), "image")}')
  if failed:
    sys.exit(UserError.exit_code)


if __name__ == '__main__':
  command_line.run(main)
