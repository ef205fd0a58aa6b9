"""Pretrains or fine-tunes a Vision Transformer: `python -m vit_jax.main --config=configs/X.py`."""

import time

from vit_jax import signals

_START = time.monotonic()
if __name__ == '__main__':
  signals.exit_on_interrupt()  # the imports below take seconds
  signals.accept_profile_requests()

import argparse

import jax

from vit_jax import command_line
from vit_jax.config import config_help, flatten, load_config, section_names
from vit_jax.distributed import processes
from vit_jax.errors import UserError
from vit_jax.training import process_log
from vit_jax.training.loop import train_and_evaluate


class _Help(argparse.Action):
  """`--help` prints flags and all config fields, `--help=SECTION` the fields of one section."""

  def __call__(self, parser, namespace, values, option_string=None) -> None:
    del namespace, option_string
    if values is None:
      parser.print_help()
      print(f'\n{config_help()}')
    else:
      print(config_help(str(values)))
    parser.exit()


def main(start: float | None = None) -> None:
  parser = command_line.Parser(
    'vit_jax.main',
    description=__doc__,
    add_help=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    '-h',
    '--help',
    action=_Help,
    nargs='?',
    metavar='SECTION',
    help=f'flags and config fields, or those of a section: {", ".join(section_names())}',
  )
  parser.add_argument(
    '--config',
    required=True,
    help="configs/X.py[:argument], or a run's config.json; --config.FIELD=VALUE sets a field",
  )
  parser.add_argument(
    '--workdir', help='folder of the run, resumed if it exists (default: runs/<config>)'
  )
  command_line.add_process_flags(parser)
  args, overrides = parser.parse_known_args()
  config = load_config(args.config, overrides)
  if args.workdir == '':
    raise UserError('--workdir is empty; leave it out, or name a folder.')
  workdir = args.workdir or command_line.default_workdir(args.config)
  process, timeout = command_line.detect_process(args), args.start_timeout
  settings = {f'config.{name}': value for name, value in flatten(config).items()}
  settings |= {'--workdir': workdir, 'the version of jax': jax.__version__}
  with (
    process_log.output_logged(workdir, process),
    processes.distributed_run(process, settings, timeout, config.grace_period, config.batch_sizes),
  ):
    try:
      train_and_evaluate(config, workdir, start)
    except KeyboardInterrupt:
      raise KeyboardInterrupt(
        'rerun the same command to resume from the last checkpoint, if there is one'
      ) from None


if __name__ == '__main__':
  command_line.run(lambda: main(_START))
