"""Whether a run keeps the head of the weights that it starts from."""

from collections.abc import Sequence

from vit_jax.config.schema import InitHead
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.weights.load import SourceWeights


def keeps_head(
  weights: SourceWeights, model: build.Model, init_head: InitHead, class_names: Sequence[str]
) -> bool:
  """Decides by `init_head`, and by the classes of the weights and the data.

  Args:
    weights: of the architecture of `model`, except for the head.
    model: of the run.
    init_head: 'new'; 'keep', unless names or numbers of classes differ; 'auto' keeps the head where
      both name their classes, alike and in the same order.
    class_names: of the data; () if unknown.

  Raises:
    UserError: when the head is to be kept and cannot be.
  """
  if init_head == 'new':
    return False
  difference = _difference(weights, model, class_names)
  if init_head == 'auto':
    return not difference and bool(weights.metadata.labels and class_names)
  if difference:
    raise UserError(
      f'config.init_head is keep, but {weights.name} {difference}; set --config.init_head=new.'
    )
  return True


def _difference(weights: SourceWeights, model: build.Model, class_names: Sequence[str]) -> str:
  """Why the head of the weights is not one of the model: 'has 3 classes, …'; '' if it is."""
  if 'head/kernel' not in weights.tensors:
    return 'has no head'
  old, new = (getattr(each, 'pre_logits', 0) or 0 for each in (weights.model, model))
  if old != new:
    return f'has a head on pre_logits={old}, and config.model.pre_logits is {new}'
  old, new = weights.model.num_classes, model.num_classes
  if old != new:
    return f'has {old:,} classes, and the data has {new:,}'
  names = zip(weights.metadata.labels or (), class_names, strict=False)
  i, pair = next(((i, pair) for i, pair in enumerate(names) if pair[0] != pair[1]), (0, None))
  return f'has {pair[0]!r} as class {i}, and the data has {pair[1]!r}' if pair else ''
