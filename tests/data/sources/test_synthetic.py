"""Synthetic data sets: size, determinism, Zipf's law, and that they can be learned."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers import SANDBOX
from vit_jax.data import imagenet
from vit_jax.data.decoding.images import check_image, open_image
from vit_jax.data.sources import open_source
from vit_jax.data.sources.synthetic import DATASETS
from vit_jax.errors import UserError

MILLION = 1_000_000


def mean_colors(source, i: int) -> np.ndarray:
  """Reduces an image to 8 x 8 mean colors."""
  pixels = open_image(source.read(i)[0], source.describe(i)).pixels(None)
  height, width = (8 * (n // 8) for n in pixels.shape[:2])
  blocks = pixels[:height, :width].reshape(8, height // 8, 8, width // 8, 3)
  return blocks.mean((1, 3)).ravel()


def test_jft_has_its_size():
  source = open_source('synthetic:jft', 'train')
  assert (source.size, source.num_classes, source.multi_label) == (303 * MILLION, 18_291, True)
  image, label = source.read(source.size - 1)
  check_image(image, 'the last one')
  assert (label.shape, label.dtype) == ((18_291,), np.uint8)
  assert open_source('synthetic:jft', 'train[-3:]').read(2)[0] == image


@pytest.mark.parametrize(
  ('name', 'split', 'size'),
  [
    ('imagenet21k', 'train', 14_197_122),
    ('imagenet', 'train', 1_281_167),
    ('imagenet', 'validation', 50_000),
    ('imagenet', 'test', 50_000),
    ('jft', 'test', 50_000),
  ],
)
def test_data_sets_have_their_sizes(name, split, size):
  source = open_source(f'synthetic:{name}', split)
  assert (source.size, source.num_classes) == (size, DATASETS[name].num_classes)
  label = source.read(7)[1]
  assert label.shape == ((DATASETS[name].num_classes,) if source.multi_label else ())


@pytest.mark.parametrize(('name', 'version'), [('imagenet', '1k'), ('imagenet21k', '21k')])
def test_classes_are_called_like_those_of_imagenet(name, version):
  names = open_source(f'synthetic:{name}', 'train').class_names
  assert names == imagenet.class_names(imagenet.synsets(version))


def test_the_classes_of_jft_have_numbers():
  names = open_source('synthetic:jft', 'train').class_names
  assert (names[0], names[-1]) == ('class 0', 'class 18290')


def test_images_have_the_sizes_of_photographs():
  source = open_source('synthetic:jft', 'train')
  read = [source.read(i * MILLION)[0] for i in range(90)]
  read += [source.read(2**power)[0] for power in range(5, 25, 2)]
  shapes = {open_image(image, '').pixels(None).shape for image in read}
  assert len(shapes) > 50
  assert all(224 <= min(h, w) <= max(h, w) <= 448 and c == 3 for h, w, c in shapes)
  sizes = np.array([len(image) for image in read])
  assert 10_000 < np.median(sizes) < 40_000
  assert len({hashlib.sha256(image).digest() for image in read}) == 100


def test_an_image_depends_only_on_data_set_split_and_index():
  code = """
import hashlib
from vit_jax.data.sources import open_source
digest = hashlib.sha256()
for i in range(3):
  image, label = open_source('synthetic:jft', 'train').read(299_999_999 - i)
  digest.update(image + label.tobytes())
print(digest.hexdigest())
"""
  run = [sys.executable, '-c', code]
  other_process = subprocess.run(
    run, cwd=SANDBOX, capture_output=True, text=True, check=True
  ).stdout
  digest = hashlib.sha256()
  source = open_source('synthetic:jft', 'train')
  source.read(0)  # earlier reads change nothing
  for i in range(3):
    image, label = source.read(299_999_999 - i)
    digest.update(image + label.tobytes())
  assert digest.hexdigest() == other_process.strip()
  test = open_source('synthetic:jft', 'test')
  assert test.read(5)[0] != source.read(5)[0] != source.read(6)[0]
  splits = ('train', 'validation', 'test')
  train, validation, test = (open_source('synthetic:imagenet', s).read(5)[0] for s in splits)
  assert train != validation == test


def test_labels_follow_zipfs_law(monkeypatch):
  monkeypatch.setattr('vit_jax.data.sources.synthetic._draw', lambda *args: b'')
  source = open_source('synthetic:jft', 'train')
  images = 20_000
  counts = np.zeros(source.num_classes, np.int64)
  for i in range(images):
    counts += source.read(i * 15_149 + 3)[1]
  law = 1 / np.arange(1, source.num_classes + 1)
  law /= law.sum()
  labels = counts.sum()
  assert 1.24 < labels / images < 1.27  # JFT has 1.26; drawing a class twice gives one label
  expected = labels * law
  edges = [0, 1, 2, 5, 10, 100, 1000, source.num_classes]
  for first, last in zip(edges, edges[1:], strict=False):
    wanted = expected[first:last].sum()
    assert abs(counts[first:last].sum() - wanted) < 5 * wanted**0.5 + 0.02 * wanted, first


def test_imagenet_has_equally_frequent_classes(monkeypatch):
  monkeypatch.setattr('vit_jax.data.sources.synthetic._draw', lambda *args: b'')
  source = open_source('synthetic:imagenet', 'train')
  counts = np.bincount([source.read(i)[1] for i in range(20_000)], minlength=1000)
  assert counts.min() > 1 and counts.max() < 45  # 20 on average


def test_the_classes_can_be_learned():
  """Nearest neighbors on 8 x 8 pixels separate the 20 most frequent classes of test images."""

  def examples(split, count):
    source, images, labels, i = open_source('synthetic:jft', split), [], [], 0
    while len(images) < count:
      label = np.flatnonzero(source.read(i)[1])
      if len(label) == 1 and label[0] < 20:
        images.append(mean_colors(source, i))
        labels.append(label[0])
      i += 1
    return np.array(images), np.array(labels)

  images, labels = examples('train', 400)
  test_images, test_labels = examples('test', 100)
  distances = ((test_images[:, None] - images) ** 2).sum(-1)
  accuracy = (labels[distances.argmin(1)] == test_labels).mean()
  most_frequent = (test_labels == 0).mean()
  assert accuracy > 0.8 > 2 * most_frequent, (accuracy, most_frequent)


@pytest.mark.parametrize(
  ('spec', 'split', 'message'),
  [
    (
      'synthetic:coco',
      'train',
      'synthetic:coco is not a synthetic data set; choose one of jft, imagenet21k',
    ),
    ('synthetic:jft', 'dev', "synthetic:jft has the splits train, test, not 'dev'"),
  ],
)
def test_an_unknown_data_set_or_split_is_an_error_of_one_sentence(spec, split, message):
  with pytest.raises(UserError, match=message):
    open_source(spec, split)
