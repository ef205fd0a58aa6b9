"""Benchmarks the input pipeline, from files to arrays on the device, against tf.data.

  python benchmarks/input_pipeline.py --images=imagenet_samples.tar

224-px inception crops and flips in batches of 128, of photos and of the same photos prepared with
`prepare_data --size=256`. Each row is measured in its own process, and each round measures all
rows in turn, so that other work on the machine affects all of them alike. The rows:

  photos: each optimization in turn (decoding, resizing, threads, workers);
  photos of four times the size, where reduced decoding matters;
  prepared data with threads and with workers, in batches of 32, 128 and 1,024, and by the worker
    processes of Grain, which read the same examples with the same code;
  PyTorch's DataLoader with a worker a core, on both (--torch=PYTHON, with torchvision);
  tf.data on both, with one thread a core and with AUTOTUNE, in a Python environment with TensorFlow
  (--tensorflow=PYTHON; without it one is made with pip).

Medians, minima and maxima of the rounds are written to
benchmarks/results/input_pipeline_<date>.csv. `--soak=N` reads N batches instead and records memory,
open files and processes a hundred times.
"""

import argparse
import contextlib
import csv
import dataclasses
import datetime
import io
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
COPIES = 10
TENSORFLOW = 'tensorflow-cpu>=2.20'


@dataclasses.dataclass(frozen=True)
class Row:
  """A configuration to measure."""

  name: str
  data: str = 'photos'
  decoder: str = 'crop'  # pillow, whole (libjpeg-turbo) or crop
  antialias: bool = False
  reduced: bool = True
  workers: int = 0
  threads: int = 1
  size: int = 224
  batch_size: int = 128
  library: str = 'vit_jax'  # or grain


def rows(cores: int) -> list[Row]:
  return [
    Row('Pillow, antialiased, 1 thread', decoder='pillow', antialias=True, reduced=False),
    Row('libjpeg-turbo decodes', decoder='whole', antialias=True, reduced=False),
    Row('OpenCV resizes, without antialiasing', decoder='whole', reduced=False),
    Row('only the crop is decoded', reduced=False),
    Row('reduced decoding', reduced=True),
    Row('one thread a core', threads=cores),
    Row('one worker a core', workers=cores),
    Row('large photos: all decoded', data='large', reduced=False, threads=cores),
    Row('large photos: reduced decoding', data='large', threads=cores),
    Row('prepared: one thread a core', data='prepared', threads=cores),
    Row('prepared: one worker a core', data='prepared', workers=cores),
    Row('prepared: batches of 32', data='prepared', workers=cores, batch_size=32),
    Row('prepared: batches of 1,024', data='prepared', workers=cores, batch_size=1024),
    Row("Grain's workers, one a core", data='photos', workers=cores, library='grain'),
    Row("prepared: Grain's workers, one a core", data='prepared', workers=cores, library='grain'),
  ]


def make_data(tar: pathlib.Path, folder: pathlib.Path) -> dict[str, str]:
  """Writes the photos as folders, four times as large, and prepared: {name: source}."""
  from PIL import Image

  with tarfile.open(tar) as archive:
    for member in archive:
      if member.isfile():
        data, name = archive.extractfile(member).read(), pathlib.Path(member.name).name
        for version in ('photos', 'large'):
          # An empty test split, so that all photos are for training.
          (folder / version / 'test').mkdir(parents=True, exist_ok=True)
          path = folder / version / 'train' / name.split('_')[0] / name
          path.parent.mkdir(parents=True, exist_ok=True)
          if version == 'photos':
            path.write_bytes(data)
          else:
            with Image.open(io.BytesIO(data)) as image:
              large = image.convert('RGB').resize((4 * image.width, 4 * image.height))
              large.save(path, 'JPEG', quality=92)
          for i in range(1, COPIES):  # links, so that shuffling 200 photos is not what is timed
            os.link(path, path.with_name(f'{i}_{name}'))
  command = [
    sys.executable,
    '-m',
    'vit_jax.prepare_data',
    f'folder:{folder}/photos',
    f'{folder}/prepared',
    '--size=256',
    '--splits=train',
  ]
  subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
  return {
    'photos': f'folder:{folder}/photos',
    'large': f'folder:{folder}/large',
    'prepared': f'array_record:{folder}/prepared',
  }


def unpack(source: str, folder: pathlib.Path) -> None:
  """Writes prepared images as files, because the others do not read ArrayRecord."""
  from vit_jax.data.sources import open_source

  examples = open_source(source, 'train')
  (folder / 'images').mkdir(parents=True)  # ImageFolder needs a class
  for i in range(examples.size):
    (folder / 'images' / f'{i}.jpg').write_bytes(examples.read(i)[0])


@contextlib.contextmanager
def open_batches(row: Row, source: str) -> Iterator[Iterator[dict[str, Any]]]:
  """Yields the endless batches of a row."""
  from vit_jax.config import AugmentConfig, MeshConfig
  from vit_jax.data.decoding import images, turbojpeg
  from vit_jax.data.loading import loader
  from vit_jax.data.loading.reader import ReadConfig
  from vit_jax.distributed import sharding

  if row.decoder == 'pillow':
    images._SIMPLEJPEG_COLORSPACES = {}
  if row.decoder == 'whole':
    turbojpeg.decode_box = lambda *args: None
  augment = AugmentConfig(antialias=row.antialias, reduced_decoding=row.reduced)
  config = ReadConfig(source, 'train', (row.size, row.size), augment=augment)
  if row.library == 'grain':
    yield grain_batches(config, row)
    return
  streams = {'train': loader.open_stream(config, row.batch_size)}
  mesh = sharding.make_mesh(MeshConfig())
  with loader.DataLoader(streams, mesh, row.workers, row.threads) as data_loader:
    yield data_loader.batches('train', 0, 10**9)


class ReadExample:
  """Reads the example at a position, in a worker process of Grain."""

  def __init__(self, config: Any):
    self.config, self.reader = config, None

  def __call__(self, index: int) -> dict[str, Any]:
    import numpy as np

    from vit_jax.data.loading.reader import make_reader

    self.reader = self.reader or make_reader(self.config)
    shapes = self.reader.shapes.items()
    example = {name: np.zeros((1, *shape), dtype) for name, (shape, dtype) in shapes}
    self.reader.read(index, index, example)
    return {name: array[0] for name, array in example.items() if name != 'mask'}

  def __getstate__(self) -> dict[str, Any]:
    return {'config': self.config, 'reader': None}


def grain_batches(config: Any, row: Row) -> Iterator[dict[str, Any]]:
  """Yields batches on the device that the workers of Grain have read."""
  import grain.python as grain
  import jax
  from absl import flags

  from vit_jax.data.sources import open_source

  flags.FLAGS.mark_as_parsed()  # Grain's own
  size = open_source(config.source, config.split).size
  positions = grain.MapDataset.range(size).seed(0).shuffle().repeat()
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=row.batch_size)
  examples = positions.map(ReadExample(config)).to_iter_dataset(options)
  batches = examples.batch(row.batch_size).mp_prefetch(
    grain.MultiprocessingOptions(num_workers=row.workers, per_worker_buffer_size=2)
  )
  yield from map(jax.device_put, batches)


def measure(row: Row, source: str, seconds: float) -> float:
  """Measures images/s after ten batches of warmup."""
  import jax

  with open_batches(row, source) as batches:
    for _ in range(10):
      next(batches)
    num_images, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
      jax.block_until_ready(next(batches))
      num_images += row.batch_size
    return num_images / elapsed


def resource_usage() -> dict[str, int]:
  """Memory (kB), open files and processes of this process and its children."""
  parent, usage = os.getpid(), {'memory_kB': 0, 'open_files': 0, 'processes': 0}
  children = [
    int(pid)
    for task in pathlib.Path(f'/proc/{parent}/task').glob('*/children')
    for pid in task.read_text().split()
  ]
  for pid in (parent, *children):
    memory = pathlib.Path(f'/proc/{pid}/smaps_rollup').read_text()
    usage['memory_kB'] += int(memory.split('Pss:')[1].split()[0])
    usage['open_files'] += len(os.listdir(f'/proc/{pid}/fd'))
    usage['processes'] += 1
  return usage


def soak(row: Row, source: str, num_batches: int, out: pathlib.Path) -> None:
  """Reads `num_batches` and records the resource usage a hundred times."""
  with open_batches(row, source) as batches, out.open('w', newline='') as file:
    start, writer = time.perf_counter(), None
    for i in range(1, num_batches + 1):
      next(batches)
      if i % max(num_batches // 100, 1) == 0:
        seconds = round(time.perf_counter() - start, 1)
        record = {'batches': i, 'seconds': seconds, **resource_usage()}
        writer = writer or csv.DictWriter(file, record, lineterminator='\n')
        if file.tell() == 0:
          writer.writeheader()
        writer.writerow(record)
        file.flush()
        print(record, flush=True)


def tensorflow_python(python: str | None, folder: pathlib.Path) -> str:
  """Returns `python`, or a new one in `folder` with TensorFlow installed."""
  if python:
    return python
  venv.create(folder / 'tensorflow', with_pip=True)
  python = str(folder / 'tensorflow' / 'bin' / 'python')
  subprocess.run([python, '-m', 'pip', 'install', '--quiet', TENSORFLOW], check=True)
  return python


def run_rounds(
  args: argparse.Namespace, folder: pathlib.Path
) -> dict[tuple[str, str], list[float]]:
  """Measures all rows in turn: {(name, data): images/s of each round}."""
  sources = make_data(args.images, folder)
  unpack(sources['prepared'], folder / 'unpacked')
  cores = len(os.sched_getaffinity(0))
  commands = {
    (row.name, row.data): [
      sys.executable,
      __file__,
      '--row',
      json.dumps(dataclasses.asdict(row)),
      '--source',
      sources[row.data],
      f'--seconds={args.seconds}',
    ]
    for row in rows(cores)
  }
  compares_tensorflow = args.only in 'tf.data'  # also if all rows are measured
  python = tensorflow_python(args.tensorflow, folder) if compares_tensorflow else ''
  for data, files in {'photos': folder / 'photos', 'prepared': folder / 'unpacked'}.items():
    for threads in (cores, 0):
      script = str(ROOT / 'benchmarks' / 'input_pipeline_tf.py')
      name = f'tf.data, {threads} threads' if threads else 'tf.data, AUTOTUNE'
      commands[name, data] = [python, script, str(files), str(threads), str(args.seconds)]
  if args.torch:
    script = str(ROOT / 'benchmarks' / 'input_pipeline_torch.py')
    for data, files in {'photos': 'photos/train', 'prepared': 'unpacked'}.items():
      command = [args.torch, script, str(folder / files), str(cores), str(args.seconds)]
      commands["PyTorch's workers, one a core", data] = command
  commands = {key: command for key, command in commands.items() if args.only in key[0]}
  speeds: dict[tuple[str, str], list[float]] = {key: [] for key in commands}
  environment = {**os.environ, 'JAX_PLATFORMS': args.platform}
  for round_ in range(args.rounds):
    for key, command in commands.items():
      run = subprocess.run(command, env=environment, capture_output=True, text=True)
      if run.returncode:
        sys.exit(run.stderr)
      speeds[key].append(float(run.stdout.split()[-1]))
      print(f'round {round_ + 1}: {key[0]} ({key[1]}): {speeds[key][-1]:,.0f}', flush=True)
  return speeds


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--images', type=pathlib.Path, help='a tar of photos named <class>_<name>.JPEG'
  )
  parser.add_argument('--tensorflow', help='a Python with TensorFlow')
  parser.add_argument('--torch', help='a Python with PyTorch and torchvision')
  parser.add_argument('--only', default='', help='measure the rows with this text in their name')
  parser.add_argument('--seconds', type=float, default=10, help='duration of each measurement')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--platform', default='cpu', help='JAX platform: cpu, cuda or tpu')
  parser.add_argument('--soak', type=int, help='read this number of batches from --source instead')
  parser.add_argument('--workers', type=int, default=2, help='--soak: worker processes')
  parser.add_argument('--size', type=int, default=224, help='--soak: image size in pixels')
  parser.add_argument('--out', type=pathlib.Path, default=ROOT / 'benchmarks' / 'results')
  parser.add_argument('--row', help=argparse.SUPPRESS)
  parser.add_argument('--source', help='--soak: data source')
  args = parser.parse_args()
  if args.row:
    print(measure(Row(**json.loads(args.row)), args.source, args.seconds))
    return
  date = datetime.date.today().isoformat()
  if args.soak:
    row = Row('soak', workers=args.workers, size=args.size)
    soak(row, args.source, args.soak, args.out / f'input_pipeline_soak_{date}.csv')
    return
  with tempfile.TemporaryDirectory() as folder:
    speeds = run_rounds(args, pathlib.Path(folder))
  write_results(speeds, args.out / f'input_pipeline_{date}.csv')


def write_results(speeds: dict[tuple[str, str], list[float]], path: pathlib.Path) -> None:
  """Prints the median of each row beside the best tf.data, and writes all of it as CSV."""
  medians = {key: statistics.median(values) for key, values in speeds.items()}
  baselines: dict[str, float] = {}
  for (name, data), median in medians.items():
    if name.startswith('tf.data'):
      baselines[data] = max(median, baselines.get(data, 0))
  records = []
  for (name, data), median in medians.items():
    ratio = f'{median / baselines[data]:.2f}' if data in baselines else ''
    print(f'{name:45}{data:10}{median:8,.0f} images/s  {ratio}')
    records.append(
      {
        'what': name,
        'data': data,
        'images_per_second': round(median),
        'lowest': round(min(speeds[name, data])),
        'highest': round(max(speeds[name, data])),
        'times_the_best_tf_data': ratio,
        'cores': len(os.sched_getaffinity(0)),
        'machine': platform.machine(),
        'python': platform.python_version(),
      }
    )
  with path.open('w', newline='') as file:
    writer = csv.DictWriter(file, records[0], lineterminator='\n')
    writer.writeheader()
    writer.writerows(records)


if __name__ == '__main__':
  main()
