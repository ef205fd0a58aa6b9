"""Converts a model to another layout: `python -m vit_jax.convert SOURCE TARGET`.

The name of TARGET determines the layout: X.npz (released JAX), X.safetensors (timm), X.stablehlo
(a portable program with its weights), X/ (a folder of Hugging Face Transformers; with
--layout=timm, of timm).
"""

import argparse
import sys

from vit_jax import command_line
from vit_jax.classifier import LAYOUTS
from vit_jax.config import PositionResize, choices
from vit_jax.files import user_path
from vit_jax.load_classifier import load
from vit_jax.models.encoder_block import GELUS
from vit_jax.text import printable
from vit_jax.weights import save


def main() -> None:
  parser = command_line.Parser(
    'vit_jax.convert', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add, image_size = parser.add_argument, command_line.parse_image_size
  add('source', metavar='SOURCE', help='a published name (augreg/B_16), a file, folder or workdir')
  add('target', metavar='TARGET', help='X.npz, X.safetensors, X.stablehlo or X/')
  add('--layout', choices=LAYOUTS, help='if not that of TARGET; model: a vit_jax folder')
  add('--image_size', type=image_size, metavar='N|HxW', help='resize position embeddings to it')
  add('--num_classes', type=int, metavar='N', help='zero-initialized new head; 0: no head')
  add('--keep_pre_logits', action='store_true', help='keep that layer under a new head')
  add('--labels', metavar='FILE', help='text file of class names, one a line')
  add(
    '--position_resize',
    default='auto',
    choices=choices(PositionResize),
    help='how position embeddings are resized; auto: as their family does; corners: as released',
  )
  add('--num_heads', type=int, help='for PyTorch files that do not store it')
  add('--mean', type=float, nargs='+', help='of pixels in [0, 1], if not stored; one or three')
  add('--std', type=float, nargs='+', help='as --mean')
  add('--gelu', choices=tuple(GELUS), help='for PyTorch files that do not store it')
  add('--overwrite', action='store_true', help='replace TARGET if it exists')
  options = vars(parser.parse_args())
  target, layout, overwrite = map(options.pop, ('target', 'layout', 'overwrite'))
  layout = layout or save.layout_of(target)
  save.check_apart(options['source'], target)
  if options['labels']:
    save.check_apart(options['labels'], target, 'the file of --labels')
  save.check_target(user_path(target), layout, overwrite)
  vit = load(**options)
  assert vit.report is not None
  save.check_apart(vit.report.source, target)  # the file that a name or a folder stands for
  print(vit.report)
  vit.save(target, layout, overwrite=overwrite)
  print(f'{printable(target)}: {vit!r}')
  if lost := save.unexpressed(vit.metadata, user_path(target), layout):
    text = f'note: {printable(target)} says to other libraries all but {lost}; vit_jax reads all'
    print(text, file=sys.stderr)


if __name__ == '__main__':
  command_line.run(main)
