"""Which process of how many this one is: from flags, SLURM, GKE or a Cloud TPU VM."""

import dataclasses
import importlib.util
import os
import re
import urllib.request
from collections.abc import Mapping

from vit_jax.errors import UserError

_TPU_PORT = 8482


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
  """Where a process stands in a run of several.

  Attributes:
    coordinator: HOST:PORT where process 0 listens.
    num_processes: how many make up the run.
    process_id: which of them this one is, from 0.
    hosts: the host names of all processes, in their order; empty where nothing tells them.
    local_device: the one GPU of the host that is this process's; None for all there are.
  """

  coordinator: str
  num_processes: int
  process_id: int
  hosts: tuple[str, ...] = ()
  local_device: int | None = None


def detect_cluster(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  env: Mapping[str, str] = os.environ,
) -> ProcessInfo | None:
  """The place of this process; None where it is alone, as on a laptop.

  Without arguments the environment decides: a SLURM step of several tasks (srun), a TPU slice of
  several hosts on GKE (TPU_WORKER_HOSTNAMES), or a Cloud TPU VM that says so when it is asked.
  JAX_COORDINATOR_PORT chooses another port there.

  Raises:
    UserError: for arguments that do not go together.
  """
  if (coordinator, num_processes, process_id) != (None, None, None):
    place = _from_flags(coordinator, num_processes, process_id)
  else:
    place = _from_slurm(env) or _from_tpu(env)
  return place if place and place.num_processes > 1 else None


def _from_flags(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> ProcessInfo:
  if coordinator is None:
    raise UserError('--num_processes and --process_id go with --coordinator=HOST:PORT.')
  if num_processes is None or process_id is None:
    raise UserError('--coordinator goes with --num_processes and --process_id.')
  match = re.fullmatch(r'[^:\[\]]+:(\d+)', coordinator)
  if not match or not 0 < int(match[1]) < 65536:
    raise UserError(f'--coordinator is {coordinator!r}; it takes HOST:PORT.')
  if not 0 <= process_id < num_processes:
    raise UserError(
      f'--process_id is {process_id} of --num_processes={num_processes}; it counts from 0.'
    )
  return ProcessInfo(coordinator, num_processes, process_id)


def node_names(text: str) -> list[str]:
  """'n[001-003,7],m' of SLURM -> ['n001', 'n002', 'n003', 'n7', 'm']."""
  names = []
  for prefix, ranges, suffix in re.findall(r'([^,\[]+)(?:\[([^\]]*)\]([^,\[]*))?', text):
    for part in ranges.split(','):
      first, _, last = part.partition('-')
      numbers = range(int(first), int(last) + 1) if last else ()
      names += [f'{prefix}{number:0{len(first)}}{suffix}' for number in numbers] or [
        f'{prefix}{first}{suffix}'
      ]
  return names


def _from_slurm(env: Mapping[str, str]) -> ProcessInfo | None:
  """A task of `srun`; the shell of `salloc` or `sbatch` itself has no SLURM_STEP_NODELIST."""
  if not {'SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID'} <= env.keys():
    return None
  tasks = int(env.get('SLURM_STEP_NUM_TASKS') or env.get('SLURM_NTASKS') or 1)
  nodes = node_names(env['SLURM_STEP_NODELIST'])
  # The same port on all processes, another one for other jobs on the node.
  port = env.get('JAX_COORDINATOR_PORT') or 61440 + int(env['SLURM_JOB_ID']) % 4096
  one_of_several = tasks > len(nodes) and len(env.get('CUDA_VISIBLE_DEVICES', ',').split(',')) > 1
  return ProcessInfo(
    coordinator=f'{nodes[0]}:{port}',
    num_processes=tasks,
    process_id=int(env['SLURM_PROCID']),
    hosts=tuple(nodes) if tasks == len(nodes) else (),
    local_device=int(env.get('SLURM_LOCALID', 0)) if one_of_several else None,
  )


def _metadata(env: Mapping[str, str], name: str) -> str:
  """An attribute of a Google Cloud machine; empty where there is none."""
  server = env.get('GCE_METADATA_IP', 'metadata.google.internal')
  request = urllib.request.Request(
    f'http://{server}/computeMetadata/v1/instance/attributes/{name}',
    headers={'Metadata-Flavor': 'Google'},
  )
  try:
    with urllib.request.urlopen(request, timeout=5) as answer:
      return answer.read().decode()
  except OSError:
    return ''


def _from_tpu(env: Mapping[str, str]) -> ProcessInfo | None:
  """A host of a TPU slice, or of several slices (MEGASCALE_*)."""
  hosts = env.get('TPU_WORKER_HOSTNAMES', '').split(',')
  worker = env.get('TPU_WORKER_ID', '')
  # `import jax` sets TPU_SKIP_MDS_QUERY where there is no TPU, so that nobody waits for a server.
  if not worker and importlib.util.find_spec('libtpu') and 'TPU_SKIP_MDS_QUERY' not in env:
    # 'host,host' or 'name:id:host,name:id:host'
    hosts = [x.split(':')[-1] for x in _metadata(env, 'worker-network-endpoints').split(',')]
    worker = _metadata(env, 'agent-worker-number')
    env = {**dict(re.findall(r"(\w+): '(.*)'", _metadata(env, 'tpu-env'))), **env}
  if not worker.isdecimal() or not all(hosts):
    return None
  slices, this = int(env.get('MEGASCALE_NUM_SLICES', 1)), int(env.get('MEGASCALE_SLICE_ID', 0))
  first = env.get('MEGASCALE_COORDINATOR_ADDRESS', hosts[0]).split(':')[0]
  return ProcessInfo(
    coordinator=f'{first}:{env.get("JAX_COORDINATOR_PORT") or _TPU_PORT}',
    num_processes=len(hosts) * slices,
    process_id=len(hosts) * this + int(worker),
    hosts=tuple(hosts) if slices == 1 else (),
  )
