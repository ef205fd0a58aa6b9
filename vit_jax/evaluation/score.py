"""Scores a loaded model on data, on all devices of all processes."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import tqdm

from vit_jax.classifier import Classifier
from vit_jax.config import EvalConfig, MeshConfig, OnBadExample
from vit_jax.data.loading.loader import DataLoader
from vit_jax.distributed import sharding
from vit_jax.distributed.processes import gather_from_all
from vit_jax.evaluation.classification import keeps_labels
from vit_jax.evaluation.reports.result_files import ResultFiles
from vit_jax.evaluation.subject import Subject
from vit_jax.evaluation.suite import Outcome, open_evaluations, run_evaluations
from vit_jax.models import build

_MAX_CONFUSIONS = 100  # in JSON
_PIXEL_RANGE = (-1, 1)  # to which `scale_pixels` scales the levels 0 to 255


@dataclasses.dataclass(frozen=True)
class Scores:
  """The outcomes of evaluations, and how the images were prepared.

  Attributes:
    model: what was scored.
    outcomes: by the names of the evaluations.
  """

  model: Classifier
  outcomes: dict[str, Outcome]

  def to_json(self) -> dict[str, Any]:
    """JSON values; those of classification on top, those of others under their names."""
    vit = self.model
    report: dict[str, Any] = {
      'image_size': vit.image_size,
      'preprocessing': dataclasses.asdict(vit.preprocessing) | {'pixel_range': _PIXEL_RANGE},
      'dtype': build.dtype_name(vit.model),
    }
    for name, outcome in self.outcomes.items():
      values: dict[str, Any] = {'data': outcome.data, **outcome.metrics}
      if outcome.classes:
        values['classes'] = outcome.classes
      if outcome.result is not None:
        names = outcome.class_names
        values['confusions'] = [
          {'label': names[label], 'top_class': names[other], 'count': count, 'examples': total}
          for label, other, count, total in outcome.result.confusions()[:_MAX_CONFUSIONS]
        ]
      report |= values if name == 'classification' else {name: values}
    return report

  def lines(self) -> Iterator[str]:
    """Lines for a terminal: how images were prepared, then each evaluation."""
    vit = self.model
    height, width = vit.image_size
    yield (
      f'{height}x{width} pixels, {vit.preprocessing.summary()}, scaled to [-1, 1]; '
      f'{build.dtype_name(vit.model)}'
    )
    for name, outcome in self.outcomes.items():
      classes = f', over {outcome.classes}' if outcome.classes else ''
      yield f'{name}, {outcome.data}{classes}: {outcome.summary()}'
      if outcome.result is not None:
        yield from outcome.result.mistakes(outcome.class_names)
        if outcome.source is not None and not keeps_labels(outcome.source):
          yield 'no mean average precision: there are too many labels to keep all scores'


def score(
  vit: Classifier,
  configs: Mapping[str, EvalConfig],
  on_bad_example: OnBadExample = 'error',
  workers: int = 0,
  cache: bool = False,
  files: ResultFiles | None = None,
) -> Scores:
  """Runs evaluations of a model, whose images are preprocessed as it expects.

  Args:
    vit: with or without labels.
    configs: by the names of the evaluations, with all sources, splits and batch sizes set.
    on_bad_example: whether an unreadable image ends the evaluation or is left out.
    workers: reading processes; 0: threads.
    cache: whether frozen features are kept on disk, and those of an earlier call are used.
    files: that are to be written from the outcomes; whether they can be is checked first.

  Raises:
    UserError: for data that cannot be read, or that an evaluation cannot use; for a batch size
      that the devices do not divide.
  """
  mesh = sharding.make_mesh(MeshConfig())
  subject = Subject(
    build.for_mesh(vit.model, mesh, sharding.BATCH_AXES),
    mesh,
    jax.tree.map(lambda _: sharding.replicated(mesh), vit.params),
    None if vit.labels is None else tuple(vit.labels),
    vit.image_size,
    vit.channels,
    vit.preprocessing,
    vit.loss,
    on_bad_example,
  )
  evaluations = open_evaluations(configs, subject)
  if files is not None:
    files.check_data(evaluations)
  streams = {key: stream for each in evaluations for key, stream in each.streams.items()}
  params = jax.device_put(vit.params, subject.param_shardings)
  settings = None
  if all(gather_from_all(cache)):
    settings = {
      'model': repr(vit.model),
      'image_size': vit.image_size,
      'preprocessing': dataclasses.asdict(vit.preprocessing),
      'on_bad_example': on_bad_example,
    }
  with DataLoader(streams, mesh, workers) as loader:

    def batches(key: str) -> Any:
      hidden = None if jax.process_index() == 0 else True
      total = streams[key].num_batches
      return tqdm.tqdm(loader.batches(key), key, total, unit='batch', leave=False, disable=hidden)

    return Scores(vit, run_evaluations(evaluations, subject, params, batches, settings))
