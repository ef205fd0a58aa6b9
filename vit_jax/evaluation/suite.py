"""Evaluations by their kinds: from a config to open streams, then to metrics."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from vit_jax.config import EvalConfig
from vit_jax.data.loading.loader import Stream
from vit_jax.data.sources import Source, check_same_classes
from vit_jax.distributed.processes import gather_from_all
from vit_jax.errors import UserError
from vit_jax.evaluation import class_subset, classification, real
from vit_jax.evaluation.probes import feature_cache, fewshot, frozen_features, knn, linear_probe
from vit_jax.evaluation.probes.frozen_features import Features
from vit_jax.evaluation.subject import Subject
from vit_jax.evaluation.zero_shot import read_class_embeddings
from vit_jax.text import format_metric

Batches = Callable[[str], Iterator[Any]]  # from the key of a stream


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
    classes: which outputs of the model were scored; '' if all, or none.
    result: of a classification.
    rows: the scores of each example, and their source, where it has labels of the model's classes.
    class_names: of the rows.
  """

  data: str
  metrics: dict[str, float]
  classes: str = ''
  result: classification.Result | None = None
  rows: classification.ExampleScores | None = None
  source: Source | None = None
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


def _open_classification(name: str, config: EvalConfig, subject: Subject) -> Evaluation:
  labels = 'real' if config.kind == 'real' else ''
  key, stream = subject.open(config.source, config.split, config.batch_size, labels)
  source = stream.reader.source
  outputs = subject.find_outputs(source)
  eval_step = subject.eval_step(outputs)
  names = subject.class_names
  outcome = Outcome(
    source.name,
    {},
    class_subset.describe_outputs(outputs, subject.model.num_classes),
    source=source,
    class_names=source.class_names if names is None else tuple(names[i] for i in outputs),
  )

  def run(inputs: Inputs) -> Outcome:
    if config.kind == 'real':
      metrics, rows = real.evaluate(eval_step, inputs.params, inputs.batches(key))
      return dataclasses.replace(outcome, metrics=metrics, rows=rows)
    result = classification.evaluate(eval_step, inputs.params, inputs.batches(key))
    return dataclasses.replace(outcome, metrics=result.metrics, result=result, rows=result.rows)

  return Evaluation(name, config.every, {key: stream}, run)


def _open_zero_shot(name: str, config: EvalConfig, subject: Subject) -> Evaluation:
  classes = read_class_embeddings(config.class_embeddings)
  key, stream = subject.open(config.source, config.split, config.batch_size)
  source, count = stream.reader.source, len(classes.embeddings)
  outputs = class_subset.find_outputs(classes.names, count, source)
  step = subject.zero_shot_step(classes.select(outputs))
  described = class_subset.describe_outputs(outputs, count)

  def run(inputs: Inputs) -> Outcome:
    result = classification.evaluate(step, inputs.params, inputs.batches(key))
    of_result = result, result.rows, source, source.class_names
    return Outcome(source.name, result.metrics, described, *of_result)

  return Evaluation(name, config.every, {key: stream}, run)


def _score_knn(config: EvalConfig, train: Features, test: Features) -> dict[str, float]:
  return knn.evaluate(train, test, neighbors=config.neighbors)


def _score_linear_probe(config: EvalConfig, train: Features, test: Features) -> dict[str, float]:
  del config
  return linear_probe.evaluate(train, test)


# Of frozen features: (config, features of train, features of test) -> metrics.
_PROBES = {'knn': _score_knn, 'linear_probe': _score_linear_probe}


def _check_size(config: EvalConfig, train: Source) -> None:
  """Raises `UserError` for too few examples, as far as that is known before they are read."""
  if config.kind == 'knn':
    knn.check_neighbors(train.size, config.neighbors, train.name)
  if config.kind == 'fewshot' and train.labels is not None:
    fewshot.check_shots(train.labels(), train.num_classes, config.shots, train.name)


def _draw(
  config: EvalConfig, train: Source, test: Source, subject: Subject
) -> fewshot.Drawn | None:
  """The few examples that a few-shot evaluation needs; None where it needs all of the split.

  That is so if labels or bad examples are met in reading only, or if the penalty is chosen on the
  other examples. Of equal splits all are compared, and refused.
  """
  if config.kind != 'fewshot' or not config.l2 or subject.on_bad_example != 'error':
    return None
  labels = None if train.labels is None else train.labels()
  if labels is None or labels.min(initial=0) < 0 or train.name == test.name:
    return None
  return fewshot.draw(labels, train.num_classes, config.shots)


def _open_probe(name: str, config: EvalConfig, subject: Subject) -> Evaluation:
  train_key, train = subject.open(config.train_source, config.train_split, config.batch_size)
  test_key, test = subject.open(config.source, config.split, config.batch_size)
  source, other = train.reader.source, test.reader.source
  if source.multi_label:
    raise UserError(f'{source.name} has several labels per image, and {config.kind} needs one.')
  check_same_classes(source.class_names, other.class_names, other.name)
  _check_size(config, source)
  drawn = _draw(config, source, other, subject)
  if drawn is not None:
    train_key = f'{train_key}, of {config.shots} shots'
    train = dataclasses.replace(train, rows=tuple(drawn.rows.tolist()))

  def run(inputs: Inputs) -> Outcome:
    features = inputs.features(train_key), inputs.features(test_key)
    if config.kind == 'fewshot':
      l2 = config.l2 or None
      metrics = fewshot.evaluate(*features, shots=config.shots, l2=l2, drawn=drawn)
    else:
      metrics = _PROBES[config.kind](config, *features)
    return Outcome(f'{other.name}, trained on {source.name}', metrics)

  return Evaluation(name, config.every, {train_key: train, test_key: test}, run)


_KINDS = {
  'classification': _open_classification,
  'real': _open_classification,
  'zero_shot': _open_zero_shot,
  **dict.fromkeys(('fewshot', *_PROBES), _open_probe),
}


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
    stream, dim = streams[key], subject.feature_dim
    source, size = stream.reader.source, stream.size
    rows = frozen_features.extract(subject.feature_step, params, batches(key))
    arrays = None
    if digest is not None:
      cache_key = feature_cache.key(digest, settings or {}, source, stream.rows)
      arrays = feature_cache.load(cache_key)
      if not all(gather_from_all(arrays is not None)):
        arrays = feature_cache.write(cache_key, rows, size, dim)
    values, labels = arrays or frozen_features.gather(rows, size, dim)
    if not len(labels):
      raise UserError(f'None of the examples of {source.name} can be read.')
    return Features(values, labels, source.num_classes, source.name)

  inputs = Inputs(params, batches, features)
  return {each.name: each.run(inputs) for each in evaluations}
