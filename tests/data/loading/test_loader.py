"""The order of examples: a pure function of seed and step; test batches: every example once."""

import dataclasses
import tracemalloc

import jax
import ml_collections
import numpy as np
import pytest
from jax.sharding import Mesh

from vit_jax.data.decoding.images import LazyImage
from vit_jax.data.loading import loader
from vit_jax.data.loading.reader import Reader
from vit_jax.data.sources import Source, open_source
from vit_jax.distributed import sharding as mesh_lib
from vit_jax.errors import UserError

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason='written for eight devices')

TOTAL = 10


def make_mesh(*sizes: int) -> Mesh:
  axes = dict(zip(('data', 'fsdp', 'tensor'), sizes, strict=True)) | {'num_slices': 1}
  return mesh_lib.make_mesh(ml_collections.ConfigDict(axes))


def make_source(size: int) -> Source:
  """Example i is an image of i, with label i."""

  def read(i: int):
    assert 0 <= i < size
    return np.full((2, 2, 3), i, np.uint8), np.int32(i)

  return Source('numbers', size, read, tuple(map(str, range(size))))


def noise(picture: LazyImage, rng: np.random.Generator) -> np.ndarray:
  """Keeps the first row, the second is random."""
  first = picture.pixels(None)[:1]
  return np.concatenate([first, rng.integers(0, 256, (1, 2, 3), dtype=np.uint8)])


def read_all(batches) -> list[dict[str, np.ndarray]]:
  return [jax.device_get(batch) for batch in batches]


def train_stream(source: Source, seed: int = 0, batch_size: int = 8) -> loader.Stream:
  reader = Reader(source, noise, (2, 2, 3), seed)
  return loader.Stream(reader, batch_size, loader.example_order(source, seed))


def train(
  size=20, mesh=(8, 1, 1), seed=0, batch_size=8, first_step=0, total_steps=TOTAL, threads=4
):
  stream = train_stream(make_source(size), seed, batch_size)
  with loader.DataLoader({'train': stream}, make_mesh(*mesh), threads=threads) as feed:
    return read_all(feed.batches('train', first_step, total_steps))


def read_tests(source, mesh, batch_size=8, transform=lambda picture, rng: picture.pixels(None)):
  stream = loader.Stream(Reader(source, transform, (2, 2, 3)), batch_size)
  with loader.DataLoader({'test': stream}, mesh) as feed:
    return read_all(feed.batches('test'))


def assert_same(one, two):
  assert len(one) == len(two)
  jax.tree.map(np.testing.assert_array_equal, one, two)


def labels(batches) -> np.ndarray:
  return np.concatenate([batch['label'] for batch in batches])


@pytest.fixture(scope='module')
def batches():
  return train()


def test_batches_have_their_shapes(batches):
  assert len(batches) == TOTAL
  for batch in batches:
    assert (batch['image'].shape, batch['image'].dtype) == ((8, 2, 2, 3), np.uint8)
    assert (batch['label'].shape, batch['label'].dtype) == ((8,), np.int32)
    np.testing.assert_array_equal(batch['image'][:, 0, 0, 0], batch['label'])


@pytest.mark.parametrize('step', [1, 3, TOTAL - 1, TOTAL])
def test_starting_later_gives_the_same_batches(step, batches):
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
def test_execution_changes_no_batch(fields, batches):
  assert_same(train(**fields)[:TOTAL], batches)


def test_batch_size_only_cuts_the_sequence_elsewhere(batches):
  larger = train(batch_size=16, total_steps=TOTAL // 2)
  for name in ('image', 'label'):
    one, two = (np.concatenate([b[name] for b in some]) for some in (batches, larger))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize('size', [20, 8, 3, 77])
def test_each_epoch_visits_every_example_once(size):
  found = labels(train(size=size, total_steps=20))
  epochs = [found[i : i + size] for i in range(0, len(found) - size + 1, size)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(size))
  if size > 3:
    assert not np.array_equal(epochs[0], np.arange(size))
    assert not np.array_equal(epochs[0], epochs[1])


JFT = open_source('synthetic:jft', 'train')


@pytest.mark.parametrize('step', [0, 1, 500_000])
def test_the_order_of_300_million_examples_costs_nothing(step):
  tracemalloc.start()
  order = loader.example_order(JFT, 7)
  found = [order[step * 4096 + i] for i in range(4096)]
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 1e6  # bytes
  assert len(set(found)) == 4096
  assert 0 <= min(found) < 1e6 and JFT.size - 1e6 < max(found) < JFT.size  # from all over it


def test_an_epoch_of_300_million_ends_where_the_next_begins():
  order = loader.example_order(JFT, 7)
  before, after = (
    {order[position] for position in range(start, start + 5000)}
    for start in (JFT.size - 5000, JFT.size)
  )
  first = {order[position] for position in range(5000)}
  assert len(before) == len(after) == len(first) == 5000
  assert not before & first  # of one permutation
  assert after != first  # another one


def test_a_large_epoch_visits_every_example_once():
  size = 200_003
  order = loader.example_order(dataclasses.replace(JFT, size=size), 1)
  found = np.array([order[position] for position in range(size, 2 * size)])
  assert (np.bincount(found, minlength=size) == 1).all()


def test_a_mixture_is_drawn_in_proportion_and_each_part_once_an_epoch():
  mixture = dataclasses.replace(make_source(100), component_sizes=(60, 40), weights=(3.0, 1.0))
  order = loader.example_order(mixture, 0)
  found = np.array([order[position] for position in range(800)])
  for start in range(0, 800, 80):
    assert abs((found[start : start + 80] < 60).sum() - 60) <= 1
  first, second = found[found < 60], found[found >= 60]
  for part, size in ((first, 60), (second, 40)):
    epochs = part[: len(part) // size * size].reshape(-1, size)
    assert len(epochs) > 1 and all(len(set(epoch)) == size for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


def test_seeds_change_order_and_augmentation(batches):
  other = train(seed=1)
  assert not np.array_equal(labels(batches), labels(other))
  same, another = (train(size=1, seed=seed, total_steps=2) for seed in (0, 1))
  assert not np.array_equal(same[0]['image'], another[0]['image'])


def test_every_visit_of_an_example_is_augmented_anew():
  found = np.concatenate([batch['image'][:, 1] for batch in train(size=1, total_steps=4)])
  assert len({image.tobytes() for image in found}) == 32


def test_multi_hot_labels_pass_through():
  source = make_source(5)
  eye = np.eye(5, dtype=np.uint8)
  multi = Source('x', 5, lambda i: (source.read(i)[0], eye[i]), source.class_names, True)
  with loader.DataLoader({'train': train_stream(multi)}, make_mesh(8, 1, 1)) as feed:
    batch = next(feed.batches('train', 0, 1))
  assert (batch['label'].shape, batch['label'].dtype) == ((8, 5), np.uint8)


def test_an_error_while_reading_reaches_the_user():
  def read(i: int):
    raise UserError('cats/7.jpg cannot be read as an image.')

  broken = Source('x', 5, read, ('a', 'b'))
  mesh = make_mesh(8, 1, 1)
  with loader.DataLoader({'train': train_stream(broken)}, mesh) as feed:
    with pytest.raises(UserError, match='cats/7.jpg'):
      next(feed.batches('train', 0, 2))
  with pytest.raises(UserError, match='cats/7.jpg'):
    read_tests(broken, mesh)


@pytest.mark.parametrize('size', [1, 7, 8, 9, 16, 29])
@pytest.mark.parametrize(('batch_size', 'mesh'), [(8, (8, 1, 1)), (16, (2, 2, 2)), (6, (1, 2, 4))])
def test_test_batches_cover_every_example_once(size, batch_size, mesh):
  found = read_tests(
    make_source(size), make_mesh(*mesh), batch_size, lambda picture, rng: 255 - picture.pixels(None)
  )
  assert len(found) == -(-size // batch_size)
  masks = np.concatenate([batch['mask'] for batch in found])
  assert masks.dtype == bool
  np.testing.assert_array_equal(masks, np.arange(len(found) * batch_size) < size)
  np.testing.assert_array_equal(labels(found)[masks], np.arange(size))
  images = np.concatenate([batch['image'] for batch in found])[masks]
  np.testing.assert_array_equal(images[:, 1, 1, 2], 255 - np.arange(size))
  assert {len(batch['image']) for batch in found} == {batch_size}
