"""Counts the bundles of the fused attention kernel: the process that `kernel_schedule.py` starts.

  python -m vit_jax.planning.schedule_process '["v5e:1x1", {fields of Kernel}, "FOLDER"]'

prints [forward, backward]. $LIBTPU_INIT_ARGS tells the compiler to write its schedules to FOLDER,
which it reads only when it is loaded.
"""

import functools
import json
import pathlib
import sys
from typing import Any

import jax

from vit_jax.hardware import vector_memory
from vit_jax.models.attention.fused_attention import fused_attention
from vit_jax.planning.hlo import Hlo, executed, parse
from vit_jax.planning.kernel_schedule import Kernel, is_backward, read_kernel
from vit_jax.planning.topologies import Topology, get_devices, parse_topology, prepare_backend

_HEADER_LINES = 4  # of a table of bundles


def _compile(topology: Topology, kernel: Kernel) -> Hlo:
  """One block of the kernel and its backward pass, compiled for a chip."""
  device = get_devices(topology)[0]
  attend = functools.partial(fused_attention, vector_memory=vector_memory(device.device_kind))

  def forward_and_backward(query: Any, key: Any, value: Any, grad: Any) -> Any:
    output, pull = jax.vjp(attend, query, key, value)
    return output, pull(grad)

  shape = (kernel.compiled_images, kernel.tokens, kernel.heads, kernel.head_dim)
  dtype = {'bf16': 'bfloat16', 'f32': 'float32'}[kernel.dtype]
  sharding = jax.sharding.SingleDeviceSharding(device)
  array = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
  compiled = jax.jit(forward_and_backward).lower(*[array] * 4).compile()
  return parse(compiled.as_text() or '')


def _num_bundles(name: str, folder: pathlib.Path) -> int:
  """The bundles of a custom call, by the table that the compiler wrote of it."""
  paths = list(folder.glob(f'*-{name}-*final_hlo-static-per-bundle-*.txt'))
  if len(paths) != 1:
    sys.exit(f'the compiler wrote {len(paths)} schedules of {name}')
  return len(paths[0].read_text().splitlines()) - _HEADER_LINES


def main() -> None:
  name, fields, folder = json.loads(sys.argv[1])
  topology = parse_topology(name)
  prepare_backend([topology])
  bundles = [0, 0]
  for line in executed(_compile(topology, Kernel(**fields))):
    call = line.instruction
    if read_kernel(call) is not None:
      bundles[is_backward(call)] += _num_bundles(call.name, pathlib.Path(folder))
  print(json.dumps(bundles))


if __name__ == '__main__':
  main()
