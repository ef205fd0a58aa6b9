"""Prepares a data set: `python -m vit_jax.prepare_data SOURCE TARGET`.

Writes sharded ArrayRecord that array_record:TARGET and TFDS read, labels.txt, and a data card,
dataset.json and dataset.html. Stopped, it goes on where it was when the command is run again.

SOURCE is one of
  a folder of images      class/*, or train/class/* with val/ or test/ beside
  a folder with ImageNet  ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and, for the classes of
                          it, ILSVRC2012_devkit_t12.tar.gz, LOC_val_solution.csv or
                          imagenet_2012_validation_synset_labels.txt; or the tars, with a comma
  a folder of n….tar      one tar a synset, as ImageNet-21k comes
  a data source           digits, tfds:name, hf:name, webdataset:/path, array_record:/path, …

Examples
  python -m vit_jax.prepare_data /data/ILSVRC2012 /data/imagenet --size=256
  python -m vit_jax.prepare_data my_photos --check
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable

from vit_jax import command_line
from vit_jax.errors import UserError
from vit_jax.prepare import card as cards
from vit_jax.prepare import pipeline
from vit_jax.prepare.listing import Options
from vit_jax.prepare.shard_writer import Encoding


def _add_flags(add: Callable[..., None]) -> None:
  add('source', metavar='SOURCE', help='what to prepare, see above')
  add('target', metavar='TARGET', nargs='?', help='a new folder')
  add(
    '--size',
    type=int,
    default=0,
    metavar='N',
    help='make the shorter side of larger images N '
    'pixels (Lanczos), as JPEG; without it all bytes stay as they are',
  )
  add('--quality', type=int, default=95, metavar='Q', help='of these JPEGs, 1 to 100 (95)')
  add('--shards', type=int, default=0, metavar='N', help='files a split (one a worker, or 256 MB)')
  add('--workers', type=int, default=0, metavar='N', help='processes (one a core)')
  add('--name', default='', help='of the data set, in lower case (that of SOURCE)')
  add('--splits', default='', metavar='A,B', help='the splits to take (all)')
  add(
    '--classes',
    default='',
    choices=('found', 'imagenet', 'imagenet21k'),
    help='what labels count in: the classes that are there, or all of a list (by SOURCE)',
  )
  add('--ground_truth', default='', metavar='FILE', help="of ImageNet's validation images")
  add('--partial', action='store_true', help='take ImageNet tars that are incomplete')
  add(
    '--on_bad_example',
    default='error',
    choices=('error', 'skip'),
    help='name images that cannot be read and stop, or leave them out (error)',
  )
  add('--check', action='store_true', help='only look, write nothing; 2 if an image is unreadable')
  add('--json', action='store_true', help='print the card as JSON')


def main() -> None:
  raw = argparse.RawDescriptionHelpFormatter
  parser = command_line.Parser('vit_jax.prepare_data', description=__doc__, formatter_class=raw)
  _add_flags(parser.add_argument)
  args = parser.parse_args()
  if not args.check and args.target is None:
    parser.error('TARGET is missing (or --check)')
  splits = tuple(filter(None, args.splits.split(',')))
  options = Options(splits, args.classes, args.ground_truth, args.partial)
  with pipeline.progress_bar() as progress:
    if args.check:
      card = pipeline.check(args.source, options, args.workers, progress)
    else:
      target = pathlib.Path(args.target).expanduser()
      card = pipeline.prepare(
        args.source,
        target,
        options,
        Encoding(args.size, args.quality),
        name=args.name,
        shards=args.shards,
        workers=args.workers,
        skip_bad=args.on_bad_example == 'skip',
        progress=progress,
      )
  if card is None:
    print(f'{args.target} is prepared already; there is nothing to do.', file=sys.stderr)
  else:
    print(json.dumps(cards.to_json(card)) if args.json else cards.summary(card))
  if args.check and card.unreadable:
    raise UserError(f'{cards.counted(card.unreadable, "image")} cannot be read, see the card.')


if __name__ == '__main__':
  command_line.run(main)
