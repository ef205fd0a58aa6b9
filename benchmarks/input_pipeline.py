"""Times the input pipeline, from files to arrays on the device, beside tf.data in the same run.

  python benchmarks/input_pipeline.py --images=imagenet_samples.tar

224-px inception crops and flips in batches of 128, of photos as they are and of the same photos
prepared with `prepare_data --size=256`. Each row is measured in a process of its own, all rows in
turn in each round, so that other work on the machine disturbs all alike. The rows:

  what each step of the way gave (decoding, resizing, threads, workers), on the photos;
  the same on photos of four times the size, where reduced decoding matters;
  prepared data with threads and with workers;
  tf.data on both, with one thread a core and with AUTOTUNE, in an environment of its own
  (--tensorflow=PYTHON, made with pip where it is not given).

Medians of the rounds with the lowest and highest go to
benchmarks/results/input_pipeline_<date>.csv. `--soak=N` reads N batches instead and writes memory,
open files and processes every hundredth of the way.
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

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
BATCH_SIZE, COPIES = 128, 10
TENSORFLOW = 'tensorflow-cpu>=2.20'


@dataclasses.dataclass(frozen=True)
class Row:
  """One way to read: which data, decoded how, by what."""

  name: str
  data: str = 'photos'
  decoder: str = 'part'  # pillow, whole (libjpeg-turbo) or part
  antialias: bool = False
  reduced: bool = True
  workers: int = 0
  threads: int = 1
  size: int = 224


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
  ]


def make_data(tar: pathlib.Path, folder: pathlib.Path) -> dict[str, str]:
  """The photos in folders of classes, four times as large, and prepared: {name: source}."""
  from PIL import Image

  with tarfile.open(tar) as archive:
    for member in archive:
      if member.isfile():
        data, name = archive.extractfile(member).read(), pathlib.Path(member.name).name
        for kind in ('photos', 'large'):
          (folder / kind / 'test').mkdir(parents=True, exist_ok=True)  # so train is all of train
          path = folder / kind / 'train' / name.split('_')[0] / name
          path.parent.mkdir(parents=True, exist_ok=True)
          if kind == 'photos':
            path.write_bytes(data)
          else:
            with Image.open(io.BytesIO(data)) as image:
              large = image.convert('RGB').resize((4 * image.width, 4 * image.height))
              large.save(path, 'JPEG', quality=92)
          for i in range(1, COPIES):  # links: shuffling so few as 200 is not what is to be timed
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
  """The prepared images as files, for tf.data cannot read ArrayRecord."""
  from vit_jax.data.sources import open_source

  examples = open_source(source, 'train')
  folder.mkdir()
  for i in range(examples.size):
    (folder / f'{i}.jpg').write_bytes(examples.read(i)[0])


@contextlib.contextmanager
def opened(row: Row, source: str):
  """Batches of that row, endless."""
  import ml_collections

  from vit_jax.config import default_config
  from vit_jax.data.decoding import images, turbojpeg
  from vit_jax.data.loading import loader
  from vit_jax.data.loading.reader import ReadConfig
  from vit_jax.distributed import sharding as mesh_lib

  if row.decoder == 'pillow':
    images._SIMPLEJPEG = {}
  if row.decoder == 'whole':
    turbojpeg.decode_box = lambda *args: None
  augment = default_config().data.augment.to_dict()
  augment |= {'antialias': row.antialias, 'reduced_decoding': row.reduced}
  recipe = ReadConfig(source, 'train', (row.size, row.size), augment=augment)
  axes = {'data': -1, 'fsdp': 1, 'tensor': 1, 'num_slices': 1}
  mesh = mesh_lib.make_mesh(ml_collections.ConfigDict(axes))
  stream = loader.open_stream(recipe, BATCH_SIZE)
  with loader.DataLoader({'train': stream}, mesh, row.workers, row.threads) as feed:
    yield feed.batches('train', 0, 10**9)


def measure(row: Row, source: str, seconds: float) -> float:
  """Images/s, after ten batches."""
  import jax

  with opened(row, source) as batches:
    for _ in range(10):
      next(batches)
    count, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
      jax.block_until_ready(next(batches))
      count += BATCH_SIZE
    return count / elapsed


def state() -> dict[str, int]:
  """Of this process and those it has started: memory (kB), open files, processes."""
  me, found = os.getpid(), {'memory_kB': 0, 'open_files': 0, 'processes': 0}
  children = [
    int(pid)
    for task in pathlib.Path(f'/proc/{me}/task').glob('*/children')
    for pid in task.read_text().split()
  ]
  for pid in (me, *children):
    status = pathlib.Path(f'/proc/{pid}/smaps_rollup').read_text()
    found['memory_kB'] += int(status.split('Pss:')[1].split()[0])
    found['open_files'] += len(os.listdir(f'/proc/{pid}/fd'))
    found['processes'] += 1
  return found


def soak(row: Row, source: str, batches: int, out: pathlib.Path) -> None:
  """Reads that many batches and writes the state of the processes on the way."""
  with opened(row, source) as feed, out.open('w', newline='') as file:
    began, writer = time.perf_counter(), None
    for i in range(1, batches + 1):
      next(feed)
      if i % max(batches // 100, 1) == 0:
        found = {'batches': i, 'seconds': round(time.perf_counter() - began, 1), **state()}
        writer = writer or csv.DictWriter(file, found, lineterminator='\n')
        if file.tell() == 0:
          writer.writeheader()
        writer.writerow(found)
        file.flush()
        print(found, flush=True)


def tensorflow(given: str | None, folder: pathlib.Path) -> str:
  """A Python that has TensorFlow."""
  if given:
    return given
  venv.create(folder / 'tensorflow', with_pip=True)
  python = str(folder / 'tensorflow' / 'bin' / 'python')
  subprocess.run([python, '-m', 'pip', 'install', '--quiet', TENSORFLOW], check=True)
  return python


def run_rounds(
  args: argparse.Namespace, folder: pathlib.Path
) -> dict[tuple[str, str], list[float]]:
  """{(name, data): images/s of each round}."""
  sources, python = make_data(args.images, folder), tensorflow(args.tensorflow, folder)
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
  for data, files in {'photos': folder / 'photos', 'prepared': folder / 'unpacked'}.items():
    for threads in (cores, 0):
      script = str(ROOT / 'benchmarks' / 'input_pipeline_tf.py')
      name = f'tf.data, {threads} threads' if threads else 'tf.data, AUTOTUNE'
      commands[name, data] = [python, script, str(files), str(threads), str(args.seconds)]
  found = {key: [] for key in commands}
  environment = {**os.environ, 'JAX_PLATFORMS': args.platform}
  for round_ in range(args.rounds):
    for key, command in commands.items():
      run = subprocess.run(command, env=environment, capture_output=True, text=True)
      if run.returncode:
        sys.exit(run.stderr)
      found[key].append(float(run.stdout.split()[-1]))
      print(f'round {round_ + 1}: {key[0]} ({key[1]}): {found[key][-1]:,.0f}', flush=True)
  return found


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--images', type=pathlib.Path, help='a tar of photos, <class>_<name>.JPEG')
  parser.add_argument('--tensorflow', help='a Python with TensorFlow')
  parser.add_argument('--seconds', type=float, default=10, help='of each measurement')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--platform', default='cpu', help='of the devices: cpu, cuda or tpu')
  parser.add_argument('--soak', type=int, help='read so many batches of prepared data instead')
  parser.add_argument('--workers', type=int, default=2, help='of --soak')
  parser.add_argument('--size', type=int, default=224, help='of the images of --soak, pixels')
  parser.add_argument('--out', type=pathlib.Path, default=ROOT / 'benchmarks' / 'results')
  parser.add_argument('--row', help=argparse.SUPPRESS)
  parser.add_argument('--source', help='--soak: read this')
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
    found = run_rounds(args, pathlib.Path(folder))
  baseline = {
    data: max(
      statistics.median(v)
      for (name, of), v in found.items()
      if of == data and name.startswith('tf.data')
    )
    for data in ('photos', 'prepared')
  }
  with (args.out / f'input_pipeline_{date}.csv').open('w', newline='') as file:
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(
      [
        'what',
        'data',
        'images_per_second',
        'lowest',
        'highest',
        'times_the_best_tf_data',
        'cores',
        'machine',
        'python',
      ]
    )
    for (name, data), speeds in found.items():
      middle = statistics.median(speeds)
      share = f'{middle / baseline[data]:.2f}' if data in baseline else ''
      writer.writerow(
        [
          name,
          data,
          round(middle),
          round(min(speeds)),
          round(max(speeds)),
          share,
          len(os.sched_getaffinity(0)),
          platform.machine(),
          platform.python_version(),
        ]
      )
      print(f'{name:45}{data:10}{middle:8,.0f} images/s  {share}')


if __name__ == '__main__':
  main()
