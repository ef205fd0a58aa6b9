"""Evaluations by their kinds: from a config to open streams, then to metrics."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from vit_jax.config import EvalConfig, OnBadExample, Preprocessing
from vit_jax.data.loading.loader import Stream, open_stream
from vit_jax.data.loading.reader import ReadConfig
from vit_jax.data.sources import Source, check_same_classes, open_source
from vit_jax.distributed import sharding
from vit_jax.distributed.processes import gather_from_all
from vit_jax.errors import UserError
from vit_jax.evaluation import (
  classification,
  feature_cache,
  fewshot,
  frozen_features,
  knn,
  linear_probe,
)
from vit_jax.evaluation.eval_step import make_eval_step
from vit_jax.evaluation.frozen_features import Features
from vit_jax.models import build
from vit_jax.text import format_metric

Batches = Callable[[str], Iterator[Any]]  # from the key of a stream


@dataclasses.dataclass(frozen=True)
class Subject:
  """The model that is evaluated, and how its images are prepared.

  Attributes:
    model: with its head.
    mesh: of devices, with the shardings of the parameters on it.
    class_names: of the head; None if they are unknown.
    image_size, channels, preprocessing: of its images.
    loss: 'softmax' or 'sigmoid'.
    on_bad_example, max_bad_fraction: as in the config of the data.
  """

  model: build.Model
  mesh: Mesh
  param_shardings: Any
  class_names: tuple[str, ...] | None
  image_size: tuple[int, int]
  channels: int
  preprocessing: Preprocessing
  loss: str
  on_bad_example: OnBadExample = 'error'
  max_bad_fraction: float = 1.0

  def _jit(self, step: Callable[..., Any]) -> Any:
    shardings = self.param_shardings, sharding.batch_sharding(self.mesh)
    return jax.jit(step, in_shardings=shardings, out_shardings=sharding.replicated(self.mesh))

  @functools.cached_property
  def eval_step(self) -> Any:
    """(params, batch) -> scores, jitted."""
    return self._jit(make_eval_step(self.model, self.loss))

  @functools.cached_property
  def feature_step(self) -> Any:
    """(params, batch) -> features, jitted."""
    return self._jit(frozen_features.make_feature_step(self.model))

  @property
  def feature_dim(self) -> int:
    shape = (1, *self.image_size, self.channels)
    params = build.abstract_params(self.model, self.image_size, self.channels)
    image = jax.ShapeDtypeStruct(shape, 'float32')
    features = functools.partial(frozen_features.model_features.features, self.model)
    return jax.eval_shape(features, params, image).shape[1]

  def open(self, source: str, split: str, batch_size: int) -> tuple[str, Stream]:
    """Opens a split; returns the key and the stream of its images, preprocessed for the model.

    Raises:
      UserError: for data that cannot be read, or a batch size that the devices do not divide.
    """
    opened = open_source(source, split)
    sharding.check_batch_size(self.mesh, batch_size, 'batch_size')
    config = ReadConfig(
      source,
      split,
      self.image_size,
      channels=self.channels,
      preprocessing=self.preprocessing,
      on_bad_example=self.on_bad_example,
    )
    stream = open_stream(config, batch_size, opened, self.max_bad_fraction)
    return f'{opened.name}, {batch_size}', stream


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What an evaluation computes its metrics from.

  Attributes:
    params: the parameter tree, sharded as in the subject.
    batches: the batches of a stream, by its key.
    features: the features of a stream, by its key.
  """

  params: Any
  batches: Batches
  features: Callable[[str], Features]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What an evaluation found.

  Attributes:
    data: what was scored.
    metrics: by name; shares are in [0, 1].
    result: of a classification, with the names of the classes.
  """

  data: str
  metrics: dict[str, float]
  result: classification.Result | None = None
  class_names: tuple[str, ...] = ()

  def summary(self) -> str:
    """'accuracy 96.67%, loss 0.1503, examples 360'."""
    return ', '.join(format_metric(name, value) for name, value in self.metrics.items())


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """An evaluation whose data is open.

  Attributes:
    name: begins the names of its metrics.
    every: steps between evaluations.
    streams: what it reads, by keys; the same key is the same stream.
    run: computes its outcome.
  """

  name: str
  every: int
  streams: Mapping[str, Stream]
  run: Callable[[Inputs], Outcome]


def check_classes(subject: Subject, source: Source) -> None:
  """Raises `UserError` unless a source has the classes of the model, or as many mere numbers."""
  num_classes = subject.model.num_classes
  is_numbered = source.class_names == tuple(map(str, range(num_classes)))
  if subject.class_names is not None and not is_numbered:
    check_same_classes(subject.class_names, source.class_names, source.name)
  elif source.num_classes != num_classes:
    raise UserError(
      f'{source.name} has {source.num_classes} classes, but the model has {num_classes}.'
    )


def _open_classification(name: str, config: EvalConfig, subject: Subject) -> Evaluation:
  key, stream = subject.open(config.source, config.split, config.batch_size)
  check_classes(subject, stream.reader.source)

  def run(inputs: Inputs) -> Outcome:
    result = classification.evaluate(subject.eval_step, inputs.params, inputs.batches(key))
    source = stream.reader.source
    return Outcome(source.name, result.metrics, result, subject.class_names or source.class_names)

  return Evaluation(name, config.every, {key: stream}, run)


def _score_fewshot(config: EvalConfig, train: Features, test: Features) -> dict[str, float]:
  return fewshot.evaluate(train, test, shots=config.shots)


def _score_knn(config: EvalConfig, train: Features, test: Features) -> dict[str, float]:
  return knn.evaluate(train, test, neighbors=config.neighbors)


def _score_linear_probe(config: EvalConfig, train: Features, test: Features) -> dict[str, float]:
  del config
  return linear_probe.evaluate(train, test)


# Of frozen features: (config, features of train, features of test) -> metrics.
_PROBES = {'fewshot': _score_fewshot, 'knn': _score_knn, 'linear_probe': _score_linear_probe}


def _open_probe(name: str, config: EvalConfig, subject: Subject) -> Evaluation:
  train_key, train = subject.open(config.train_source, config.train_split, config.batch_size)
  test_key, test = subject.open(config.source, config.split, config.batch_size)
  source, other = train.reader.source, test.reader.source
  if source.multi_label:
    raise UserError(f'{source.name} has several labels per image, and {config.kind} needs one.')
  check_same_classes(source.class_names, other.class_names, other.name)

  def run(inputs: Inputs) -> Outcome:
    features = inputs.features(train_key), inputs.features(test_key)
    metrics = _PROBES[config.kind](config, *features)
    return Outcome(f'{other.name}, trained on {source.name}', metrics)

  return Evaluation(name, config.every, {train_key: train, test_key: test}, run)


_KINDS = {'classification': _open_classification} | dict.fromkeys(_PROBES, _open_probe)


def open_evaluations(configs: Mapping[str, EvalConfig], subject: Subject) -> list[Evaluation]:
  """Opens the data of evaluations.

  Raises:
    UserError: for data that cannot be read, or that an evaluation cannot use.
  """
  return [_KINDS[config.kind](name, config, subject) for name, config in configs.items()]


def run_evaluations(
  evaluations: Iterable[Evaluation],
  subject: Subject,
  params: Any,
  batches: Batches,
  settings: Mapping[str, Any] | None = None,
) -> dict[str, Outcome]:
  """Runs evaluations, one after the other; each stream passes through the model once.

  Args:
    evaluations: from `open_evaluations`.
    subject: the model.
    params: the parameter tree, sharded as in the subject.
    batches: of a `DataLoader` that has the streams of the evaluations.
    settings: what features depend on beside parameters and data, as JSON values; with it, they are
      kept on disk.

  Returns:
    Their outcomes, by their names.

  Raises:
    UserError: for data that an evaluation cannot use.
    StoppedError: when the run must stop.
  """
  streams = {key: stream for each in evaluations for key, stream in each.streams.items()}
  digest = None if settings is None else feature_cache.digest_params(params)

  @functools.cache
  def features(key: str) -> Features:
    source, dim = streams[key].reader.source, subject.feature_dim
    rows = frozen_features.extract(subject.feature_step, params, batches(key))
    arrays = None
    if digest is not None:
      cache_key = feature_cache.key(digest, settings or {}, source)
      arrays = feature_cache.load(cache_key)
      if not all(gather_from_all(arrays is not None)):
        arrays = feature_cache.write(cache_key, rows, source.size, dim)
    values, labels = arrays or frozen_features.gather(rows, source.size, dim)
    if not len(labels):
      raise UserError(f'None of the examples of {source.name} can be read.')
    return Features(values, labels, source.num_classes, source.name)

  inputs = Inputs(params, batches, features)
  return {each.name: each.run(inputs) for each in evaluations}
