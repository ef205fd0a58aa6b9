"""The columns of `model_speed.py`: what was measured, how fast it was, what it tells of itself."""

import statistics
from typing import Any

import jax

from benchmarks import measurement, programs
from benchmarks.peers import process
from vit_jax.config import Config
from vit_jax.hardware import peak_flops
from vit_jax.models import build
from vit_jax.models.flops import forward_flops, train_flops
from vit_jax.training.program import Program

FLOPS = {'forward': forward_flops, 'step': train_flops}
COLUMNS = (
  *measurement.MACHINE,
  *('torch', 'timm', 'transformers', 'implementation', 'variant', 'model', 'image_size', 'dtype'),
  *('batch_size', 'pass', 'images_per_second', 'images_per_second_lowest'),
  *('images_per_second_highest', 'times_vit_jax', 'milliseconds', 'tflops_per_second'),
  *('share_of_peak', 'share_of_matmul', 'matmul_tflops_per_second', 'rounds', 'calls_per_round'),
  *('arguments_gib', 'temporaries_gib', 'compile_seconds', 'loss', 'parameters', 'optimizer'),
  'note',
)


def settings(config: Config, program: Program) -> dict[str, Any]:
  """What is measured, and on what."""
  (height, width), clip = config.data.height_width, config.optimizer.clip_norm
  return {
    **measurement.machine(program.mesh.size),
    'image_size': height if height == width else f'{height}x{width}',
    'dtype': build.dtype_name(program.model),
    'batch_size': config.batch_size,
    'optimizer': config.optimizer.name + (f', clipped to {clip:g}' if clip else ''),
  }


def speed(
  program: Program,
  kind: str,
  rates: list[float],
  base: list[float] | None,
  ceiling: float,
  peak_tflops: float | None,
) -> dict[str, Any]:
  """Images/s, and its shares of the device's peak and of the measured matrix product.

  Args:
    program: whose arithmetic is counted, without recomputation.
    kind: the pass.
    rates: images/s of each round.
    base: those of our own code without a variant.
    ceiling: FLOP/s of a matrix product on one device; 0: not measured.
    peak_tflops: of one device; None: that of bfloat16, where it is known.
  """
  rate, count = statistics.median(rates), program.mesh.size
  device = program.mesh.devices.flat[0]
  flops = FLOPS[kind](program.model, program.image_shape[:2]) * rate
  columns: dict[str, Any] = measurement.summary(rates, 'images_per_second')
  columns['milliseconds'] = round(1e3 * program.step.batch_size / rate, 3)
  columns['tflops_per_second'] = round(flops / 1e12, 4)
  if base:
    columns['times_vit_jax'] = round(rate / statistics.median(base), 3)
  peak = 1e12 * count * peak_tflops if peak_tflops else None
  if not peak and build.dtype_name(program.model) == 'bfloat16':
    peak = peak_flops(device.device_kind, count)
  if peak:
    columns['share_of_peak'] = round(flops / peak, 4)
  if ceiling:
    ceiling *= 1 if device.platform == 'cpu' else count  # the devices of a CPU share its cores
    columns['matmul_tflops_per_second'] = round(ceiling / 1e12, 4)
    columns['share_of_matmul'] = round(flops / ceiling, 4)
  return columns


def details(runner: programs.Runner | process.PeerProcess, kind: str) -> dict[str, Any]:
  """What a runner tells about itself."""
  columns: dict[str, Any] = {}
  if kind == 'step' and runner.loss is not None:
    columns['loss'] = round(runner.loss, 4)
  if isinstance(runner, process.PeerProcess):
    described = runner.description
    columns |= {'jax': '', **described['versions']}
    if described['device'] == 'cpu' != jax.default_backend():
      columns['device'] = 'cpu'
    return columns | {name: described[name] for name in ('python', 'parameters', 'optimizer')}
  memory = runner.compiled[kind].memory_analysis()
  if memory:
    columns['arguments_gib'] = round(memory.argument_size_in_bytes / 2**30, 3)
    columns['temporaries_gib'] = round(memory.temp_size_in_bytes / 2**30, 3)
  columns['compile_seconds'] = round(runner.compile_seconds[kind], 1)
  return columns | {'parameters': build.count_parameters(runner.state.params)}
