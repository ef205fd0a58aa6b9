"""Training batches are a pure function of seed and step; test batches hold every example once."""

import dataclasses
import threading

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from vit_jax.config import MeshConfig
from vit_jax.data.decoding.images import LazyImage
from vit_jax.data.loading import loader
from vit_jax.data.loading.order import example_order
from vit_jax.data.loading.reader import Reader
from vit_jax.data.sources import Source
from vit_jax.distributed import sharding
from vit_jax.errors import UserError

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason='written for eight devices')

TOTAL = 10


def make_mesh(data: int, fsdp: int = 1, tensor: int = 1) -> Mesh:
  return sharding.make_mesh(MeshConfig(data, fsdp, tensor))


def make_source(size: int) -> Source:
  """Example i is an image filled with i, with label i."""

  def read(i: int):
    assert 0 <= i < size
    return np.full((2, 2, 3), i, np.uint8), np.int32(i)

  return Source('numbers', size, read, tuple(map(str, range(size))))


def add_noise(image: LazyImage, rng: np.random.Generator) -> np.ndarray:
  """Keeps the first row of pixels and makes the second random."""
  first_row = image.pixels()[:1]
  return np.concatenate([first_row, rng.integers(0, 256, (1, 2, 3), dtype=np.uint8)])


def read_all(batches) -> list[dict[str, np.ndarray]]:
  return [jax.device_get(batch) for batch in batches]


def train_stream(source: Source, seed: int = 0, batch_size: int = 8) -> loader.Stream:
  reader = Reader(source, add_noise, (2, 2, 3), seed)
  return loader.Stream(reader, batch_size, example_order(source, seed))


def train(size=20, mesh=(8,), seed=0, batch_size=8, first_step=0, total_steps=TOTAL, threads=4):
  stream = train_stream(make_source(size), seed, batch_size)
  with loader.DataLoader({'train': stream}, make_mesh(*mesh), threads=threads) as data_loader:
    return read_all(data_loader.batches('train', first_step, total_steps))


def read_test_batches(source, mesh, batch_size=8, transform=lambda image, rng: image.pixels()):
  stream = loader.Stream(Reader(source, transform, (2, 2, 3)), batch_size)
  with loader.DataLoader({'test': stream}, mesh) as data_loader:
    return read_all(data_loader.batches('test'))


def test_skipped_batches_are_those_of_the_plain_order_removed():
  stream = dataclasses.replace(train_stream(make_source(20)), skipped=((7, 9), (2, 4), (3, 5)))
  kept = [0, 1, 5, 6, 9, 10, 11]
  expected = [train(total_steps=12)[i] for i in kept]
  for mesh, workers, first in (((8,), 4, 0), ((2, 4), 1, 0), ((8,), 2, 3)):
    with loader.DataLoader({'train': stream}, make_mesh(*mesh), threads=workers) as data_loader:
      assert_same(read_all(data_loader.batches('train', first, len(kept))), expected[first:])


def assert_same(actual, expected):
  assert len(actual) == len(expected)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def labels(batches) -> np.ndarray:
  return np.concatenate([batch['label'] for batch in batches])


@pytest.fixture(scope='module')
def batches():
  return train()


def test_batches_have_the_documented_shapes(batches):
  assert len(batches) == TOTAL
  for batch in batches:
    assert (batch['image'].shape, batch['image'].dtype) == ((8, 2, 2, 3), np.uint8)
    assert (batch['label'].shape, batch['label'].dtype) == ((8,), np.int32)
    np.testing.assert_array_equal(batch['image'][:, 0, 0, 0], batch['label'])


@pytest.mark.parametrize('step', [1, 3, TOTAL - 1, TOTAL])
def test_starting_at_a_later_step_gives_the_same_batches(step, batches):
  assert_same(train(first_step=step), batches[step:])


@pytest.mark.parametrize(
  'fields',
  [
    {'threads': 1},
    {'threads': 16},
    {'mesh': (2, 4, 1)},
    {'mesh': (1, 2, 4)},
    {'mesh': (1, 1, 8)},
    {'total_steps': 2 * TOTAL},
  ],
  ids=str,
)
def test_threads_and_mesh_do_not_change_batches(fields, batches):
  assert_same(train(**fields)[:TOTAL], batches)


def test_batch_size_does_not_change_the_sequence(batches):
  larger = train(batch_size=16, total_steps=TOTAL // 2)
  for name in ('image', 'label'):
    sequences = (np.concatenate([batch[name] for batch in each]) for each in (batches, larger))
    np.testing.assert_array_equal(*sequences)


@pytest.mark.parametrize('size', [20, 8, 3, 77])
def test_each_epoch_visits_every_example_once(size):
  sequence = labels(train(size=size, total_steps=20))
  epochs = [sequence[i : i + size] for i in range(0, len(sequence) - size + 1, size)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(size))
  if size > 3:
    assert not np.array_equal(epochs[0], np.arange(size))
    assert not np.array_equal(epochs[0], epochs[1])


def test_seeds_change_order_and_augmentation(batches):
  other = train(seed=1)
  assert not np.array_equal(labels(batches), labels(other))
  same, another = (train(size=1, seed=seed, total_steps=2) for seed in (0, 1))
  assert not np.array_equal(same[0]['image'], another[0]['image'])


def test_an_example_is_augmented_differently_each_time():
  noise = np.concatenate([batch['image'][:, 1] for batch in train(size=1, total_steps=4)])
  assert len({row.tobytes() for row in noise}) == 32


def test_multi_hot_labels_pass_through():
  source = make_source(5)
  eye = np.eye(5, dtype=np.uint8)
  multi_label = Source('x', 5, lambda i: (source.read(i)[0], eye[i]), source.class_names, True)
  with loader.DataLoader({'train': train_stream(multi_label)}, make_mesh(8)) as data_loader:
    batch = next(data_loader.batches('train', 0, 1))
  assert (batch['label'].shape, batch['label'].dtype) == ((8, 5), np.uint8)


def test_an_error_while_reading_reaches_the_user():
  def read(i: int):
    raise UserError('cats/7.jpg cannot be read as an image.')

  broken = Source('x', 5, read, ('a', 'b'))
  mesh = make_mesh(8)
  with loader.DataLoader({'train': train_stream(broken)}, mesh) as data_loader:
    with pytest.raises(UserError, match='cats/7.jpg'):
      next(data_loader.batches('train', 0, 2))
  with pytest.raises(UserError, match='cats/7.jpg'):
    read_test_batches(broken, mesh)


@pytest.mark.parametrize('size', [1, 7, 8, 9, 16, 29])
@pytest.mark.parametrize(('batch_size', 'mesh'), [(8, (8,)), (16, (2, 2, 2)), (6, (1, 2, 4))])
def test_test_batches_cover_every_example_once(size, batch_size, mesh):
  batches = read_test_batches(
    make_source(size), make_mesh(*mesh), batch_size, lambda image, rng: 255 - image.pixels()
  )
  assert len(batches) == -(-size // batch_size)
  masks = np.concatenate([batch['mask'] for batch in batches])
  assert masks.dtype == bool
  np.testing.assert_array_equal(masks, np.arange(len(batches) * batch_size) < size)
  np.testing.assert_array_equal(labels(batches)[masks], np.arange(size))
  images = np.concatenate([batch['image'] for batch in batches])[masks]
  np.testing.assert_array_equal(images[:, 1, 1, 2], 255 - np.arange(size))
  assert {len(batch['image']) for batch in batches} == {batch_size}


def test_closing_a_pass_cancels_its_reads(batches):
  source, num_reads, released = make_source(20), 0, threading.Event()

  def read(i: int):
    nonlocal num_reads
    num_reads += 1
    if num_reads > 3 * 8:  # the first batch is yielded once three are read
      released.wait(10)
    return source.read(i)

  stream = train_stream(dataclasses.replace(source, read=read))
  with loader.DataLoader({'train': stream}, make_mesh(8), threads=1) as data_loader:
    first_pass = data_loader.batches('train', 0, 10**9)
    next(first_pass)
    first_pass.close()
    released.set()
    assert_same(read_all(data_loader.batches('train', 0, TOTAL)), batches)
  assert num_reads <= 4 * 8 + TOTAL * 8  # at most the fourth batch was being read
