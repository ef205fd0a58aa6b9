"""Tries all values of a grid and chooses on held-out training data.

  python -m vit_jax.sweep --config=configs/quickstart.py \\
    --grid config.schedule.learning_rate=0.001,0.003,0.01,0.03

Each point of the grid is trained on the training split without its last 2% (--held_out) and
compared on these. The best values are then used for a run on the whole split, whose model is scored
on the test split. Rerun the command to continue a sweep, or to add values to the grid: finished
runs are not repeated. Config fields are set as for vit_jax.main: --config.field=value.
"""

import argparse

from vit_jax import command_line
from vit_jax.sweeps import launch, sweep_plan


def main() -> None:
  parser = command_line.Parser(
    'vit_jax.sweep', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--config', required=True, help='as for vit_jax.main')
  grid_help = 'a field and its values; several make a grid of all combinations'
  add('--grid', action='append', default=[], metavar='config.FIELD=A,B,…', help=grid_help)
  paper_help = 'the grid and the held-out part of the paper, for configs/finetune.py'
  add('--paper_grid', action='store_true', help=paper_help)
  add(
    '--workdir', help='folder of the sweep, continued if it exists (default: runs/sweep-<config>)'
  )
  held_out_help = 'share of the training split to choose on (default: 2%%, or as in the paper)'
  add('--held_out', metavar='P%', help=held_out_help)
  launcher_help = 'here, one run after another, or as jobs of SLURM (default: local)'
  add('--launcher', choices=('local', 'slurm'), default='local', help=launcher_help)
  slurm_help = 'a parameter of submitit: timeout_min=600, gpus_per_node=8, slurm_partition=…'
  add('--slurm', action='append', default=[], metavar='NAME=VALUE', help=slurm_help)
  add('--json', action='store_true', help='print the results as JSON')
  instead = parser.add_mutually_exclusive_group()
  print_help = 'only print the commands that remain, one a line, for any scheduler'
  instead.add_argument('--print_commands', action='store_true', help=print_help)
  instead.add_argument('--collect', action='store_true', help='run nothing, gather the results')
  args, overrides = parser.parse_known_args()
  workdir = args.workdir
  if workdir is None:
    workdir = command_line.default_workdir(args.config, prefix='sweep-')
  sweep = sweep_plan.plan_sweep(
    args.config, overrides, args.grid, args.paper_grid, args.held_out, workdir
  )
  if args.print_commands:
    launch.print_commands(sweep)
  elif args.collect:
    launch.collect(sweep, args.json)
  else:
    launch.run_sweep(sweep, launch.make_launcher(sweep, args.launcher, args.slurm), args.json)


if __name__ == '__main__':
  command_line.run(main)
