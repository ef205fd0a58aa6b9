"""Shards written by the workers of an Apache Beam pipeline, by any of its runners.

The elements are the numbers of shards. Each worker lists the source once and writes its shards as
the other ways do; source and target are on file systems that all workers mount.
"""

import functools
import importlib
import logging
import re
import shlex
import threading
from collections.abc import Sequence
from typing import Any

from vit_jax.errors import UserError, first_line
from vit_jax.prepare.shard_plan import Preparation, ShardPlan, open_plan
from vit_jax.prepare.shard_writer import is_complete, write_shard

# What a worker raised, in what Beam raises: by its type or only as text, and with the step's name.
_WORKER_ERROR = re.compile(r'(?:UserError: |Error: (?=\[Errno))(.*?)(?: \[while running.*)?$', re.M)
_plan_lock = threading.Lock()


def _import_beam() -> Any:
  logging.disable(logging.WARNING)  # about optional packages of Google Cloud
  try:
    return importlib.import_module('apache_beam')
  except ImportError:
    raise UserError(
      "--runner needs Apache Beam, which is not installed: pip install 'vit_jax[beam]'."
    ) from None
  finally:
    logging.disable(logging.NOTSET)


def parse_options(runner: str, beam_options: str) -> Any:
  """Returns Beam's options; raises `UserError` for wrong ones, or when Beam is not installed."""
  beam = _import_beam()
  try:
    beam.runners.runner.create_runner(runner)
    flags = [f'--runner={runner}', *shlex.split(beam_options)]
    return beam.options.pipeline_options.PipelineOptions(flags)
  except (ValueError, ImportError) as error:
    raise UserError(f'Beam refuses --runner={runner}: {first_line(error)}.') from None


@functools.lru_cache(maxsize=1)
def _open_plan_once(preparation: Preparation) -> ShardPlan | None:
  return open_plan(preparation, begin=False)


def _write_shard(preparation: Preparation, index: int) -> None:
  """Writes one shard, unless another worker has; runs on the workers."""
  with _plan_lock:
    plan = _open_plan_once(preparation)
  if plan is not None and not is_complete(plan.shards[index], plan.skip_bad):
    counter = _import_beam().metrics.Metrics.counter('vit_jax', 'images')
    write_shard(plan.shards[index], counter.inc)


def write_shards(preparation: Preparation, indices: Sequence[int], options: Any) -> None:
  """Runs the pipeline that writes the shards of these indices.

  Raises `UserError` when a worker has raised one or an `OSError`, else what Beam raises.
  """
  beam = _import_beam()
  logging.getLogger('apache_beam.runners.common').setLevel(logging.CRITICAL)  # it is raised, too
  try:
    with beam.Pipeline(options=options) as pipeline:
      _ = (
        pipeline
        | 'shards' >> beam.Create(list(indices))
        | 'spread' >> beam.Reshuffle()
        | 'write' >> beam.Map(functools.partial(_write_shard, preparation))
      )
  except Exception as error:
    if match := _WORKER_ERROR.search(f'{type(error).__name__}: {error}'):
      raise UserError(match[1]) from None
    raise
