"""Processes: detecting them, connecting them, and the same numbers with any number of them."""

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from tests.helpers import SANDBOX, TINY, free_port, losses, start
from tests.process_groups import close, connect
from vit_jax.distributed import cluster, rendezvous
from vit_jax.distributed.cluster import ProcessInfo
from vit_jax.errors import LostPeerError, UserError

# Detecting the cluster.


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((None, 2, None), '--coordinator'),
    ((None, None, 0), '--coordinator'),
    (('localhost:1', None, 0), '--num_processes'),
    (('localhost:1', 2, None), '--process_id'),
    (('localhost:1', 2, 2), 'must be below --num_processes=2'),
    (('localhost:1', 2, -1), 'counts from 0'),
    (('localhost', 2, 1), 'HOST:PORT'),
    (('localhost:70000', 2, 1), 'HOST:PORT'),
  ],
)
def test_flags_that_do_not_go_together_are_refused(arguments, message):
  with pytest.raises(UserError, match=message):
    cluster.detect_cluster(*arguments, env={})


SLURM = {
  'SLURM_JOB_ID': '4097',
  'SLURM_NTASKS': '4',
  'SLURM_PROCID': '2',
  'SLURM_LOCALID': '0',
  'SLURM_STEP_NODELIST': 'gpu[08-10],login',
}
HOSTS = ('gpu08', 'gpu09', 'gpu10', 'login')
TPU = {'TPU_WORKER_HOSTNAMES': 'a,b', 'TPU_WORKER_ID': '1', 'TPU_SKIP_MDS_QUERY': '1'}


@pytest.mark.parametrize(
  ('env', 'process'),
  [
    ({'TPU_SKIP_MDS_QUERY': '1'}, None),  # a laptop
    (SLURM, ProcessInfo('gpu08:61441', 4, 2, HOSTS)),
    (SLURM | {'SLURM_NTASKS': '1'}, None),
    (
      SLURM | {'SLURM_NTASKS': '9', 'SLURM_STEP_NUM_TASKS': '4', 'JAX_COORDINATOR_PORT': '7'},
      ProcessInfo('gpu08:7', 4, 2, HOSTS),
    ),
    (
      SLURM | {'SLURM_STEP_NODELIST': 'n', 'SLURM_LOCALID': '2'},  # a GPU each
      ProcessInfo('n:61441', 4, 2, (), local_device=2),
    ),
    (
      SLURM | {'SLURM_STEP_NODELIST': 'n', 'CUDA_VISIBLE_DEVICES': '0'},
      ProcessInfo('n:61441', 4, 2),
    ),
    # The shell of sbatch, without srun.
    ({name: SLURM[name] for name in SLURM if name != 'SLURM_STEP_NODELIST'}, None),
    (TPU, ProcessInfo('a:8482', 2, 1, ('a', 'b'))),
    (TPU | {'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_WORKER_ID': '0'}, None),
    (
      TPU
      | {
        'MEGASCALE_NUM_SLICES': '3',
        'MEGASCALE_SLICE_ID': '2',
        'MEGASCALE_COORDINATOR_ADDRESS': 'first:8080',
      },
      ProcessInfo('first:8482', 6, 5),
    ),
  ],
)
def test_the_environment_of_a_cluster_is_detected(env, process):
  env = {'TPU_SKIP_MDS_QUERY': '1', **env}
  assert cluster.detect_cluster(env=env) == process


def test_node_names_of_slurm_are_expanded():
  assert cluster.node_names('n[1-2,07],m-3,r[1-2]s') == ['n1', 'n2', 'n07', 'm-3', 'r1s', 'r2s']


def test_a_tpu_vm_queries_its_metadata_server(monkeypatch):
  answers = {
    'worker-network-endpoints': 'w:1:10.0.0.1,w:2:10.0.0.2',
    'agent-worker-number': '1',
    'tpu-env': "NAME: 'x'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n",
  }

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802 - the name is http.server's
      text = answers.get(self.path.rpartition('/')[2])
      self.send_response(404 if text is None else 200)
      self.end_headers()
      self.wfile.write((text or '').encode())

    def log_message(self, *unused):
      pass

  monkeypatch.setattr(cluster.importlib.util, 'find_spec', lambda name: True)
  with http.server.HTTPServer(('127.0.0.1', 0), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {'GCE_METADATA_IP': f'127.0.0.1:{server.server_port}'}
    assert cluster.detect_cluster(env=env) == ProcessInfo('10.0.0.1:8482', 4, 3)
    del answers['tpu-env']
    assert cluster.detect_cluster(env=env) == ProcessInfo(
      '10.0.0.1:8482', 2, 1, ('10.0.0.1', '10.0.0.2')
    )
    answers.clear()
    assert cluster.detect_cluster(env=env) is None
    server.shutdown()


# Connecting the processes.


def test_processes_with_the_same_settings_are_connected():
  groups = connect(*((i, 3, {'x': (1.5, 'a')}) for i in range(3)))
  assert len({group.coordinator for group in groups}) == 1
  assert [group.process_id for group in groups] == [0, 1, 2]
  assert [sorted(group.connections) for group in groups] == [[1, 2], [0], [0]]
  for group in groups:
    assert len(group.hosts) == 3
    close(group)


def test_settings_that_differ_are_named_on_all_processes():
  errors = connect((2, 3, {}), (0, 3, {'config.seed': 1}), (1, 3, {'config.seed': 1}))
  assert {str(error) for error in errors} == {str(errors[0])}
  assert 'config.seed is 1 on process 0' in str(errors[0])
  assert 'None on process 2' in str(errors[0])


@pytest.mark.parametrize(
  ('processes', 'kind', 'expected'),
  [
    ([(0, 3), (2, 3)], LostPeerError, r'2 of 3 .* 0 \(.+\), 2 \(.+\); missing: 1 \(b\);'),
    ([(2, 3)], LostPeerError, r'Process 0 did not answer at 127.0.0.1:\d+ .*process 2'),
    ([(0, 3), (1, 3), (1, 3)], UserError, r'Several processes have --process_id=1'),
    ([(0, 2), (1, 3)], UserError, '--num_processes is 2 on process 0 .* 3 on process 1'),
  ],
)
def test_missing_and_duplicate_processes_are_named(processes, kind, expected):
  errors = connect(*((*process, {}) for process in processes), timeout=1, hosts=('a', 'b', 'c'))
  for error in errors:
    assert type(error) is kind
    assert error.exit_code == {LostPeerError: 76, UserError: 2}[kind]
  assert re.search(expected, str(errors[0]))


def test_other_clients_are_ignored():
  address = ('127.0.0.1', free_port())
  first, second = (ProcessInfo(f'127.0.0.1:{address[1]}', 2, i) for i in range(2))
  groups = []
  thread = threading.Thread(
    target=lambda: groups.append(rendezvous.connect_processes(first, {}, 20))
  )
  thread.start()
  for message in (b'GET / HTTP/1.1\r\n\r\n', b'{"id": 1}\n', b'\xff\xfe\n', b'[]\n'):
    while True:
      try:
        with socket.create_connection(address) as client:
          client.sendall(message)
        break
      except ConnectionRefusedError:
        continue
  groups.append(rendezvous.connect_processes(second, {}, 20))
  thread.join()
  for group in groups:
    close(group)
  assert len(groups) == 2


@pytest.mark.parametrize(
  ('names', 'waiting'),
  [
    (((1, 'a'), (1, 'b'), (2, 'c')), ['b', 'c']),  # process 1 was restarted
    (((1, 'a'), (2, 'c')), ['c']),  # it is missing
  ],
)
def test_a_process_that_ended_while_it_waited_does_not_count(names, waiting):
  hellos = [{'id': i, 'host': host, 'settings': {}} for i, host in names]
  with socket.create_server(('127.0.0.1', 0)) as server:
    clients = []
    for hello in hellos:
      clients.append(socket.create_connection(server.getsockname()))
      clients[-1].sendall(json.dumps(hello).encode() + b'\n')
    clients[0].close()
    peers = rendezvous._accept_peers(server, 2, hellos[0].keys(), 1)
    assert [hello['host'] for hello, _ in peers] == waiting
    for closable in (*clients, *(connection for _, connection in peers)):
      closable.close()


def test_a_port_in_use_is_named():
  with socket.create_server(('127.0.0.1', 0)) as server:
    process = ProcessInfo(f'127.0.0.1:{server.getsockname()[1]}', 2, 0)
    with pytest.raises(UserError, match='cannot listen at .*Address already in use'):
      rendezvous.connect_processes(process, {}, 1)


# The data they read and the run they train: real processes.

READ = """
import dataclasses, hashlib, sys
import numpy as np
from jax.experimental import multihost_utils
from vit_jax.config import AugmentConfig, MeshConfig
from vit_jax.data import sources
from vit_jax.data.augmentation import transforms
from vit_jax.data.loading import loader, reader
from vit_jax.distributed import cluster, processes, sharding
address, count, i = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with processes.distributed_run(cluster.detect_cluster(address, count, i), {}, 60):
  config = AugmentConfig(crop='resize', flip=False, shift=0.1)
  digits, images = sources.open_source('digits', 'train'), set()
  def augment(image, rng):
    images.add(hashlib.sha256(image.pixels(None).tobytes()).hexdigest())
    return transforms.augment(image, (8, 8), config, rng)
  examples = reader.Reader(digits, augment, (8, 8, 3), seed=3)
  stream = loader.Stream(examples, 16, loader.example_order(digits, 3))
  for sizes in ((8, 1, 1), (2, 4, 1), (1, 8, 1), (4, 1, 2)):
    mesh = sharding.make_mesh(MeshConfig(*sizes))
    digest = hashlib.sha256()
    images.clear()
    data = loader.DataLoader({'train': stream}, mesh, threads=1)
    for batch in data.batches('train', 5, 8):
      batch = multihost_utils.process_allgather(batch, tiled=True)
      digest.update(np.asarray(batch['image']).tobytes() + np.asarray(batch['label']).tobytes())
    print('read', sizes, len(images), digest.hexdigest(), flush=True)
"""


def test_batches_are_the_same_bits_on_one_two_and_four_processes():
  groups = {}
  for count in (1, 2, 4):
    env = {**os.environ, 'JAX_NUM_CPU_DEVICES': str(8 // count), 'JAX_PLATFORMS': 'cpu'}
    address = f'127.0.0.1:{free_port()}'
    groups[count] = [
      subprocess.Popen(
        [sys.executable, '-c', READ, address, str(count), str(i)],
        cwd=SANDBOX,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for i in range(count)
    ]
  digests = set()
  for count, group in groups.items():
    for process in group:
      out, err = process.communicate(timeout=120)
      assert process.returncode == 0, err
      lines = [line.split() for line in out.splitlines() if line.startswith('read')]
      assert len(lines) == 4
      digests |= {line[-1] for line in lines}
      # 3 batches of 16, and each process reads only its own rows.
      assert {int(line[-2]) for line in lines} == {48 // count}
  assert len(digests) == 1


def test_a_run_of_two_slurm_tasks_has_the_losses_of_one_process(tiny_run, tmp_path):
  env = {
    'SLURM_JOB_ID': '1',
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_NTASKS': '2',
    'JAX_COORDINATOR_PORT': str(free_port()),
    'JAX_PLATFORMS': 'cpu',
  }
  processes = [
    start(
      'main',
      '--config=configs/quickstart.py',
      *TINY,
      f'--workdir={tmp_path}',
      '--config.mesh.fsdp=2',
      env={**os.environ, **env, 'SLURM_PROCID': str(i)},
    )
    for i in range(2)
  ]
  outputs = [process.communicate(timeout=200) for process in processes]
  assert [process.returncode for process in processes] == [0, 0], outputs
  printed = [[line for line in out.splitlines() if 'Gloo' not in line] for out, _ in outputs]
  assert printed[0] and not printed[1]  # only process 0 prints
  assert 'process 1 on ' in outputs[0][0] and '2 cpu devices' in outputs[0][0]
  np.testing.assert_allclose(losses(tmp_path), losses(tiny_run), rtol=1e-5)
  with np.load(tmp_path / 'model/params.npz') as a, np.load(tiny_run / 'model/params.npz') as b:
    assert {name: a[name].shape for name in a} == {name: b[name].shape for name in b}
