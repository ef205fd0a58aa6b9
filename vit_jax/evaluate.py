"""Scores a model on a data set: `python -m vit_jax.evaluate --model=M --data=folder:/path`."""

import json

import jax

from vit_jax import command_line
from vit_jax.classifier import load
from vit_jax.config import MeshConfig, OnBadExample, choices
from vit_jax.data.loading.loader import DataLoader, open_stream
from vit_jax.data.loading.reader import ReadConfig
from vit_jax.data.sources import check_same_classes, open_source
from vit_jax.distributed import sharding
from vit_jax.errors import UserError
from vit_jax.evaluation import classification
from vit_jax.evaluation.eval_step import make_eval_step


def score(
  model: str,
  data: str,
  split: str,
  image_size: int | tuple[int, int] | None,
  batch_size: int,
  on_bad_example: str = 'error',
) -> dict[str, float]:
  """Accuracy, loss and number of examples of a model on a split, over all local devices.

  Raises:
    UserError: for a model or data that is not there, or classes that are not the model's.
  """
  vit = load(model, image_size=image_size)
  command_line.print_report(vit.report)
  source = open_source(data, split)
  if vit.labels is not None:
    check_same_classes(vit.labels, source.class_names, source.name)
  elif source.num_classes != vit.model.num_classes:
    raise UserError(
      f'{source.name} has {source.num_classes} classes, {model} has {vit.model.num_classes}.'
    )
  mesh = sharding.make_mesh(MeshConfig())
  sharding.check_batch_size(mesh, batch_size, '--batch_size')
  recipe = ReadConfig(
    data,
    split,
    vit.image_size,
    channels=vit.channels,
    crop_fraction=vit.crop_fraction,
    on_bad_example=on_bad_example,
  )
  stream = open_stream(recipe, batch_size, source)
  params = jax.device_put(vit.params, sharding.replicated(mesh))
  eval_step = jax.jit(make_eval_step(vit.model, vit.loss))
  with DataLoader({'test': stream}, mesh) as feed:
    batches = command_line.progress(feed.batches('test'), total=stream.steps, unit='batch')
    result = classification.evaluate(eval_step, params, batches)
  return {'model': model, 'data': source.name, **result}


def main() -> None:
  parser = command_line.Parser('vit_jax.evaluate', description=__doc__)
  parser.add_argument('--model', required=True, help='a file, folder, workdir or released name')
  parser.add_argument(
    '--data', required=True, help='folder:/path, array_record:/path, … (docs/data.md has all)'
  )
  parser.add_argument('--split', default='test', help='which part of the data')
  parser.add_argument('--eval', default='classification', choices=['classification'])
  parser.add_argument(
    '--image_size', type=command_line.parse_image_size, metavar='N|HxW', help="when not the model's"
  )
  parser.add_argument('--batch_size', type=int, default=64, help='changes no result')
  parser.add_argument(
    '--on_bad_example',
    default='error',
    choices=choices(OnBadExample),
    help='what an image that cannot be read does: ends it, or is left out',
  )
  parser.add_argument('--json', action='store_true', help='print one JSON object')
  args = parser.parse_args()
  result = score(
    args.model, args.data, args.split, args.image_size, args.batch_size, args.on_bad_example
  )
  if args.json:
    print(json.dumps(result))
  else:
    print(
      f'{result["data"]}: accuracy {result["accuracy"]:.2%} '
      f'({round(result["accuracy"] * result["examples"]):,} of {result["examples"]:,} examples '
      f'right), loss {result["loss"]:.4f}'
    )


if __name__ == '__main__':
  command_line.run(main)
