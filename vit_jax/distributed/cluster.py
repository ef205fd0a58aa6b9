"""Detects which process of how many this one is: from flags, SLURM, GKE or a Cloud TPU VM."""

import dataclasses
import importlib.util
import os
import re
import urllib.request
from collections.abc import Mapping

from vit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
  """This process in a run of several."""

  coordinator: str  # HOST:PORT where process 0 listens
  num_processes: int
  process_id: int  # from 0
  hosts: tuple[str, ...] = ()  # host name of each process, if known
  local_device: int | None = None  # index of the one GPU of its host to use; None: all
  min_processes: int | None = None  # that suffice to start; None: all


def detect_cluster(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  min_processes: int | None = None,
  env: Mapping[str, str] = os.environ,
) -> ProcessInfo | None:
  """Detects the processes of the run; None if this one is alone, as on a laptop.

  Without arguments it reads the environment: a SLURM step of several tasks (srun), a TPU slice of
  several hosts on GKE (TPU_WORKER_HOSTNAMES), or the metadata server of a Cloud TPU VM; the
  variable JAX_COORDINATOR_PORT then sets the port.

  Raises:
    UserError: unless coordinator, num_processes and process_id go together, all or none; or when
      the run cannot start with `min_processes`.
  """
  if (coordinator, num_processes, process_id) != (None, None, None):
    process = _from_flags(coordinator, num_processes, process_id)
  else:
    process = _from_slurm(env) or _from_tpu(env)
  if min_processes is not None:
    process = _with_min_processes(process, min_processes, env)
  return process if process and process.num_processes > 1 else None


def _from_flags(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> ProcessInfo:
  if coordinator is None or num_processes is None or process_id is None:
    raise UserError('--coordinator, --num_processes and --process_id need each other; set all.')
  match = re.fullmatch(r'[^:\[\]]+:(\d+)', coordinator)
  if not match or not 0 < int(match[1]) < 65536:
    raise UserError(f'--coordinator is {coordinator!r}; it must be HOST:PORT, such as host:8476.')
  if not 0 <= process_id < num_processes:
    raise UserError(
      f'--process_id is {process_id}; it counts from 0 and must be below '
      f'--num_processes={num_processes}.'
    )
  return ProcessInfo(coordinator, num_processes, process_id)


def _with_min_processes(
  process: ProcessInfo | None, min_processes: int, env: Mapping[str, str]
) -> ProcessInfo:
  flag = f'--min_processes={min_processes}'
  if process is None:
    raise UserError(f'{flag} needs a run of several processes; leave it out.')
  if not 1 <= min_processes <= process.num_processes:
    raise UserError(
      f'{flag} must be from 1 to the number of processes, which is {process.num_processes}.'
    )
  if min_processes < process.num_processes:
    slice_host = _from_tpu(env)
    if slice_host and slice_host.num_processes > 1:
      raise UserError(
        f'{flag}: a TPU slice starts only with all of its hosts, here '
        f'{process.num_processes} processes; leave it out.'
      )
  return dataclasses.replace(process, min_processes=min_processes)


def node_names(text: str) -> list[str]:
  """'n[001-003,7],m' of SLURM -> ['n001', 'n002', 'n003', 'n7', 'm']."""
  names = []
  for prefix, ranges, suffix in re.findall(r'([^,\[]+)(?:\[([^\]]*)\]([^,\[]*))?', text):
    for item in ranges.split(','):
      first, _, last = item.partition('-')
      numbers = range(int(first), int(last) + 1) if last else [first]
      names += [f'{prefix}{str(number).zfill(len(first))}{suffix}' for number in numbers]
  return names


def _from_slurm(env: Mapping[str, str]) -> ProcessInfo | None:
  """A task of srun; the shell of salloc or sbatch itself has no SLURM_STEP_NODELIST."""
  if not {'SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID'} <= env.keys():
    return None
  tasks = int(env.get('SLURM_STEP_NUM_TASKS') or env.get('SLURM_NTASKS') or 1)
  nodes = node_names(env['SLURM_STEP_NODELIST'])
  # The same on all processes of a job, another one for other jobs on the node.
  port = env.get('JAX_COORDINATOR_PORT') or 61440 + int(env['SLURM_JOB_ID']) % 4096
  one_gpu_each = tasks > len(nodes) and len(env.get('CUDA_VISIBLE_DEVICES', ',').split(',')) > 1
  return ProcessInfo(
    coordinator=f'{nodes[0]}:{port}',
    num_processes=tasks,
    process_id=int(env['SLURM_PROCID']),
    hosts=tuple(nodes) if tasks == len(nodes) else (),
    local_device=int(env.get('SLURM_LOCALID', 0)) if one_gpu_each else None,
  )


def _metadata(env: Mapping[str, str], name: str) -> str:
  """An attribute from the metadata server of a Google Cloud VM; '' outside of Google Cloud."""
  server = env.get('GCE_METADATA_IP', 'metadata.google.internal')
  request = urllib.request.Request(
    f'http://{server}/computeMetadata/v1/instance/attributes/{name}',
    headers={'Metadata-Flavor': 'Google'},
  )
  try:
    with urllib.request.urlopen(request, timeout=5) as response:
      return response.read().decode()
  except OSError:
    return ''


def _from_tpu(env: Mapping[str, str]) -> ProcessInfo | None:
  """A host of a TPU slice, or of several slices (MEGASCALE_*)."""
  hosts = env.get('TPU_WORKER_HOSTNAMES', '').split(',')
  worker = env.get('TPU_WORKER_ID', '')
  # `import jax` sets TPU_SKIP_MDS_QUERY on machines without a TPU: no server to wait for.
  if not worker and importlib.util.find_spec('libtpu') and 'TPU_SKIP_MDS_QUERY' not in env:
    # 'host,host' or 'name:id:host,name:id:host'
    hosts = [x.split(':')[-1] for x in _metadata(env, 'worker-network-endpoints').split(',')]
    worker = _metadata(env, 'agent-worker-number')
    env = {**dict(re.findall(r"(\w+): '(.*)'", _metadata(env, 'tpu-env'))), **env}
  if not worker.isdecimal() or not all(hosts):
    return None
  num_slices = int(env.get('MEGASCALE_NUM_SLICES', 1))
  slice_id = int(env.get('MEGASCALE_SLICE_ID', 0))
  first = env.get('MEGASCALE_COORDINATOR_ADDRESS', hosts[0]).split(':')[0]
  return ProcessInfo(
    coordinator=f'{first}:{env.get("JAX_COORDINATOR_PORT") or 8482}',
    num_processes=len(hosts) * num_slices,
    process_id=len(hosts) * slice_id + int(worker),
    hosts=tuple(hosts) if num_slices == 1 else (),
  )
