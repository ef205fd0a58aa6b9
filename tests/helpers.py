"""What several tests share: folders, a tiny run, real processes, small data, a small step."""

import functools
import io
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from vit_jax.config import Config, replace_fields
from vit_jax.data.decoding.images import open_image
from vit_jax.data.sources import Source
from vit_jax.distributed import sharding
from vit_jax.evaluation.probes.frozen_features import Features
from vit_jax.models import build
from vit_jax.models.vit import VisionTransformer
from vit_jax.training import step as step_lib
from vit_jax.training.program import Program, build_program

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / 'tests' / 'golden'
# The current folder of all tests: it has configs/, and nothing of the user's (conftest.py).
SANDBOX = pathlib.Path(os.environ['VIT_JAX_TEST_SANDBOX'])
# A run of seconds: two blocks of width 16 on digits of 8 x 8 pixels.
# What a ResNet does not read, as it is by default.
NO_TRANSFORMER = (
  '--config.model.patch_size=16',
  '--config.model.width=0',
  '--config.model.depth=0',
  '--config.model.mlp_dim=0',
  '--config.model.num_heads=0',
  '--config.model.dropout_rate=0.0',
)
TINY = (
  '--config.total_steps=6',
  '--config.batch_size=16',
  '--config.eval_batch_size=120',
  '--config.log_every=2',
  '--config.eval_every=3',
  '--config.checkpoint.every=2',
  '--config.schedule.warmup_steps=2',
  '--config.model.width=16',
  '--config.model.depth=2',
  '--config.model.mlp_dim=32',
  '--config.model.num_heads=2',
  '--config.model.dropout_rate=0.1',
  '--config.data.image_size=8',
  '--config.data.threads=2',
)


def start(module: str, *args: str, **kwargs) -> subprocess.Popen:
  """Starts `python -m vit_jax.<module>` in a real process, in the sandbox."""
  return subprocess.Popen(
    [sys.executable, '-m', f'vit_jax.{module}', *map(str, args)],
    cwd=SANDBOX,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **kwargs,
  )


def run(module: str, *args: str, **kwargs) -> subprocess.CompletedProcess:
  """Runs `python -m vit_jax.<module>` to its end."""
  process = start(module, *args, **kwargs)
  out, err = process.communicate(timeout=300)
  return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def write_images(folder: pathlib.Path, files: dict[str, tuple[int, int]], seed: int = 0) -> None:
  """Writes random RGB images: {'train/cat/1.png': (height, width), …}."""
  rng = np.random.default_rng(seed)
  for name, size in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def read_labels(source: Source) -> list[int]:
  """The labels of all examples, which `Source.labels` must have, too."""
  labels = [int(source.read(i)[1]) for i in range(source.size)]
  assert source.labels is None or source.labels().tolist() == labels
  return labels


def read_example(source: Source, i: int) -> tuple[np.ndarray, np.ndarray]:
  """Reads (decoded image, label) of an example."""
  image, label = source.read(i)
  return open_image(image, source.describe(i)).pixels(None), label


def read_images(source: Source) -> set[bytes]:
  """Decodes all images of a source; random ones are all different."""
  return {read_example(source, i)[0].tobytes() for i in range(source.size)}


class Clock:
  """In place of the module `time`: time passes when a test says so."""

  now = 100.0

  def monotonic(self) -> float:
    return self.now


def replace_clock(monkeypatch, module) -> Clock:
  """Gives a module a clock that the test moves."""
  clock = Clock()
  monkeypatch.setattr(module, 'time', clock)
  return clock


def free_port() -> int:
  with socket.create_server(('127.0.0.1', 0)) as free:
    return free.getsockname()[1]


def input_dependence(function, shape: tuple[int, ...], pixel: tuple[int, int]) -> np.ndarray:
  """Which input pixels change an output pixel of (1, H, W, F) -> (1, H', W', F'): (H, W) bool."""
  x = jax.random.normal(jax.random.key(7), shape)
  weights = jax.random.normal(jax.random.key(8), jax.eval_shape(function, x).shape[3:])
  gradient = jax.jit(jax.grad(lambda x: function(x)[0, *pixel] @ weights))(x)
  return np.asarray(abs(gradient[0]).max(-1) > 0)


def write_finished_run(workdir: pathlib.Path, accuracy: float, loss: float = 1.0) -> None:
  """What commands look for in the folder of a finished run, without a model."""
  (workdir / 'model').mkdir(parents=True)
  (workdir / 'config.json').write_text('{"total_steps": 6}')
  metrics = {'test/accuracy': accuracy, 'test/loss': loss, 'test/examples': 29}
  lines = [{'step': 3, 'test/accuracy': 0.0}, {'step': 6, **metrics}]
  (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def losses(workdir):
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [line[name] for line in lines for name in ('train/loss', 'test/loss') if name in line]


TFDS_IMAGES = [
  np.random.default_rng(i).integers(0, 256, (5 + i, 7, 3), dtype=np.uint8) for i in range(5)
]

TFDS_LABELS = {'label': [0, 1, 2, 0, 1], 'labels': [[0], [1, 2], [], [0, 2], [1]]}


def write_tfds(root: pathlib.Path, key: str) -> None:
  """Five examples in the format of TFDS, two shards; `key` is 'label' or 'labels'."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.example_serializer import ExampleSerializer

  label = tfds.features.ClassLabel(names=['cat', 'dog', 'owl'])
  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(),
      key: label if key == 'label' else tfds.features.Sequence(label),
    }
  )
  root.mkdir(parents=True)
  features.save_config(root)
  serializer = ExampleSerializer(features.get_serialized_info())
  for shard, indices in enumerate(([0, 1, 2], [3, 4])):
    path = root / f'pets-train.array_record-{shard:05}-of-00002'
    writer = ArrayRecordWriter(str(path), 'group_size:1')
    for i in indices:
      file = io.BytesIO()
      Image.fromarray(TFDS_IMAGES[i]).save(file, 'PNG')
      example = {'image': file.getvalue(), key: TFDS_LABELS[key][i]}
      writer.write(serializer.serialize_example(example))
    writer.close()
  split = {
    'name': 'train',
    'shardLengths': ['3', '2'],
    'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
  }
  info = {'name': 'pets', 'version': '1.0.0', 'fileFormat': 'array_record', 'splits': [split]}
  (root / 'dataset_info.json').write_text(json.dumps(info))


# Most of the time goes into compiling.
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})

_RNG = np.random.default_rng(0)

IMAGES = _RNG.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)

BATCH = {'image': IMAGES, 'label': _RNG.integers(0, 3, 8, dtype=np.int32)}

MULTI_HOT = _RNG.integers(0, 2, (8, 3), dtype=np.uint8)

KEY = jax.random.key(7)


def rate(step) -> jax.Array:
  return 0.1 / (1 + jnp.asarray(step, jnp.float32))


def make_model(**fields) -> VisionTransformer:
  return VisionTransformer(4, 16, 1, 24, 2, num_classes=3, pool='gap', **fields)


def first_state(use_ema: bool = False) -> step_lib.TrainState:
  """Starts from normal numbers, so that the gradient reaches everything."""
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda leaf: jnp.float32(rng.normal(0, 0.3, leaf.shape)),
    build.abstract_params(make_model(), (8, 8)),
  )
  optimizer = optax.sgd(rate, momentum=0.9)
  return step_lib.init_state(make_model(), optimizer, (8, 8, 3), 0, params, use_ema=use_ema)


def assert_same_tree(one, two):
  jax.tree.map(np.testing.assert_array_equal, one, two)


def assert_close(one, two, rtol=1e-5, atol=1e-6):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, two)


def make_program(config: Config, num_classes: int, devices=None, multi_label=False) -> Program:
  """The program of a run, on its mesh of these devices (all of them by default)."""
  mesh = sharding.make_mesh(config.mesh, devices)
  return build_program(
    mesh,
    config.model,
    config.optimizer,
    config.schedule,
    config.step,
    config.data.image_shape,
    num_classes,
    multi_label,
    config.lora,
  )


def random_params(model, image_size: tuple[int, int], scale: float = 0.3):
  """Normal numbers for all parameters, so that no layer is the identity or zero."""
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda leaf: rng.normal(0, scale, leaf.shape).astype(np.float32),
    build.abstract_params(model, image_size),
  )


def clustered_features(name: str, size: int, width: int = 12, num_classes: int = 3) -> Features:
  """Examples around a center of each class, which overlap; classes take turns."""
  labels = np.arange(size, dtype=np.int32) % num_classes
  centers = np.random.default_rng(0).normal(size=(num_classes, width))
  noise = np.random.default_rng(size).normal(scale=1.5, size=(size, width))
  values = (3 + centers[labels] + noise).astype(np.float32)
  values.flags.writeable = False  # as of a memory-mapped file
  return Features(values, labels, num_classes, name)


# A ViT whose heads and MLP two devices can share.
SHARDED_MODEL = {
  'data.image_size': 8,
  'model.patch_size': 4,
  'model.width': 64,
  'model.depth': 1,
  'model.mlp_dim': 256,
  'model.num_heads': 4,
}


def make_sharded_program() -> Program:
  """A small program on eight devices, sharded along all axes, with two micro-batches."""
  fields = {
    **SHARDED_MODEL,
    'total_steps': 10,
    'batch_size': 64,
    'accumulation_steps': 2,
    'mesh.data': 2,
    'mesh.fsdp': 2,
    'mesh.tensor': 2,
  }
  return make_program(replace_fields(Config(), fields), 10)


def train_on_noise(fields: dict) -> tuple[list[float], step_lib.TrainState]:
  """Losses of a run on five classes of random images, on the mesh of `fields`; its last state."""
  config = replace_fields(Config(), fields)
  devices = jax.devices()[: config.mesh.data * config.mesh.fsdp * config.mesh.tensor]
  program = make_program(config, 5, devices)
  step = program.lower().compile({'xla_backend_optimization_level': 0})
  state, rng, losses = program.init(None), np.random.default_rng(0), []
  for _ in range(config.total_steps):
    shape = (config.batch_size, *config.data.image_shape)
    labels = rng.integers(0, 5, config.batch_size, dtype=np.int32)
    batch = {'image': rng.integers(0, 256, shape, dtype=np.uint8), 'label': labels}
    batch = jax.device_put(batch, sharding.batch_sharding(program.mesh))
    state, metrics = step(state, batch, program.random_key())
    losses.append(float(metrics['train/loss']))
  return losses, state
