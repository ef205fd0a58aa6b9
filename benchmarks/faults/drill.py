"""Gives real training runs faults at random moments, and checks how they end and resume.

  python benchmarks/faults/drill.py --count=100 --processes=2
  python benchmarks/faults/drill.py --count=50 --processes=4 --faults=KILL --during_save
  python benchmarks/faults/drill.py --count=50 --change_topology

Each run is a tiny one on scikit-learn's digits (dropout, augmentation, a moving average of the
parameters, a checkpoint every few steps). After a random time one random process gets a fault
(benchmarks/faults/faults.py). The run must end or continue as docs/pods.md says, and the same
command must resume it. When it reaches its last step, its parameters and its metrics.jsonl must be
those of an uninterrupted run, bit for bit. With --change_topology each start uses other numbers of
processes and devices and another mesh, and the losses must agree within 1e-5. Runs follow each
other until the number of faults is reached.

Writes one row per fault to --out (by default benchmarks/faults/results/drill_<mode>_<date>.csv) and
one row per run beside it (…_runs.csv). Rerun the same command to resume the drill.
"""

import argparse
import csv
import datetime
import pathlib
import random
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from benchmarks.faults.faults import FAULTS, Fault
from benchmarks.faults.runs import (
  CONFIG,
  CONFIG_OF_PROCESSES,
  CONFIG_OF_TOPOLOGIES,
  START_TIMEOUT,
  TOPOLOGIES,
  Group,
  compare,
)

# Seconds, more than a compilation takes, which the uninterrupted run has left in the cache.
HANG_TIMEOUT, HANG_TIMEOUT_OF_PROCESSES = 20, 40


def give_fault(
  group: Group, fault: Fault, victim: int, rng: random.Random, start_seconds: float, args
) -> dict | None:
  """Gives the fault at a random moment, and checks the end; None if the run finished first."""
  if not fault.from_start:
    if args.during_save or fault.in_training or rng.random() > 1 / 6:  # otherwise as it starts
      group.wait_for('the train step was compiled' if fault.in_training else 'compiling the first')
    group.wait(rng.uniform(0, start_seconds))
    if args.during_save:
      checkpoints = group.workdir / 'checkpoints'
      while not group.has_exited() and not any(checkpoints.glob('*.orbax-checkpoint-tmp*')):
        time.sleep(0.001)
      time.sleep(rng.uniform(0, 0.03))
    if group.has_exited():
      return None
  row = {
    'moment_s': time.monotonic() - group.start_time,
    'phase': group.phase(),
    'step': group.step(),
  }
  fault.inject(group, victim)
  limit = fault.seconds + (START_TIMEOUT if row['phase'] == 'connecting' else 0)
  seconds = group.wait(2 * limit)
  is_hanging = not group.has_exited()
  group.kill()
  codes = group.codes()
  if row['phase'] in ('compiling', 'training', 'saving') and 'done:' in group.output():
    row['phase'] = 'ending'
  ok = not is_hanging and seconds < limit and fault.is_documented(codes, victim, row['phase'])
  return {
    **row,
    'fault': fault.name,
    'process': victim,
    'seconds_to_end': seconds,
    'exit_codes': ' '.join(map(str, codes)),
    'ok': ok,
  }


def append(path: pathlib.Path, row: dict) -> None:
  new = not path.exists()
  with path.open('a', newline='') as file:
    writer = csv.DictWriter(file, row.keys(), lineterminator='\n')
    if new:
      writer.writeheader()
    writer.writerow({k: round(v, 9) if isinstance(v, float) else v for k, v in row.items()})


def read(path: pathlib.Path) -> list[dict[str, str]]:
  return list(csv.DictReader(path.open())) if path.exists() else []


def uninterrupted(topology, config, workdir: pathlib.Path) -> float:
  """Runs the reference unless it exists; returns the seconds from a start to compiling its step."""
  group = Group(topology, config, workdir / 'reference')
  try:
    group.wait_for('compiling the first step')
    seconds = time.monotonic() - group.start_time
    group.wait(1200)
  finally:
    group.kill()
  if group.codes() != [0] * len(group.processes):
    sys.exit(f'The uninterrupted run failed: {group.codes()}, see {group.logs[0]}')
  return seconds


def summary(faults: list[dict[str, str]], runs: list[dict[str, str]]) -> str:
  """A table of the faults, and how the finished runs compare with the uninterrupted one."""
  lines = [
    '| fault | count | ended as documented | slowest end | exit codes |',
    '|---|---|---|---|---|',
  ]
  for name in FAULTS:
    rows = [row for row in faults if row['fault'] == name]
    if not rows:
      continue
    slowest = max(float(row['seconds_to_end']) for row in rows)
    codes = ', '.join(sorted({row['exit_codes'] for row in rows}))
    num_ok = sum(row['ok'] == 'True' for row in rows)
    lines.append(f'| {name} | {len(rows)} | {num_ok} | {slowest:.1f} s | {codes} |')
  worst = max((float(row['largest_loss_difference']) for row in runs), default=0)
  return '\n'.join(lines) + (
    f'\n{len(runs)} runs finished, '
    f'{sum(r["ok"] == "True" for r in runs)} equal to the uninterrupted one, '
    f'{sum(r["parameters_identical"] == "True" for r in runs)} in every bit of the parameters, '
    f'largest difference of a loss {worst:.1e}'
  )


def parse_args() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--count', type=int, default=200, help='faults in all')
  add('--processes', type=int, default=1, choices=(1, 2, 4))
  add('--faults', default=','.join(FAULTS), help='comma-separated (default: %(default)s)')
  add('--during_save', action='store_true', help='only during saves')
  add('--change_topology', action='store_true')
  add('--seed', type=int, default=0)
  add('--out', type=pathlib.Path)
  add('--workdir', type=pathlib.Path, help='default: a temporary folder')
  args = parser.parse_args()
  args.faults = args.faults.split(',')
  if unknown := set(args.faults) - FAULTS.keys():
    parser.error(f'--faults has {", ".join(unknown)}; known: {", ".join(FAULTS)}')
  return args


def main() -> None:
  args = parse_args()
  mode = 'topologies' if args.change_topology else f'{args.processes}'
  mode += '' if len(args.faults) == len(FAULTS) else f'_{"_".join(args.faults)}'
  mode += ('_saves' if args.during_save else '') + f'_{args.seed}'
  results = pathlib.Path(__file__).parent / 'results'
  out = args.out or results / f'drill_{mode}_{datetime.date.today()}.csv'
  out.parent.mkdir(parents=True, exist_ok=True)
  runs_out = out.with_name(f'{out.stem}_runs.csv')
  workdir = args.workdir or pathlib.Path(tempfile.gettempdir()) / f'drill_{mode}'
  config = CONFIG if args.processes == 1 else CONFIG_OF_PROCESSES
  topology = (args.processes, 1, (args.processes, 1, 1))
  if args.change_topology:
    config, topology = CONFIG_OF_TOPOLOGIES, TOPOLOGIES[0]
  start_seconds = uninterrupted(topology, config, workdir)
  count = len(read(out))
  while True:
    num_runs = len(read(runs_out))
    run = workdir / f'run_{num_runs}'
    rng = random.Random(f'{args.seed} {count} {num_runs}')
    if args.change_topology:
      topology = rng.choice(TOPOLOGIES)
    victim, fault = rng.randrange(topology[0]), FAULTS[rng.choice(args.faults)]
    has_checkpoint = any((run / 'checkpoints').glob('*/manifest.json'))
    if fault.from_start and topology[0] == 1 and not has_checkpoint:
      fault = FAULTS['KILL']  # nothing to differ from
    row, is_last = None, count >= args.count
    seconds = HANG_TIMEOUT if topology[0] == 1 else HANG_TIMEOUT_OF_PROCESSES
    timeout = f'--config.hang_timeout={seconds}'
    group = (
      Group(topology, config, run)
      if is_last
      else Group(topology, (*config, timeout), run, victim, fault.environment, fault.flags)
    )
    try:
      if is_last:
        group.wait(600)
      else:
        row = give_fault(group, fault, victim, rng, start_seconds, args)
    finally:
      group.kill()
    topology_name = f'{topology[0]}x{topology[1]} ' + 'x'.join(map(str, topology[2]))
    if row is not None:
      count += 1
      append(out, {'number': count, 'run': num_runs, 'topology': topology_name, **row})
      print(f'{count}/{args.count}, run {num_runs}, {topology_name}: {row}', flush=True)
      if not row['ok']:
        for log in group.logs:
          log.rename(log.with_name(f'fault_{count}_{log.name}'))
    if set(group.codes()) == {0}:
      result = compare(run, workdir / 'reference', not args.change_topology)
      append(runs_out, {'run': num_runs, 'faults': count, **result})
      print(f'run {num_runs} finished: {result}', flush=True)
      if is_last:
        break
    elif set(group.codes()) == {76} and 'processes connected within' in group.output():
      print('the machine was too busy for all processes to start in time; retrying', flush=True)
    elif row is None:
      sys.exit(f'An uninterrupted run ended with {group.codes()}, see {group.logs[0]}')
  print(summary(read(out), read(runs_out)))


if __name__ == '__main__':
  main()
