"""Converts a model to another layout: `python -m vit_jax.convert SOURCE TARGET`.

The name of TARGET determines the layout: X.npz (released JAX), X.safetensors (timm), X.stablehlo
(a portable program with its weights), X/ (a folder of Hugging Face Transformers).
"""

import argparse
import dataclasses

from vit_jax import command_line
from vit_jax.classifier import load
from vit_jax.weights.metadata import read_labels
from vit_jax.weights.save import layout_of


def main() -> None:
  parser = command_line.Parser(
    'vit_jax.convert', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    'source',
    metavar='SOURCE',
    help='a published name (augreg/B_16), .npz, .safetensors, state dict, folder or workdir',
  )
  parser.add_argument('target', metavar='TARGET', help='X.npz, X.safetensors, X.stablehlo or X/')
  parser.add_argument(
    '--layout',
    choices=('npz', 'timm', 'stablehlo', 'huggingface', 'model'),
    help='if not that of TARGET; model: a vit_jax folder, for any model',
  )
  parser.add_argument(
    '--image_size',
    type=command_line.parse_image_size,
    metavar='N|HxW',
    help='resize position embeddings to it',
  )
  parser.add_argument(
    '--num_classes',
    type=int,
    metavar='N',
    help='zero-initialized new head; 0: no head, for features',
  )
  parser.add_argument(
    '--keep_pre_logits', action='store_true', help='keep that layer under a new head'
  )
  parser.add_argument('--labels', metavar='FILE', help='text file of class names, one a line')
  parser.add_argument(
    '--position_resize', default='corners', help='corners (as released) or half_pixel'
  )
  parser.add_argument('--num_heads', type=int, help='for PyTorch files that do not store it')
  parser.add_argument('--gelu', help='tanh or exact, for PyTorch files that do not store it')
  args = parser.parse_args()
  layout = args.layout or layout_of(args.target)
  vit = load(
    args.source,
    args.image_size,
    args.num_classes,
    keep_pre_logits=args.keep_pre_logits,
    position_resize=args.position_resize,
    num_heads=args.num_heads,
    gelu=args.gelu,
  )
  if args.labels is not None:
    labels = read_labels(args.labels, vit.model.num_classes)
    vit = dataclasses.replace(vit, labels=labels)
  print(vit.report)
  vit.save(args.target, layout)
  print(f'{args.target}: {vit!r}')


if __name__ == '__main__':
  command_line.run(main)
