"""Runs of several real processes, and their rendezvous alone."""

import os
import subprocess
import sys
import threading

import pytest

from tests.helpers import SANDBOX, TINY, free_port
from vit_jax.distributed import rendezvous
from vit_jax.distributed.cluster import ProcessInfo
from vit_jax.errors import LostPeerError, UserError

ARGUMENTS = (
  *TINY,
  '--config=configs/quickstart.py',
  '--config.total_steps=60',
  '--config.eval_every=30',
  '--config.checkpoint.every=8',
  '--config.model.depth=1',
  '--config.model.width=64',  # wide enough that the kernels of the MLP are sharded
  '--config.model.mlp_dim=256',
)
# Most of the time goes into compiling.
FAST = {
  'JAX_PLATFORMS': 'cpu',
  'XLA_FLAGS': '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true',
}


def start_group(
  count, devices, *arguments, command=('-m', 'vit_jax.main'), cwd=lambda i: SANDBOX, ids=None, **env
):
  """Starts a run of `count` processes with `devices` devices each, or only those with `ids`."""
  address = f'--coordinator=127.0.0.1:{free_port()}'
  env = {**os.environ, **FAST, 'JAX_NUM_CPU_DEVICES': str(devices), **env}
  return [
    subprocess.Popen(
      [
        sys.executable,
        *command,
        *arguments,
        address,
        f'--num_processes={count}',
        f'--process_id={i}',
      ],
      cwd=cwd(i),
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in (range(count) if ids is None else ids)
  ]


def wait_for_line(process, prefix):
  for line in process.stdout:
    if line.startswith(prefix):
      return
  pytest.fail(f'no {prefix}: {process.stderr.read()}')


def wait_for_exit(group):
  """The exit code and the stderr of each process."""
  outputs = [process.communicate(timeout=120) for process in group]
  return [process.returncode for process in group], [err for _, err in outputs]


def messages(text):
  return [line for line in text.splitlines() if line.startswith(('error: ', 'stopped: '))]


def connect(*processes, timeout=20.0, hosts=(), least=None, batch_sizes=()):
  """Connects processes (id, count, settings); returns the group or the error of each.

  In threads, because JAX is not needed.
  """
  port, results = free_port(), [None] * len(processes)

  def start_one(i, process_id, count, settings):
    process = ProcessInfo(f'127.0.0.1:{port}', count, process_id, hosts, min_processes=least)
    try:
      results[i] = rendezvous.connect_processes(process, settings, timeout, batch_sizes)
    except (UserError, LostPeerError) as error:
      results[i] = error

  threads = [threading.Thread(target=start_one, args=(i, *p)) for i, p in enumerate(processes)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return results


def close(group):
  for connection in group.connections.values():
    connection.close()
