"""Compares models of equal compute, trained on parts of a data set.

  python -m vit_jax.experiments.scaling --config.data.train.source=folder:data/cifar10 --jobs=2

The miniature of the paper's Figures 3 and 4 (arXiv 2010.11929): a ViT, a hybrid and a ResNet, on 1%
to 100% of the training split, three seeds. Each run is one of vit_jax.main in WORKDIR/RUN; rerun
the command to continue, or to add models, fractions and seeds: finished runs are not repeated.
WORKDIR gets scaling.md, scaling.csv, scaling.json and scaling.png, renewed after each run. Config
fields are set as for vit_jax.main: --config.field=value.

Transfer: pretrain on some of the classes, then compare fine-tuning on others with training from
scratch:

  python -m vit_jax.experiments.scaling --models=vit,resnet --fractions=100% --seeds=1 \\
    --config.data.train.source='folder:data/cifar10?pattern=^(bird|cat|deer|dog|frog|horse)/' \\
    --workdir=runs/pretrained
  python -m vit_jax.experiments.scaling --models=vit,resnet --workdir=runs/transfer \\
    --config.data.train.source='folder:data/cifar10?pattern=^(airplane|automobile|ship|truck)/' \\
    --init_from='runs/pretrained/{model},100%,seed=0/model'
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence

from vit_jax import command_line
from vit_jax.errors import RunError
from vit_jax.experiments import scaling_grid, scaling_report
from vit_jax.experiments.scaling_grid import Cell, Experiment, Facts
from vit_jax.experiments.scaling_report import Row
from vit_jax.sweeps.parallel_runs import check_no_accelerator, run_in_parallel, share_cores
from vit_jax.sweeps.point_runs import Outcome, Run, read_outcome
from vit_jax.text import format_metric, plural


def _log(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
  """'1:05 h', '12:03 min'."""
  minutes, seconds = divmod(round(seconds), 60)
  if minutes < 60:
    return f'{minutes}:{seconds:02d} min'
  return f'{minutes // 60}:{minutes % 60:02d} h'


def _names(text: str) -> list[str]:
  return [name.strip() for name in text.split(',') if name.strip()]


def _parser() -> command_line.Parser:
  parser = command_line.Parser(
    'vit_jax.experiments.scaling',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  config_help = 'a config file that takes MODEL,FRACTION[,strong] (default: %(default)s)'
  add('--config', default='configs/scaling.py', metavar='X.py', help=config_help)
  models_help = 'of the config file (default: %(default)s)'
  add('--models', default='vit,hybrid,resnet', metavar='A,B', help=models_help)
  fractions_help = 'of the training split (default: %(default)s)'
  add('--fractions', default='1%,3%,10%,30%,100%', help=fractions_help)
  add('--seeds', type=int, default=3, metavar='N', help='runs of each kind (default: 3)')
  strong_help = 'add N runs of each kind with strong augmentation (default: 1)'
  add('--strong', type=int, nargs='?', const=1, default=0, metavar='N', help=strong_help)
  init_help = "fine-tune these weights, too, --seeds times; '{model}' stands for the model's name"
  add('--init_from', default='', metavar='WEIGHTS', help=init_help)
  jobs_help = 'runs at a time, each on its share of the CPU cores (default: 1)'
  add('--jobs', type=int, default=1, metavar='N', help=jobs_help)
  add('--workdir', default='runs/scaling', help='folder of all runs (default: %(default)s)')
  add('--json', action='store_true', help='print the results as JSON')
  instead = parser.add_mutually_exclusive_group()
  print_help = 'check the data and the weights, and print the commands that remain, one a line'
  instead.add_argument('--print_commands', action='store_true', help=print_help)
  instead.add_argument('--collect', action='store_true', help='run nothing, gather the results')
  return parser


def _print_commands(experiment: Experiment) -> None:
  for cell in experiment.cells:
    run = experiment.run(cell)
    if not read_outcome(run).is_final:
      print(shlex.join(run.command))


def _report(experiment: Experiment, facts: dict[Cell, Facts]) -> tuple[list[Row], str]:
  rows = scaling_report.read_rows(experiment, facts)
  return rows, scaling_report.write_report(experiment, rows)


def _run_all(experiment: Experiment, facts: dict[Cell, Facts], jobs: int) -> None:
  """Runs what remains, and renews the report after each run."""
  runs = [experiment.run(cell) for cell in experiment.cells]
  remaining = [run for run in runs if not read_outcome(run).is_final]
  if done := len(runs) - len(remaining):
    _log(f'{plural(done, "run")} of {len(runs)} finished before')
  start, ended = time.monotonic(), []

  def on_end(run: Run, outcome: Outcome) -> None:
    ended.append(run)
    accuracy = outcome.metrics.get('accuracy')
    what = outcome.status if accuracy is None else format_metric('accuracy', accuracy)
    seconds = time.monotonic() - start
    left = seconds / len(ended) * (len(remaining) - len(ended))
    _log(
      f'{len(ended)}/{len(remaining)} {run.name}: {what} {outcome.message}'.rstrip()
      + f'; {_clock(seconds)} so far, about {_clock(left)} left'
    )
    _report(experiment, facts)

  if remaining:
    _log(f'{plural(len(remaining), "run")}, {jobs} at a time; see {experiment.workdir}/RUN/log.txt')
    try:
      run_in_parallel(remaining, jobs, on_end)
    except KeyboardInterrupt:
      raise KeyboardInterrupt('rerun the same command to continue the experiment') from None


def _check_all_finished(rows: Sequence[Row]) -> None:
  failed = [row for row in rows if row['status'] in ('failed', 'unfinished')]
  if failed:
    message = failed[0]['message'].rstrip('.') or failed[0]['status']
    raise RunError(
      f'{plural(len(failed), "run")} of {len(rows)} failed, first {failed[0]["run"]} ({message}); '
      'rerun the command to try again.'
    )


def main() -> None:
  args, overrides = _parser().parse_known_args()
  command_line.check_range('--seeds', args.seeds, 1, 1000)
  command_line.check_range('--strong', args.strong, 0, 1000)
  models, fractions = _names(args.models), _names(args.fractions)
  seeds = {'': args.seeds, 'strong': args.strong, 'finetuned': args.seeds if args.init_from else 0}
  experiment = scaling_grid.plan(
    args.config, overrides, models, fractions, seeds, args.init_from, args.workdir
  )
  share_cores(args.jobs)
  if args.jobs > 1 and not (args.collect or args.print_commands):
    check_no_accelerator()
  facts = scaling_grid.check(experiment)
  if args.print_commands:
    _print_commands(experiment)
    return
  if not args.collect:
    _run_all(experiment, facts, args.jobs)
  rows, note = _report(experiment, facts)
  if note:
    _log(note)
  text = (
    json.dumps(scaling_report.as_json(rows), indent=2)
    if args.json
    else scaling_report.as_markdown(rows).rstrip()
  )
  print(text, flush=True)
  if not args.collect:
    _check_all_finished(rows)


if __name__ == '__main__':
  command_line.run(main)
