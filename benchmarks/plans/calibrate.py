"""Compares predicted step times with the published times of TPU runs: calibration.csv.

  python benchmarks/plans/calibrate.py            all rows
  python benchmarks/plans/calibrate.py s16 l16    those rows; the others stay as they are

Needs libtpu (pip install 'vit_jax[tpu]'), but no TPU. Each row compiles the train step for one chip
(`topology`) with the run's examples per core, which stands in for the run's slice: it lacks the
collectives between chips. Of larger models it compiles two that are less deep (`depths`), and adds
the difference for each further block. A published time includes input, evaluation, checkpoints and
restarts.
"""

import csv
import datetime
import importlib.metadata
import pathlib
import sys
from typing import NamedTuple

from vit_jax.config import load_config
from vit_jax.planning import planner, topologies
from vit_jax.planning.planner import Labels
from vit_jax.planning.step_time import PUBLISHED_FACTOR

OUT = pathlib.Path(__file__).with_name('calibration.csv')
IMAGENET = round(0.99 * 1_281_167)  # big_vision trains on train[:99%]
JFT, IMAGENET_21K = 303_000_000, 14_197_122  # as in configs/recipes.py
PAPER = 'arXiv 2010.11929v2, Table 2'
BIG_VISION = 'github.com/google-research/big_vision, big_vision/configs/'


class Run(NamedTuple):
  """A published run: `epochs` x `examples` in `core_hours`, and the config that stands in."""

  source: str
  model: str
  published: str  # as it is stated
  epochs: int
  examples: int
  core_hours: float
  config: str
  topology: str
  core_batch: int
  overrides: tuple[str, ...] = ()
  depth: int = 0  # of the model, where `depths` are compiled instead
  depths: tuple[int, ...] = ()


RUNS = {
  's16': Run(
    BIG_VISION + 'vit_s16_i1k.py',
    'ViT-S/16, ImageNet',
    '6-7 h on v3-8',
    90,
    IMAGENET,
    6.5 * 8,
    'vit_b16.py:imagenet',
    'v3:1x1',
    128,
    (
      '--config.model.variant=S',
      '--config.model.pre_logits=384',
      '--config.model.pool=gap',
      '--config.model.dropout_rate=0',
    ),
  ),
  'mixer_b16': Run(
    BIG_VISION + 'mlp_mixer_i1k.py',
    'Mixer-B/16, ImageNet',
    '2 h 11 min on v3-128',
    300,
    IMAGENET,
    131 / 60 * 128,
    'vit_b16.py:imagenet',
    'v3:1x1',
    32,
    (
      '--config.model.variant=Mixer-B',
      '--config.model.pre_logits=0',
      '--config.model.dropout_rate=0',
    ),
  ),
  'r50x1': Run(
    BIG_VISION + 'bit_i1k.py',
    'BiT-R50x1, ImageNet',
    '32 min on v3-128',
    90,
    IMAGENET,
    32 / 60 * 128,
    'pretrain.py:r50x1,jft',
    'v3:1x1',
    32,
    (
      '--config.data.num_classes=1000',
      '--config.loss=softmax',
      '--config.optimizer.name=sgd',
      '--config.optimizer.clip_norm=1',
    ),
  ),
  'l16': Run(
    PAPER,
    'ViT-L/16, JFT',
    '0.68k v3 core-days, 14 epochs',
    14,
    JFT,
    680 * 24,
    'vit_l16.py:jft',
    'v3:1x1',
    16,
    depth=24,
    depths=(2, 4),
  ),
  'l16_i21k': Run(
    PAPER,
    'ViT-L/16, ImageNet-21k',
    '0.23k v3 core-days, 90 epochs',
    90,
    IMAGENET_21K,
    230 * 24,
    'vit_l16.py:imagenet21k',
    'v3:1x1',
    16,
    depth=24,
    depths=(2, 4),
  ),
  'h14': Run(
    PAPER,
    'ViT-H/14, JFT',
    '2.5k v3 core-days, 14 epochs',
    14,
    JFT,
    2500 * 24,
    'vit_h14.py:jft',
    'v3:1x1',
    16,
    ('--config.mesh.fsdp=1',),
    depth=32,
    depths=(2, 4),
  ),
}


def predict(run: Run) -> float:
  """Images/s a core by the compiler's cycles."""
  if not run.depths:
    return run.core_batch / compile_step(run)
  shallow, deep = (compile_step(run, depth) for depth in run.depths)
  per_block = (deep - shallow) / (run.depths[1] - run.depths[0])
  return run.core_batch / (shallow + (run.depth - run.depths[0]) * per_block)


def compile_step(run: Run, depth: int = 0) -> float:
  """Predicted seconds of a step; depth 0 is the model's own."""
  topology = topologies.parse_topology(run.topology)
  cores = topology.num_chips * topologies.SLICES[topology.kind].tensor_cores
  sizes = f'--config.batch_size={run.core_batch * cores}', f'--config.model.depth={depth}'
  config = load_config(f'configs/{run.config}', [*run.overrides, *sizes])
  labels = Labels(config.data.num_classes, config.loss == 'sigmoid')
  plan = planner.make_plan(config.resolve_steps(run.examples), topology, labels)
  if plan.step_time.predicted is None:
    raise SystemExit(f'{run.model} does not fit {run.topology}.')
  return plan.step_time.predicted


def row(name: str, run: Run) -> dict[str, object]:
  """One row of the table."""
  published = run.epochs * run.examples / (run.core_hours * 3600)
  predicted = predict(run)
  return {
    'name': name,
    'source': run.source,
    'model': run.model,
    'published': run.published,
    'arithmetic': f'{run.epochs} x {run.examples:,} / ({run.core_hours:,.1f} core-hours x 3600)',
    'published_images_s_core': f'{published:.1f}',
    'predicted_images_s_core': f'{predicted:.1f}',
    'predicted_over_published': f'{predicted / published:.2f}',
    'after_factor': f'{predicted / PUBLISHED_FACTOR / published:.2f}',
    'config': ' '.join([run.config, *run.overrides]),
    'topology': run.topology,
    'core_batch': run.core_batch,
    'depths': ' '.join(map(str, run.depths)),
    'libtpu': importlib.metadata.version('libtpu'),
    'date': datetime.date.today().isoformat(),
  }


def main() -> None:
  names = sys.argv[1:] or list(RUNS)
  topologies.prepare_backend([topologies.parse_topology(RUNS[name].topology) for name in names])
  rows: dict[str, dict[str, object]] = {}
  if OUT.exists():
    rows |= {line['name']: dict(line) for line in csv.DictReader(OUT.open())}
  for name in names:
    print(f'compiling {name} …', flush=True)
    rows[name] = row(name, RUNS[name])
    print(rows[name], flush=True)
    ordered = [rows[key] for key in RUNS if key in rows]
    with OUT.open('w', newline='') as file:
      writer = csv.DictWriter(file, list(ordered[0]), lineterminator='\n')
      writer.writeheader()
      writer.writerows(ordered)


if __name__ == '__main__':
  main()
