"""The pictures of a report are what the model gets, and what it gets wrong."""

import base64
import io

import jax
import numpy as np
import pytest
from PIL import Image

from vit_jax.config import DataConfig, MeshConfig, StepConfig
from vit_jax.config.fields import replace_fields
from vit_jax.data.loading.loader import DataLoader, open_streams
from vit_jax.data.sources import open_source
from vit_jax.distributed import sharding
from vit_jax.evaluation.classification import ExampleScores, Result
from vit_jax.training import report_pictures
from vit_jax.training.step import draw_batch


class Model:
  """What drawing a batch needs of a model."""

  num_classes = 10


def open_digits(batch_size=24, **fields):
  config = replace_fields(DataConfig(image_size=8), {'augment.rotate': 20.0, **fields})
  train, test = open_source('digits', 'train'), open_source('digits', 'test')
  return open_streams(config, train, test, batch_size, 24, seed=3)


def pixels(picture) -> np.ndarray:
  content = base64.b64decode(picture.uri.partition(',')[2])
  return np.asarray(Image.open(io.BytesIO(content)))


def batch_of(streams, step):
  with DataLoader(streams, sharding.make_mesh(MeshConfig()), threads=1) as loader:
    return jax.device_get(next(iter(loader.batches('train', step, step + 1))))


@pytest.mark.parametrize('skip', [(), ((5, 9),)])
def test_the_first_batch_is_that_of_the_run(skip):
  streams = open_digits(skip_batches=skip)
  shown = report_pictures.first_batch(streams['train'], Model(), StepConfig(), first_step=7)
  batch = batch_of(streams, 7)
  assert shown.step == 8 and len(shown.pictures) == 16
  for i, picture in enumerate(shown.pictures, start=1):  # the first one has no partner to mix with
    np.testing.assert_array_equal(pixels(picture), batch['image'][i])
    assert picture.labels == [(str(batch['label'][i]), 1.0)]


@pytest.mark.parametrize('batch_size', [8, 16, 24])
@pytest.mark.parametrize('fields', [{'mixup_alpha': 0.8}, {'cutmix_alpha': 1.0}])
def test_mixed_images_are_those_of_the_step(batch_size, fields):
  streams, step = open_digits(batch_size), StepConfig(batch_size=batch_size, seed=5, **fields)
  shown = report_pictures.first_batch(streams['train'], Model(), step, first_step=2)
  key = jax.random.fold_in(jax.random.key(5), 2)
  mixed, _ = jax.device_get(draw_batch(batch_of(streams, 2), Model(), step, key))
  first = 1 if batch_size > 16 else 0
  assert len(shown.pictures) == min(batch_size, 16)
  for i, picture in enumerate(shown.pictures, start=first):
    np.testing.assert_allclose(pixels(picture), mixed['image'][i], atol=0.51)
    assert sum(weight for _, weight in picture.labels) == pytest.approx(1)
    for name, weight in picture.labels:
      assert weight == pytest.approx(mixed['label'][i][int(name)])


def make_result(wrong: dict[int, float]) -> Result:
  """Of all test digits, of which those of these probabilities are taken for another class."""
  labels = open_source('digits', 'test').labels()
  index = np.arange(len(labels))
  correct = ~np.isin(index, list(wrong))
  confidence = np.float32([wrong.get(i, 0.99) for i in index])
  top = np.where(correct, labels, (labels + 1) % 10).astype(np.int32)
  rows = ExampleScores(index, top, correct, correct, confidence, confidence, label=labels)
  return Result(len(index), int(correct.sum()), 0.0, {}, rows=rows)


def test_mistakes_are_the_most_confident_ones():
  test = open_digits()['test']
  wrong = {i: i / 1000 for i in range(3, 300, 7)}
  shown = report_pictures.mistakes(test, make_result(wrong), 9)
  expected = sorted(wrong, reverse=True)[:16]
  assert shown.step == 9 and f'{len(wrong)} of 360 test examples are wrong' in shown.note
  for picture, index in zip(shown.pictures, expected, strict=True):
    image, label = test.reader.source.read(index)
    assert picture.name == f'digits (test), example {index}'
    assert picture.labels == [(str(label), 1.0)]
    name, probability = picture.predicted
    assert name == str((label + 1) % 10) and probability == pytest.approx(index / 1000)
    assert pixels(picture).shape == (8, 8, 3)


def test_no_mistakes():
  assert report_pictures.mistakes(open_digits()['test'], make_result({}), 1).pictures == []


def test_several_labels_and_other_channels():
  assert report_pictures._labels(np.uint8([0, 1, 1]), 'abc') == [('b', 1.0), ('c', 1.0)]
  for channels in (1, 4, 6):
    uri = report_pictures._uri(np.full((300, 200, channels), 7, np.uint8))
    assert uri.startswith('data:image/jpeg;base64,')
