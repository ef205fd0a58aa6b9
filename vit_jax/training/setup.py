"""What a run checks and prepares before its first step."""

import dataclasses
import math
import os
import secrets
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from vit_jax import config as config_lib
from vit_jax.checkpoints.fit import RESIZE_METHODS, Report
from vit_jax.checkpoints.saving import check_replaceable, real_path
from vit_jax.checkpoints.training import has_checkpoint
from vit_jax.classifier import load_params
from vit_jax.data.loader import Stream, open_stream
from vit_jax.data.reader import Recipe
from vit_jax.data.sources import Source
from vit_jax.data.transforms import Augmentation
from vit_jax.data.workers import num_cores
from vit_jax.errors import UserError, first_line
from vit_jax.models import build
from vit_jax.models.vit import VisionTransformer
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.parallel import processes
from vit_jax.training.losses import LOSSES
from vit_jax.training.program import Program

_MOST_WORKERS = 16  # by default: a host may run several processes that each start so many
_POSITIVE = (lambda x: 0 < x < math.inf, 'positive')
_NOT_NEGATIVE = (lambda x: 0 <= x < math.inf, 'zero or positive')
_RATE = (lambda x: 0 <= x < 1, 'at least 0 and less than 1')
_RANGES = {
    **dict.fromkeys(
        ('total_steps', 'batch_size', 'accumulation_steps', 'log_every', 'checkpoint.keep',
         'model.patch_size', 'optimizer.epsilon', 'schedule.timescale',
         'model.layer_norm_epsilon', 'data.channels'), _POSITIVE),
    **dict.fromkeys(
        ('eval_batch_size', 'epochs', 'eval_every', 'checkpoint.every', 'model.width',
         'model.depth', 'model.mlp_dim', 'model.num_heads', 'model.pre_logits',
         'model.resnet_width', 'data.threads', 'optimizer.weight_decay', 'optimizer.clip_norm',
         'schedule.learning_rate', 'schedule.end', 'schedule.cooldown_steps', 'mixup_alpha',
         'cutmix_alpha'), _NOT_NEGATIVE),
    **dict.fromkeys(
        ('polyak_decay', 'label_smoothing', 'model.dropout_rate', 'model.attention_dropout_rate',
         'model.stochastic_depth_rate', 'optimizer.b1', 'optimizer.b2'), _RATE),
    'seed': (lambda x: 0 <= x < 2**32, 'at least 0 and less than 2^32'),
    'data.most_bad': (lambda x: 0 <= x <= 1, 'at least 0 and at most 1'),
    'data.workers': (lambda x: x >= -1, 'at least 0, or -1 for one a core'),
    'data.crop_fraction': (lambda x: 0.01 <= x <= 1, 'at least 0.01 and at most 1'),
}  # fmt: skip


def with_steps(config: ml_collections.ConfigDict, size: int) -> ml_collections.ConfigDict:
  """The config with the steps that its epochs mean for `size` training examples.

  Raises:
    UserError: when both or neither are given.
  """
  if (config.total_steps > 0) == (0 < config.epochs < math.inf):
    raise UserError(
        f'config.total_steps is {config.total_steps} and config.epochs {config.epochs}; one of '
        'them must be positive, the other 0.'
    )
  config = config.copy_and_resolve_references()
  with config.unlocked():
    if config.epochs > 0:
      config.total_steps = max(round(config.epochs * size / max(config.batch_size, 1)), 1)
      config.epochs = 0.0
    tenth = max(config.total_steps // 10, 1)
    config.eval_every = config.eval_every or tenth
    config.checkpoint.every = config.checkpoint.every or tenth
  return config


def check_config(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> None:
  """Raises `UserError` for values that cannot work, before anything is read or written."""
  if config.loss not in LOSSES:
    raise UserError(f'config.loss is {config.loss!r}; choose one of {", ".join(LOSSES)}.')
  if config.position_resize not in RESIZE_METHODS:
    raise UserError(
        f'config.position_resize is {config.position_resize!r}; choose one of '
        f'{", ".join(RESIZE_METHODS)}.'
    )
  for name, value in config_lib.flat_fields(config).items():
    if name in _RANGES and not _RANGES[name][0](value):
      raise UserError(f'config.{name} is {value}; it must be {_RANGES[name][1]}.')
  mesh_lib.check_batch_size(mesh, config.batch_size, 'config.batch_size')
  if config.batch_size % config.accumulation_steps:
    raise UserError(
        f'config.batch_size is {config.batch_size}, which config.accumulation_steps '
        f'({config.accumulation_steps}) does not divide.'
    )
  micro = config.batch_size // config.accumulation_steps
  mesh_lib.check_batch_size(mesh, micro, 'the micro-batch (batch_size / accumulation_steps)')
  mesh_lib.check_batch_size(
      mesh, config.eval_batch_size or config.batch_size, 'config.eval_batch_size'
  )
  Augmentation(**config.data.augment).check_channels(config.data.channels)
  size = config_lib.image_size(config.data.image_size)
  model = build.model_from_config(config.model, num_classes=1)
  build.check_image_size(size, model, 'config.data.image_size')
  _check_tensor_axis(model, mesh.shape['tensor'])


def _check_tensor_axis(model: build.Model, parts: int) -> None:
  """Heads and MLP are what the tensor axis splits."""
  if parts == 1:
    return
  if not isinstance(model, VisionTransformer):
    raise UserError(f'config.mesh.tensor is {parts}, but a ResNet has no heads to split; set 1.')
  for what, size in (('num_heads', model.num_heads), ('mlp_dim', model.mlp_dim)):
    if size % parts:
      raise UserError(
          f'config.model.{what} is {size}, which config.mesh.tensor ({parts}) does not divide.'
      )


def check_num_classes(num_classes: int, train: Source) -> None:
  """Raises `UserError` unless the data has as many classes as the config says (0: any)."""
  if num_classes not in (0, train.num_classes):
    raise UserError(
        f'config.data.num_classes is {num_classes}, but {train.name} has {train.num_classes} '
        'classes; --config.data.num_classes=0 takes any number.'
    )


def open_streams(
    config: ml_collections.ConfigDict, train: Source, test: Source
) -> dict[str, Stream]:
  """What is read for training and for tests: {'train', 'test'}."""
  data = config.data
  recipe = Recipe(
      data.train.source,
      data.train.split,
      config_lib.image_size(data.image_size),
      seed=config.seed,
      channels=data.channels,
      augment=data.augment.to_dict(),
      on_bad_example=data.on_bad_example,
  )
  tests = dataclasses.replace(
      recipe,
      source=data.test.source,
      split=data.test.split,
      augment=None,
      crop_fraction=data.crop_fraction,
  )
  test_batch_size = config.eval_batch_size or config.batch_size
  return {
      'train': open_stream(recipe, config.batch_size, train, data.most_bad),
      'test': open_stream(tests, test_batch_size, test, data.most_bad),
  }


def num_workers(config: ml_collections.ConfigDict) -> int:
  """How many processes read the data: by default one a core, none for data in memory."""
  if config.data.workers >= 0:
    return config.data.workers
  is_in_memory = config.data.train.source == 'digits'
  return 0 if is_in_memory or os.name != 'posix' else min(num_cores(), _MOST_WORKERS)


def find_workdir(workdir: epath.PathLike) -> epath.Path:
  """The workdir as an absolute path; it need not exist, but must be reachable.

  Raises:
    UserError: when it is not.
  """
  path = real_path(epath.Path(workdir).expanduser())
  try:
    path.exists()
  except ImportError as error:
    raise UserError(
        f'The workdir {path} cannot be reached ({first_line(error)}); '
        "pip install 'vit_jax[gcs]' brings what gs:// needs."
    ) from None
  except OSError as error:
    raise UserError(f'The workdir {path} cannot be reached: {first_line(error)}.') from None
  return path


def open_workdir(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
  """Creates the workdir with its config.json, or checks that it belongs to this config.

  Raises:
    UserError: when it cannot be written, is of another run, or is not one folder for all hosts.
  """
  path = workdir / 'config.json'
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    check_replaceable(workdir / 'model')
    if path.exists():
      config_lib.check_same_run(config, path)
    elif has_checkpoint(workdir):
      raise UserError(f'{workdir} has checkpoints but no config.json; choose another --workdir.')
    if jax.process_index() == 0:
      config_lib.write_config(config, path)
    _check_shared(workdir)
  except OSError as error:
    why = error.strerror or first_line(error)
    raise UserError(f'The workdir {workdir} cannot be written: {why}.') from None


def _check_shared(workdir: epath.Path) -> None:
  """All processes must see what process 0 writes."""
  if jax.process_count() == 1:
    return
  mark = workdir / f'.seen_by_all_{processes.agreed(secrets.randbits(31))}'
  if jax.process_index() == 0:
    mark.touch()
  multihost_utils.sync_global_devices('the mark is made')
  seen = np.ravel(multihost_utils.process_allgather(np.bool_(mark.exists())))
  if jax.process_index() == 0:
    mark.unlink()
  if not seen.all():
    raise UserError(
        f'The workdir {workdir} is not one folder for all processes: process {seen.argmin()} does '
        'not see what process 0 writes there; name a shared folder with --workdir.'
    )


def initial_params(
    config: ml_collections.ConfigDict, program: Program
) -> tuple[Any, Report | None]:
  """The weights of `config.init_from`, resized to this run, with a new head; None without.

  A device gets no more than its part of them.
  """
  if not config.init_from:
    return None, None
  return load_params(
      config.init_from,
      program.model,
      program.image_size,
      config.position_resize,
      program.state_shardings.params,
      config.data.channels,
  )
