"""Two real processes train the same curve as one."""

import json
import socket

import numpy as np
from conftest import TINY, start


def losses(workdir):
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [line[name] for line in lines for name in ('train/loss', 'test/loss') if name in line]


def test_two_processes_equal_one(tiny_run, tmp_path):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  processes = [
      start('main', '--config=configs/quickstart.py', *TINY, f'--workdir={tmp_path}',
            '--config.mesh.fsdp=2', f'--coordinator=127.0.0.1:{port}', '--num_processes=2',
            f'--process_id={i}')
      for i in range(2)
  ]  # fmt: skip
  outputs = [process.communicate(timeout=200) for process in processes]
  assert [process.returncode for process in processes] == [0, 0], outputs
  said = [[line for line in out.splitlines() if 'Gloo' not in line] for out, _ in outputs]
  assert said[0] and not said[1]  # one of them speaks
  assert '2 cpu devices' in outputs[0][0]
  np.testing.assert_allclose(losses(tmp_path), losses(tiny_run), rtol=1e-5)
  with np.load(tmp_path / 'model/params.npz') as a, np.load(tiny_run / 'model/params.npz') as b:
    assert {name: a[name].shape for name in a} == {name: b[name].shape for name in b}
