"""The evaluations of a run by the names that the user gives them: `config.evals.NAME.kind`."""

import dataclasses
import functools
import re
from collections.abc import Iterable
from typing import Literal

from vit_jax.config.fields import NOT_NEGATIVE, Range, Section, field, section
from vit_jax.errors import UserError

EvalKind = Literal['classification', 'real', 'fewshot', 'knn', 'linear_probe', 'zero_shot']
_COUNTS = Range('positive numbers', lambda x: len(x) > 0 and min(x) > 0)


@dataclasses.dataclass(frozen=True)
class EvalConfig(Section, path='evals.NAME'):
  """An evaluation beside that of the test data, or of other data; any number of them."""

  kind: EvalKind = field(
    'classification',
    'classification: of the test examples; real: by ImageNet-ReaL labels; of frozen features: '
    'fewshot, knn, linear_probe; zero_shot: by class_embeddings',
    execution=True,
  )
  every: int = field(0, 'steps between evaluations; 0: eval_every', NOT_NEGATIVE, execution=True)
  source: str = field('', "the test examples, as data.test.source; '': that one", execution=True)
  split: str = field('', "of the source; '': data.test.split", execution=True)
  train_source: str = field(
    '', "of frozen features: the training examples; '': source", execution=True
  )
  train_split: str = field('train', 'of train_source', execution=True)
  shots: tuple[int, ...] = field(
    (1, 5, 10, 25), 'fewshot: training examples of each class', _COUNTS, execution=True
  )
  l2: float = field(
    1024.0,
    'fewshot: the penalty; 0: chosen of 64 to 1024 on training examples that are not drawn',
    NOT_NEGATIVE,
    execution=True,
  )
  neighbors: tuple[int, ...] = field(
    (10, 20, 100, 200), 'knn: numbers of neighbors', _COUNTS, execution=True
  )
  class_embeddings: str = field(
    '', 'zero_shot: .npz file of the classes, (C, D), made by a text tower', execution=True
  )
  batch_size: int = field(
    0, 'examples in a batch; 0: eval_batch_size', NOT_NEGATIVE, execution=True
  )

  def __post_init__(self):
    super().__post_init__()
    if self.train_source and not self.source:
      self.refuse('train_source', 'name the source of the test examples, too')
    if (self.kind == 'zero_shot') != bool(self.class_embeddings):
      self.refuse('class_embeddings', f'kind is {self.kind}; zero_shot needs a file, others none')


@functools.cache
def _named(name: str) -> type[EvalConfig]:
  return type('EvalConfig', (EvalConfig,), {'__doc__': EvalConfig.__doc__}, path=f'evals.{name}')


class Evals(Section, path='evals'):
  """Further evaluations: config.evals.NAME.kind, and so on, for any NAME."""


@functools.cache
def _evals_type(names: tuple[str, ...]) -> type[Evals]:
  fields = [(name, _named(name), section(_named(name))) for name in names]
  return dataclasses.make_dataclass(
    'Evals', fields, bases=(Evals,), frozen=True, namespace={'__doc__': Evals.__doc__}
  )


def make_evals(names: Iterable[str] = ()) -> Evals:
  """A section with a default `EvalConfig` for each name, in alphabetical order.

  Raises:
    UserError: for a name that metrics cannot have.
  """
  names = tuple(sorted(set(names)))
  for name in names:
    if not re.fullmatch('[a-z][a-z0-9_]{0,39}', name) or name in ('train', 'test', 'step'):
      raise UserError(
        f'config.evals.{name} is not a name for an evaluation; use up to 40 lower-case letters, '
        'digits and _, but not train, test or step.'
      )
  return _evals_type(names)()
