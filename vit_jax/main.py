"""Pretrains or fine-tunes a Vision Transformer: `python -m vit_jax.main --config=configs/X.py`."""

import argparse
import pathlib
import re

import jax

from vit_jax import command_line
from vit_jax.config import default_config, flat_fields, load_config
from vit_jax.errors import UserError
from vit_jax.parallel import cluster, processes
from vit_jax.training.loop import train_and_evaluate


def _default_workdir(config: str) -> str:
  """configs/finetune.py:b16,cifar10 -> runs/finetune-b16-cifar10."""
  if pathlib.Path(config).name == 'config.json':  # of a run: its own workdir
    return str(pathlib.Path(config).parent)
  name = re.sub(r'\.(py|json)', '', config.split('configs/')[-1])
  return 'runs/' + re.sub(r'[^\w.]+', '-', name).strip('-')


def _fields() -> str:
  try:
    fields = flat_fields(default_config())
    return '\n'.join(f'  --config.{name}={value}' for name, value in fields.items())
  except UserError as error:
    return f'  {error}'


def main() -> None:
  parser = command_line.Parser(
      'vit_jax.main',
      description=__doc__,
      epilog='config fields and their defaults (configs/default.py tells what they mean):\n'
      + _fields(),
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
      '--config', required=True, help="configs/X.py, configs/X.py:argument, or a run's config.json"
  )
  parser.add_argument(
      '--workdir', help='where the run lives, and goes on if it is there (default: runs/<config>)'
  )
  parser.add_argument('--coordinator', metavar='HOST:PORT', help='address of process 0')
  parser.add_argument('--num_processes', type=int, help='how many processes make up the run')
  parser.add_argument('--process_id', type=int, help='which of them this one is, from 0')
  parser.add_argument(
      '--start_timeout', type=float, default=60, help='seconds to wait for the other processes'
  )
  args, overrides = parser.parse_known_args()
  config = load_config(args.config, overrides)
  if args.workdir == '':
    raise UserError('--workdir is empty; leave it out, or name a folder.')
  workdir = args.workdir or _default_workdir(args.config)
  place = cluster.find_place(args.coordinator, args.num_processes, args.process_id)
  facts = {f'config.{name}': value for name, value in flat_fields(config).items()}
  facts |= {'--workdir': workdir, 'the version of jax': jax.__version__}
  with processes.joined(place, facts, args.start_timeout):
    train_and_evaluate(config, workdir)


if __name__ == '__main__':
  command_line.run(main)
