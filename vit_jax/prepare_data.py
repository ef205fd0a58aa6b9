"""Prepares a data set: `python -m vit_jax.prepare_data SOURCE TARGET`.

Writes sharded ArrayRecord, which array_record:TARGET and TFDS read, labels.txt, and a data card:
dataset.json and dataset.html. If it is interrupted, run the same command again to resume.

On many machines, each runs some of the parts (--part=1/64 to --part=64/64), which write to the same
TARGET at any time, and then one of them runs the same command with --merge; or an Apache Beam
runner distributes the work (--runner). All ways give the same bytes.

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
  python -m vit_jax.prepare_data /nfs/photos /nfs/prepared --part=3/64
"""

import argparse
import json
import pathlib
import shlex
import sys

import tqdm

from vit_jax import command_line
from vit_jax.errors import UserError
from vit_jax.files import is_remote
from vit_jax.prepare import card as cards
from vit_jax.prepare import pipeline
from vit_jax.prepare.listing import Options
from vit_jax.prepare.shard_plan import Part, Preparation, parse_part
from vit_jax.prepare.shard_writer import Encoding
from vit_jax.text import plural, printable


def _part(text: str) -> Part:
  try:
    return parse_part(text)
  except ValueError as error:
    raise argparse.ArgumentTypeError(str(error)) from None


def _parse_arguments() -> tuple[argparse.Namespace, str]:
  """Returns the arguments, and the command without those that distribute the work."""
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
  shards_help = 'shards per split (default: one per 256 MB; of small data, one per 1,024 images)'
  add('--shards', type=int, default=0, metavar='N', help=shards_help)
  workers_help = 'worker processes of this machine (default: one per core)'
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
  add('--json', action='store_true', help='print the data card as JSON')
  ways = parser.add_mutually_exclusive_group()
  check_help = 'print the data card, write nothing; exit code 2 if an image is unreadable'
  ways.add_argument('--check', action='store_true', help=check_help)
  part_help = 'write the shards of part I of N only, such as 3/64'
  ways.add_argument('--part', type=_part, metavar='I/N', help=part_help)
  ways.add_argument('--merge', action='store_true', help='finish what all parts have written')
  runner_help = 'run on Apache Beam: DirectRunner, DataflowRunner, FlinkRunner, …'
  ways.add_argument('--runner', metavar='RUNNER', help=runner_help)
  add('--beam_options', default='', metavar='FLAGS', help="its flags: '--project=… --region=…'")
  args = parser.parse_args()
  if not args.check and args.target is None:
    parser.error('TARGET is missing (or use --check)')
  if args.target and is_remote(args.target):
    parser.error(f'TARGET is {args.target}; it must be a local folder, or one that is mounted')
  if args.beam_options and not args.runner:
    parser.error('--beam_options are those of a --runner, which is missing')
  if args.runner is not None and args.workers:
    parser.error("--workers are those of this machine; Beam's workers are chosen by --beam_options")
  if args.part and args.json:
    parser.error('--json prints the data card, which --merge makes and --part does not')
  same = [argument for argument in sys.argv[1:] if argument not in ('--merge', '--json')]
  return args, shlex.join([*parser.prog.split(), *same])


def main() -> None:
  args, command = _parse_arguments()
  options = Options(
    tuple(filter(None, args.splits.split(','))), args.classes, args.ground_truth, args.partial
  )
  with tqdm.tqdm(desc='listing', unit=' images', disable=None, leave=False) as bar:
    if args.check:
      result = pipeline.check(args.source, options, args.workers, bar)
    else:
      preparation = Preparation(
        args.source,
        pathlib.Path(args.target).expanduser(),
        options,
        Encoding(args.size, args.quality),
        args.name,
        args.shards,
        args.on_bad_example == 'skip',
      )
      if args.part:
        result = pipeline.prepare_part(preparation, args.part, args.workers, bar)
      elif args.merge:
        result = pipeline.merge(preparation, command)
      elif args.runner is not None:
        result = pipeline.prepare_on_beam(preparation, args.runner, args.beam_options)
      else:
        result = pipeline.prepare(preparation, args.workers, bar)
  if result is None:
    print(f'{printable(args.target)} is already prepared; there is nothing to do.', file=sys.stderr)
  elif isinstance(result, pipeline.PartSummary):
    print(
      f'part {args.part} is finished: {plural(result.shards, "shard")}, '
      f'{plural(result.images, "image")}; once all parts are, run the command with --merge.'
    )
  else:
    print(json.dumps(cards.to_json(result)) if args.json else cards.summary(result))
    if args.check and result.unreadable:
      raise UserError(f'{plural(result.unreadable, "image")} cannot be read, see the data card.')


if __name__ == '__main__':
  command_line.run(main)
