"""Tiny runs of one or several real processes, for drills: how they start, end and compare."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
FAULTY_MAIN = pathlib.Path(__file__).with_name('faulty_main.py')
START_TIMEOUT = 5  # s
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
  '--config.max_restarts=0',
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
Topology = tuple[int, int, tuple[int, int, int]]  # processes, devices of each, mesh
TOPOLOGIES: tuple[Topology, ...] = (
  (1, 1, (1, 1, 1)),
  (1, 8, (8, 1, 1)),
  (1, 8, (2, 4, 1)),
  (1, 4, (2, 1, 2)),
  (2, 4, (1, 8, 1)),
  (2, 1, (2, 1, 1)),
  (4, 2, (4, 1, 2)),
  (4, 1, (1, 4, 1)),
)


def _copy(lines: Iterable[bytes], path: pathlib.Path) -> None:
  with path.open('wb', buffering=0) as file:
    for line in lines:
      file.write(line)


class Group:
  """The processes that one start of a run launches."""

  def __init__(
    self,
    topology: Topology,
    config: Sequence[str],
    workdir: pathlib.Path,
    victim: int = 0,
    fault: str = '',
    victim_flags: Sequence[str] = (),
  ):
    """`fault` and `victim_flags` are of one process, the victim; see `faulty_main`."""
    count, devices, mesh = topology
    with socket.create_server(('127.0.0.1', 0)) as free:
      address = f'127.0.0.1:{free.getsockname()[1]}'
    env = {
      **os.environ,
      'JAX_NUM_CPU_DEVICES': str(devices),
      'JAX_PLATFORMS': 'cpu',
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'PYTHONPATH': str(ROOT),
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
      log.unlink(missing_ok=True)  # of the start before
      process = subprocess.Popen(
        [
          sys.executable,
          FAULTY_MAIN,
          *config,
          f'--workdir={workdir}',
          *flags,
          *([f'--process_id={i}'] if count > 1 else []),
          *(victim_flags if i == victim else ()),
        ],
        cwd=ROOT,
        env={**env, 'FAULT': fault if i == victim else ''},
        stdout=subprocess.PIPE,  # rather than a file, which a full disk would cut
        stderr=subprocess.STDOUT,
      )
      self.processes.append(process)
      threading.Thread(target=_copy, args=(process.stdout, log), daemon=True).start()

  def has_exited(self) -> bool:
    return all(process.poll() is not None for process in self.processes)

  def output(self) -> str:
    """What process 0 has printed."""
    log = self.logs[0]
    return log.read_text(errors='replace') if log.exists() else ''

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
    for process in self.processes:
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
