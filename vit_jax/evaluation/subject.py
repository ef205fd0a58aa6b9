"""The model that is evaluated: its jitted steps, and its data, preprocessed for it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from vit_jax.compiler import compiler_options
from vit_jax.config import OnBadExample, Preprocessing
from vit_jax.data.loading.loader import Stream, open_stream
from vit_jax.data.loading.reader import ReadConfig
from vit_jax.data.sources import Source
from vit_jax.distributed import sharding
from vit_jax.errors import UserError
from vit_jax.evaluation import class_subset
from vit_jax.evaluation.eval_step import make_eval_step
from vit_jax.evaluation.probes import frozen_features
from vit_jax.evaluation.zero_shot import ClassEmbeddings
from vit_jax.models import build


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
    return jax.jit(
      step,
      in_shardings=(self.param_shardings, sharding.batch_sharding(self.mesh)),
      out_shardings=sharding.replicated(self.mesh),
      compiler_options=compiler_options(self.mesh.devices.flat[0].platform),
    )

  @functools.cached_property
  def _eval_steps(self) -> dict[tuple[int, ...], Any]:
    return {}

  def eval_step(self, outputs: tuple[int, ...]) -> Any:
    """(params, batch) -> scores, jitted; of these outputs of the model, in this order."""
    if outputs not in self._eval_steps:
      subset = None if outputs == tuple(range(self.model.num_classes)) else outputs
      self._eval_steps[outputs] = self._jit(make_eval_step(self.model, self.loss, subset))
    return self._eval_steps[outputs]

  def zero_shot_step(self, classes: ClassEmbeddings) -> Any:
    """(params, batch) -> scores, jitted; by the cosines of outputs and class embeddings.

    Raises:
      UserError: if the outputs have another number of features.
    """
    dim, width = self.model.num_classes or self.feature_dim, classes.embeddings.shape[1]
    if dim != width:
      raise UserError(
        f'The class embeddings have {width:,} features, but those of the model {dim:,}; take those '
        'of its own text tower.'
      )
    return self._jit(make_eval_step(self.model, classes.loss, to_logits=classes.logits))

  def find_outputs(self, source: Source) -> tuple[int, ...]:
    """Those of the classes of a source; raises `UserError` if it has others, or no head."""
    if not self.model.num_classes:
      raise UserError(
        'The model has no head, so it cannot be scored by classes; evaluate its features with '
        '--eval=knn,linear_probe.'
      )
    return class_subset.find_outputs(self.class_names, self.model.num_classes, source)

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

  def open(
    self, source: str, split: str, batch_size: int, labels: Literal['', 'real'] = ''
  ) -> tuple[str, Stream]:
    """Opens a split; returns the key and the stream of its images, preprocessed for the model.

    `labels` is as in `ReadConfig`.

    Raises:
      UserError: for data that cannot be read, or a batch size that the devices do not divide.
    """
    sharding.check_batch_size(self.mesh, batch_size, 'batch_size')
    config = ReadConfig(
      source,
      split,
      self.image_size,
      channels=self.channels,
      preprocessing=self.preprocessing,
      on_bad_example=self.on_bad_example,
      labels=labels,
    )
    opened = config.open()
    stream = open_stream(config, batch_size, opened, self.max_bad_fraction)
    return f'{opened.name}, {batch_size}', stream
