"""Prepares a data set: `python -m vit_jax.prepare_data SOURCE TARGET`.

Writes sharded ArrayRecord, which array_record:TARGET and TFDS read, labels.txt, and a data card:
dataset.json and dataset.html. If it is interrupted, run the same command again to resume.

SOURCE is one of
  an image folder         class/*, or train/class/* beside val/class/* or test/class/*
  a folder with ImageNet  ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and, for the classes of
                          the latter, ILSVRC2012_devkit_t12.tar.gz, LOC_val_solution.csv or
                          imagenet_2012_validation_synset_labels.txt
  ImageNet tars           the first two of these, separated by a comma
  a folder of n*.tar      one tar per synset, as ImageNet-21k is published
  a data source           digits, table:/path/labels.csv, tfds:name, hf:name,
                          webdataset:/path, array_record:/path, …

Examples
  python -m vit_jax.prepare_data /data/ILSVRC2012 /data/imagenet --size=256
  python -m vit_jax.prepare_data my_photos --check
"""

import argparse
import json
import pathlib
import sys

import tqdm

from vit_jax import command_line
from vit_jax.errors import UserError
from vit_jax.prepare import card as cards
from vit_jax.prepare import pipeline
from vit_jax.prepare.listing import Options
from vit_jax.prepare.shard_writer import Encoding
from vit_jax.text import plural, printable


def main() -> None:
  parser = command_line.Parser(
    'vit_jax.prepare_data',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('source', metavar='SOURCE', help='the data set to prepare, see above')
  add('target', metavar='TARGET', nargs='?', help='a new folder')
  size_help = (
    'resize larger images so that the shorter side has N pixels (Lanczos), and store them as JPEG '
    '(default: all files stay as they are)'
  )
  add('--size', type=int, default=0, metavar='N', help=size_help)
  quality_help = 'JPEG quality of resized images, 1 to 100 (default: %(default)s)'
  add('--quality', type=int, default=95, metavar='Q', help=quality_help)
  shards_help = 'shards per split (default: one per 256 MB, at least one per worker)'
  add('--shards', type=int, default=0, metavar='N', help=shards_help)
  workers_help = 'worker processes (default: one per core)'
  add('--workers', type=int, default=0, metavar='N', help=workers_help)
  add('--name', default='', help='name of the data set, in lower case (default: that of SOURCE)')
  add('--splits', default='', metavar='A,B', help='splits to prepare (default: all)')
  classes_help = (
    'what labels are indices into: the classes found in SOURCE, or those of ImageNet or '
    'ImageNet-21k (default: SOURCE decides)'
  )
  add('--classes', default='', choices='found imagenet imagenet21k'.split(), help=classes_help)
  truth_help = "classes of ImageNet's validation images (default: a file beside the tar)"
  add('--ground_truth', default='', metavar='FILE', help=truth_help)
  add('--partial', action='store_true', help='accept incomplete ImageNet tars')
  bad_help = 'list unreadable images and stop, or leave them out (default: %(default)s)'
  add('--on_bad_example', default='error', choices=('error', 'skip'), help=bad_help)
  check_help = 'print the data card, write nothing; exit code 2 if an image is unreadable'
  add('--check', action='store_true', help=check_help)
  add('--json', action='store_true', help='print the data card as JSON')
  args = parser.parse_args()
  if not args.check and args.target is None:
    parser.error('TARGET is missing (or use --check)')
  splits = tuple(filter(None, args.splits.split(',')))
  options = Options(splits, args.classes, args.ground_truth, args.partial)
  with tqdm.tqdm(desc='listing', unit=' images', disable=None, leave=False) as bar:
    if args.check:
      card = pipeline.check(args.source, options, args.workers, bar)
    else:
      card = pipeline.prepare(
        args.source,
        pathlib.Path(args.target).expanduser(),
        options,
        Encoding(args.size, args.quality),
        name=args.name,
        shards=args.shards,
        workers=args.workers,
        skip_bad=args.on_bad_example == 'skip',
        bar=bar,
      )
  if card is None:
    print(f'{printable(args.target)} is already prepared; there is nothing to do.', file=sys.stderr)
    return
  print(json.dumps(cards.to_json(card)) if args.json else cards.summary(card))
  if args.check and card.unreadable:
    raise UserError(f'{plural(card.unreadable, "image")} cannot be read, see the data card.')


if __name__ == '__main__':
  command_line.run(main)
