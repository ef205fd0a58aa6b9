"""Which outputs of a model are the classes of a data set, by their names."""

from collections.abc import Sequence

from vit_jax.data import imagenet
from vit_jax.data.sources import Source, check_same_classes
from vit_jax.data.sources.source import have_same_classes
from vit_jax.errors import UserError
from vit_jax.text import plural


def find_outputs(
  model_classes: Sequence[str] | None, num_outputs: int, source: Source
) -> tuple[int, ...]:
  """Returns the output of the model for each class of a source.

  The classes may be all those of the model or some of them, in any order. Those of ImageNet may be
  called by synsets or by names. A source that has just the numbers 0, 1, … of all outputs as names,
  as the folders of ImageNet-V2, has them in the order of the numbers, not of the text.

  Args:
    model_classes: names in the order of the outputs; None if they are unknown.
    num_outputs: of the model.
    source: the data.

  Raises:
    UserError: if the source has other classes.
  """
  names = source.class_names
  if model_classes is not None and have_same_classes(model_classes, names):
    return tuple(range(num_outputs))
  output_of = _outputs_by_name(model_classes, num_outputs)
  if all(name in output_of for name in names):
    outputs = tuple(output_of[name] for name in names)
    if len(set(outputs)) == len(outputs):
      return outputs
  if all(name.isascii() and name.isdecimal() for name in names):
    numbers = tuple(map(int, names))
    if sorted(numbers) == list(range(num_outputs)):
      return numbers
  if model_classes is not None:
    check_same_classes(model_classes, names, source.name)
  elif source.num_classes != num_outputs:
    raise UserError(
      f'{source.name} has {plural(source.num_classes, "class")}, but the model has {num_outputs}.'
    )
  return tuple(range(num_outputs))


def _outputs_by_name(model_classes: Sequence[str] | None, num_outputs: int) -> dict[str, int]:
  """The output of each class by its names; of an ImageNet model also by its synset."""
  lists = [] if model_classes is None else [model_classes]
  if (ids := imagenet.synsets_of_head(num_outputs)) is not None:
    if model_classes is None or have_same_classes(model_classes, ids):
      lists += [imagenet.class_names(ids), ids]
  return {name: output for names in lists for output, name in enumerate(names)}


def describe_outputs(outputs: Sequence[int], num_outputs: int) -> str:
  """'200 of 1,000 classes (those of ImageNet-A)'; '' for all of them."""
  if len(outputs) == num_outputs:
    return ''
  known = ''
  if num_outputs == len(imagenet.synsets()):
    names = [name for name, subset in imagenet.subsets().items() if subset == set(outputs)]
    known = f' (those of {names[0]})' if names else ''
  return f'{len(outputs):,} of {plural(num_outputs, "class")}{known}'
