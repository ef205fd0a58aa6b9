"""Fine-tunes a model on the 19 tasks of VTAB-1k: `python -m vit_jax.vtab --model=M`.

Each task is a run in WORKDIR/TASK; run the same command again to resume. The tables are in WORKDIR:
vtab.md, vtab.csv, vtab.json. --config.FIELD=VALUE sets any other field of the runs.
"""

import argparse
import contextlib
import json
import re
import sys

import jax

from vit_jax import command_line
from vit_jax.data.vtab_tasks import parse_tasks
from vit_jax.distributed import processes
from vit_jax.text import printable_lines
from vit_jax.training.workdir import resolve_workdir
from vit_jax.transfer import vtab_runs

# flag -> the config field that it sets
_FIELDS = {
  'steps': 'total_steps',
  'batch_size': 'batch_size',
  'learning_rate': 'schedule.learning_rate',
  'seed': 'seed',
}


def _parse_args() -> tuple[argparse.Namespace, list[str]]:
  parser = command_line.Parser('vit_jax.vtab', description=__doc__)
  add = parser.add_argument
  add('--model', required=True, help='a file, folder, workdir or published name')
  add('--tasks', default='', metavar='A,B', help='tasks, or groups of them (default: all)')
  data_help = "folder of TFDS's or prepare_data's data sets (default: TFDS's own)"
  add('--data_dir', default='', metavar='DIR', help=data_help)
  add('--workdir', default='', metavar='DIR', help='folder of the runs (default: runs/vtab-MODEL)')
  add('--validate', action='store_true', help='train on 800 examples, score the other 200')
  add(
    '--image_size',
    type=command_line.parse_image_size,
    metavar='N|HxW',
    help='of images (default: 384)',
  )
  add('--steps', type=int, metavar='N', help='of each run (default: 2,500)')
  add('--batch_size', type=int, metavar='N', help='examples in a batch (default: 512)')
  add('--learning_rate', type=float, metavar='X', help='peak (default: 0.01)')
  add('--seed', type=int, metavar='N', help='of the runs (default: 0)')
  add('--json', action='store_true', help='print one JSON object')
  command_line.add_process_flags(parser)
  return parser.parse_known_args()


def main() -> None:
  args, overrides = _parse_args()
  tasks = parse_tasks(args.tasks)
  values = {field: getattr(args, flag) for flag, field in _FIELDS.items()}
  overrides += [f'--config.{field}={value}' for field, value in values.items() if value is not None]
  configs = {}
  for task in tasks:
    flags = vtab_runs.task_flags(args.data_dir, task, args.validate, args.image_size)
    configs[task] = vtab_runs.task_config(args.model, task, [*flags, *overrides])
  protocol = vtab_runs.task_config(args.model, tasks[0], ())
  name = re.sub(r'[^A-Za-z0-9_.]+', '-', args.model) + ('-validation' if args.validate else '')
  workdir = resolve_workdir(args.workdir or f'runs/vtab-{name}')
  process = command_line.detect_process(args)
  shared = {'--model': args.model, '--tasks': tasks, '--workdir': str(workdir)}
  shared |= {'--image_size': args.image_size, 'the config': overrides}
  sizes = sorted({size for config in configs.values() for size in config.batch_sizes})
  with processes.distributed_run(process, shared, args.start_timeout, batch_sizes=sizes):
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
      report = vtab_runs.run_vtab(args.model, configs, protocol, workdir)
    if jax.process_index() == 0:
      text = report.to_markdown().rstrip()
      print(json.dumps(report.to_json()) if args.json else printable_lines(text))


if __name__ == '__main__':
  command_line.run(main)
