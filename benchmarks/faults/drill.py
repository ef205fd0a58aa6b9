"""Kills real training runs at random moments and checks that they resume exactly.

  python benchmarks/faults/drill.py --kills=100 --processes=1 --signal=mixed
  python benchmarks/faults/drill.py --kills=50 --processes=4 --signal=KILL --during_save
  python benchmarks/faults/drill.py --kills=50 --change_topology

Each run is a tiny one on scikit-learn's digits (dropout, augmentation, a moving average of the
parameters, a checkpoint every few steps). After a random time one random process gets the signal.
All others must exit within 10 s with the documented exit code, and the same command must resume the
run. When it reaches its last step, its parameters and its metrics.jsonl must be those of an
uninterrupted run, bit for bit. With --change_topology each start uses other numbers of processes
and devices and another mesh, and the losses must agree within 1e-5. Runs follow each other until
the number of --kills is reached.

Writes one row per kill to --out (by default benchmarks/faults/results/drill_<mode>_<date>.csv) and
one row per run beside it (…_runs.csv). Rerun the same command to resume the drill.
"""

import argparse
import csv
import datetime
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Seconds within which the other processes must exit. After SIGTERM they first finish a step, which
# may still be compiling, and save; while processes connect, the others wait --start_timeout for the
# lost one.
LIMITS = {'KILL': 10, 'TERM': 60}
START_TIMEOUT = 5
CONFIG = (
  '--config=configs/quickstart.py',
  '--config.total_steps=1500',
  '--config.batch_size=16',
  '--config.eval_batch_size=120',
  '--config.eval_every=300',
  '--config.log_every=20',
  '--config.checkpoint.every=30',
  '--config.schedule.warmup_steps=20',
  '--config.model.width=16',
  '--config.model.depth=2',
  '--config.model.mlp_dim=32',
  '--config.model.num_heads=2',
  '--config.model.dropout_rate=0.1',
  '--config.ema_decay=0.9',
  '--config.data.threads=2',
)
# Wide enough that parameters are sharded; a low learning rate, so that rounding errors stay small.
CONFIG_OF_TOPOLOGIES = (
  *CONFIG,
  '--config.total_steps=400',
  '--config.eval_every=200',
  '--config.model.width=64',
  '--config.model.mlp_dim=256',
  '--config.schedule.learning_rate=1e-4',
)
# Several processes on few cores wait for each other.
CONFIG_OF_PROCESSES = (
  *CONFIG,
  '--config.total_steps=200',
  '--config.eval_every=100',
  '--config.checkpoint.every=10',
  '--config.log_every=5',
)
# (processes, devices of each, (data, fsdp, tensor))
TOPOLOGIES = (
  (1, 1, (1, 1, 1)),
  (1, 8, (8, 1, 1)),
  (1, 8, (2, 4, 1)),
  (1, 4, (2, 1, 2)),
  (2, 4, (1, 8, 1)),
  (2, 1, (2, 1, 1)),
  (4, 2, (4, 1, 2)),
  (4, 1, (1, 4, 1)),
)


class Group:
  """The processes that one start of a run launches."""

  def __init__(self, topology, config, workdir: pathlib.Path):
    count, devices, mesh = topology
    with socket.create_server(('127.0.0.1', 0)) as free:
      address = f'127.0.0.1:{free.getsockname()[1]}'
    env = {
      **os.environ,
      'JAX_NUM_CPU_DEVICES': str(devices),
      'JAX_PLATFORMS': 'cpu',
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'PYTHONUNBUFFERED': '1',
    }
    env.setdefault('JAX_COMPILATION_CACHE_DIR', f'{tempfile.gettempdir()}/drill_cache')
    flags = [
      f'--config.mesh.{axis}={size}'
      for axis, size in zip(('data', 'fsdp', 'tensor'), mesh, strict=True)
    ]
    if count > 1:
      flags += [
        f'--coordinator={address}',
        f'--num_processes={count}',
        f'--start_timeout={START_TIMEOUT}',
      ]
    workdir.mkdir(parents=True, exist_ok=True)
    self.logs = [workdir / f'process_{i}.log' for i in range(count)]
    self.workdir, self.start_time = workdir, time.monotonic()
    self.processes = []
    for i, log in enumerate(self.logs):
      with log.open('w') as file:
        self.processes.append(
          subprocess.Popen(
            [
              sys.executable,
              '-m',
              'vit_jax.main',
              *config,
              f'--workdir={workdir}',
              *flags,
              *([f'--process_id={i}'] if count > 1 else []),
            ],
            cwd=ROOT,
            env=env,
            stdout=file,
            stderr=subprocess.STDOUT,
          )
        )

  def has_exited(self) -> bool:
    return all(process.poll() is not None for process in self.processes)

  def output(self) -> str:
    """What process 0 has printed."""
    return self.logs[0].read_text(errors='replace')

  def codes(self) -> list[int | None]:
    return [process.returncode for process in self.processes]

  def phase(self) -> str:
    text = self.output()
    if len(self.processes) > 1 and 'process 0 on' not in text:
      return 'connecting'
    if 'compiling the first step' not in text:
      return 'starting'
    if 'done:' in text:
      return 'ending'
    saving = any((self.workdir / 'checkpoints').glob('*.orbax-checkpoint-tmp*'))
    return 'saving' if saving else 'training' if '\nstep ' in text else 'compiling'

  def step(self) -> int:
    path = self.workdir / 'metrics.jsonl'
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)['step'] for line in lines if line.endswith('}')), default=0)

  def wait(self, seconds: float) -> float:
    """Waits until all have exited, at most so many seconds; returns the seconds waited."""
    start = time.monotonic()
    while not self.has_exited() and time.monotonic() - start < seconds:
      time.sleep(0.02)
    return time.monotonic() - start

  def wait_for(self, text: str) -> None:
    while not self.has_exited() and text not in self.output():
      time.sleep(0.02)

  def kill(self) -> None:
    for process in self.processes:
      if process.poll() is None:
        process.kill()
        process.wait()


def metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  timings = ('per_second', 'wait', 'time', 'goodput', 'restarts')
  return [{k: v for k, v in line.items() if not any(t in k for t in timings)} for line in lines]


def compare(workdir: pathlib.Path, reference: pathlib.Path, same_topology: bool) -> dict:
  """Compares a finished run with the uninterrupted one."""
  with np.load(workdir / 'model/params.npz') as a, np.load(reference / 'model/params.npz') as b:
    identical = a.files == b.files and all(np.array_equal(a[x], b[x]) for x in a.files)
  lines, expected = metrics(workdir), metrics(reference)
  same_steps = [line['step'] for line in lines] == [line['step'] for line in expected]
  differences = [
    abs(x[name] - y[name]) / abs(y[name])
    for x, y in zip(lines, expected, strict=False)
    for name in ('train/loss', 'test/loss')
    if name in x and name in y
  ]
  worst = max(differences, default=1.0)
  equal = identical and lines == expected if same_topology else same_steps and worst < 1e-5
  return {'ok': equal, 'parameters_identical': identical, 'largest_loss_difference': worst}


def ended_as_documented(codes, victim: int, number: signal.Signals, phase: str) -> bool:
  others = [code for i, code in enumerate(codes) if i != victim]
  if phase == 'ending' and all(code in (0, 76, -number) for code in codes):
    return True  # after the last step
  if codes[victim] == -number:  # SIGTERM, too, kills a process that is still importing
    is_early = phase in ('connecting', 'starting')
    return (number == signal.SIGKILL or is_early) and set(others) <= {76}
  return number == signal.SIGTERM and set(codes) <= {75}


def kill_one(group: Group, rng: random.Random, start_seconds: float, args) -> dict | None:
  """Sends the signal at a random moment and checks the exits; None if the run finished first."""
  if args.during_save or rng.random() > 1 / 6:  # otherwise while it starts
    group.wait_for('compiling the first step')
  group.wait(rng.uniform(0, start_seconds))
  name = rng.choice(['KILL', 'TERM']) if args.signal == 'mixed' else args.signal
  victim = rng.randrange(len(group.processes))
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
  number = signal.Signals[f'SIG{name}']
  group.processes[victim].send_signal(number)
  limit = LIMITS[name] + (START_TIMEOUT if row['phase'] == 'connecting' else 0)
  seconds = group.wait(2 * limit)
  if not group.has_exited():
    group.kill()
  codes = group.codes()
  if row['phase'] in ('compiling', 'training', 'saving') and 'done:' in group.output():
    row['phase'] = 'ending'
  ok = seconds < limit and ended_as_documented(codes, victim, number, row['phase'])
  return {
    **row,
    'signal': name,
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


def summary(kills: list[dict[str, str]], runs: list[dict[str, str]]) -> str:
  slowest = max((float(row['seconds_to_end']) for row in kills), default=0)
  phases = {row['phase'] for row in kills}
  counts = ', '.join(f'{sum(r["phase"] == p for r in kills)} {p}' for p in sorted(phases))
  worst = max((float(row['largest_loss_difference']) for row in runs), default=0)
  return (
    f'{len(kills)} kills ({counts}), {sum(r["ok"] == "True" for r in kills)} ended as '
    f'documented, the slowest after {slowest:.2f} s; {len(runs)} runs finished, '
    f'{sum(r["ok"] == "True" for r in runs)} equal to the uninterrupted one, '
    f'{sum(r["parameters_identical"] == "True" for r in runs)} in every bit of the parameters, '
    f'largest difference of a loss {worst:.1e}'
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--kills', type=int, default=200)
  parser.add_argument('--processes', type=int, default=1, choices=(1, 2, 4))
  parser.add_argument('--signal', default='mixed', choices=('KILL', 'TERM', 'mixed'))
  parser.add_argument('--during_save', action='store_true', help='kill only during saves')
  parser.add_argument('--change_topology', action='store_true')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--out', type=pathlib.Path)
  parser.add_argument('--workdir', type=pathlib.Path, help='default: a temporary folder')
  args = parser.parse_args()
  mode = 'topologies' if args.change_topology else f'{args.processes}'
  mode += f'_{args.signal}' + ('_saves' if args.during_save else '') + f'_{args.seed}'
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
  kills = len(read(out))
  while True:
    runs = read(runs_out)
    run = workdir / f'run_{len(runs)}'
    rng = random.Random(f'{args.seed} {kills} {len(runs)}')
    if args.change_topology:
      topology = rng.choice(TOPOLOGIES)
    group = Group(topology, config, run)
    try:
      is_last = kills >= args.kills
      row = None if is_last else kill_one(group, rng, start_seconds, args)
      if row is None:
        group.wait(600)
    finally:
      group.kill()
    topology_name = f'{topology[0]}x{topology[1]} ' + 'x'.join(map(str, topology[2]))
    if row is not None:
      kills += 1
      append(out, {'kill': kills, 'run': len(runs), 'topology': topology_name, **row})
      print(f'kill {kills}/{args.kills}, run {len(runs)}, {topology_name}: {row}', flush=True)
      if not row['ok']:
        for log in group.logs:
          log.rename(log.with_name(f'kill_{kills}_{log.name}'))
    elif set(group.codes()) == {0}:
      same_topology = not args.change_topology
      result = compare(run, workdir / 'reference', same_topology)
      append(runs_out, {'run': len(runs), 'kills': kills, **result})
      print(f'run {len(runs)} finished: {result}', flush=True)
      if is_last:
        break
    elif set(group.codes()) == {76} and 'processes connected within' in group.output():
      print('the machine was too busy for all processes to start in time; retrying', flush=True)
    else:
      sys.exit(f'An uninterrupted run ended with {group.codes()}, see {group.logs[0]}')
  print(summary(read(out), read(runs_out)))


if __name__ == '__main__':
  main()
