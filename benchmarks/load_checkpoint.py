"""Times `vit_jax.load` beside plain reading of the same file, and measures its peak memory.

  python benchmarks/load_checkpoint.py --model=L/16 --classes=21843

Makes a model with random weights, writes it in three layouts, and loads each in processes of
their own, so that the peak is the load's. One row a layout (and one for a load that is split
over eight devices of a CPU) goes to benchmarks/results/load_checkpoint_<date>.csv: GB/s of
reading and of loading (medians of the rounds, taken in turn), peak memory over the size of the
file, and the largest share of the parameters that one device holds.
"""

import argparse
import csv
import datetime
import json
import pathlib
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

import vit_jax
from vit_jax.config import MeshConfig, ModelConfig
from vit_jax.distributed import sharding
from vit_jax.models import build


def write_model(name: str, num_classes: int, folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Random weights of that model in each layout: {layout: path of the weights}."""
  variant, patch_size = name.split('/')
  config = ModelConfig(variant=variant, patch_size=int(patch_size))
  model = build.model_from_config(config, num_classes)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: rng.standard_normal(leaf.shape, np.float32) * np.float32(0.02),
    build.abstract_params(model, (224, 224)),
  )
  vit = vit_jax.Classifier(model, params, (224, 224))
  vit.save(folder / 'x.npz')
  vit.save(folder / 'x.safetensors')
  vit.save(folder / 'x')
  return {
    'npz': folder / 'x.npz',
    'timm': folder / 'x.safetensors',
    'huggingface': folder / 'x' / 'model.safetensors',
  }


def peak_memory() -> int:
  """Bytes; from Linux itself, since getrusage counts in the process that started this one."""
  status = pathlib.Path('/proc/self/status')
  if status.exists():
    return int(re.search(r'VmHWM:\s+(\d+) kB', status.read_text())[1]) * 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(path: str, devices: int) -> dict[str, float]:
  """Reads and loads a file once; to be called in a process of its own."""
  jax.config.update('jax_num_cpu_devices', devices)
  size, shardings = pathlib.Path(path).stat().st_size, None
  if devices > 1:
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=devices))

    def shardings(tree):
      return sharding.state_shardings(tree, mesh)

  jax.devices()
  began = time.perf_counter()
  vit = vit_jax.load(path, shardings=shardings)
  jax.block_until_ready(vit.params)
  seconds = time.perf_counter() - began
  peak = peak_memory()  # before the file is read as a whole
  on_device = dict.fromkeys(jax.devices(), 0)
  for leaf in jax.tree.leaves(vit.params):
    for shard in leaf.addressable_shards:
      on_device[shard.device] += shard.data.nbytes
  total = sum(leaf.nbytes for leaf in jax.tree.leaves(vit.params))
  del vit, leaf, shard
  began = time.perf_counter()
  with open(path, 'rb') as file:
    file.read()
  return {
    'read': size / (time.perf_counter() - began) / 1e9,
    'load': size / seconds / 1e9,
    'peak': peak / size,
    'share': max(on_device.values()) / total,
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--model', default='L/16')
  parser.add_argument('--classes', type=int, default=21_843)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--measure', help=argparse.SUPPRESS)
  parser.add_argument('--devices', type=int, default=1, help=argparse.SUPPRESS)
  parser.add_argument('--out', default='benchmarks/results')
  args = parser.parse_args()
  if args.measure:
    print(json.dumps(measure(args.measure, args.devices)))
    return
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    files = write_model(args.model, args.classes, pathlib.Path(folder))
    cases = [(*item, 1) for item in files.items()] + [('npz', files['npz'], 8)]
    for layout, path, devices in cases:
      command = [sys.executable, __file__, f'--measure={path}', f'--devices={devices}']
      measurements = [json.loads(subprocess.check_output(command)) for _ in range(args.rounds)]
      row = {
        name: round(statistics.median(x[name] for x in measurements), 3) for name in measurements[0]
      }
      rows.append(
        {
          'date': datetime.date.today().isoformat(),
          'machine': f'{platform.machine()}, {jax.__version__}',
          'model': args.model,
          'layout': layout,
          'gigabytes': round(path.stat().st_size / 1e9, 3),
          'devices': devices,
          'read_gb_per_second': row['read'],
          'load_gb_per_second': row['load'],
          'load_over_read': round(row['load'] / row['read'], 2),
          'peak_over_file': row['peak'],
          'largest_share_on_a_device': row['share'],
        }
      )
      print(rows[-1], flush=True)
  target = pathlib.Path(args.out) / f'load_checkpoint_{datetime.date.today()}.csv'
  with target.open('w', newline='') as file:
    writer = csv.DictWriter(file, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)


if __name__ == '__main__':
  main()
