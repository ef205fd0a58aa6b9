"""Measurements beside a published result."""

from collections.abc import Sequence

from vit_jax.errors import UserError
from vit_jax.verification import comparison
from vit_jax.verification.comparison import Comparison, Verification
from vit_jax.verification.measurements import RESULT, Measurements
from vit_jax.verification.published import Row

# Test examples of the targets, as TFDS has them.
_EXAMPLES = {
  'imagenet': 50_000,
  'cifar10': 10_000,
  'cifar100': 10_000,
  'pets': 3_669,
  'flowers': 6_149,
}
_COSTS = ('exaflops', 'tpu_v3_core_days')
# The other evaluations, whose accuracies are not that of classification.
_OTHER_KINDS = {'train', 'real', 'fewshot', 'knn', 'linear_probe', 'confusions'}


def against_row(
  measured: Measurements,
  row: Row,
  metric: str | None = None,
  atol: float | None = None,
  others: Sequence[Row] = (),
) -> Verification:
  """Compares the last value of a metric with a published one.

  Args:
    measured: a run, whose shares (0 to 1) are compared as percent, or an evaluation.
    row: the published result.
    metric: a name among `measured.curves`; None: the one that measures what the row does.
    atol: allowed difference in percentage points; None: `row.noise`.
    others: rows that the user may have meant, for a note.

  Raises:
    UserError: if no metric, or several, measure what the row does; if it is of another number of
      examples than the target has; or for a row that is a cost.
  """
  if row.metric in _COSTS:
    raise UserError(f'{row.id} is the cost of pretraining ({row.metric}), not a result.')
  name = _metric_of_row(measured, row) if metric is None else metric
  if name not in measured.curves:
    raise UserError(f'{measured.name} has no metric {name!r}; {_names(measured)}.')
  curve = measured.curves[name]
  step = max(curve)
  share = curve[step]
  percent = None if share is None else 100 * share
  noise = row.noise if atol is None else atol
  largest = comparison.difference(percent, row.value)
  compared = Comparison(
    metric=name,
    step=None if step == RESULT else step,
    measured=percent,
    expected=row.value,
    noise=noise,
    largest=largest,
    steps=1,
    differs=largest > noise + 1e-9,  # of rounding 100 * share
  )
  notes = [f'{row.id}: {row.summary}'] + ([f'its command: {row.note}'] if row.note else [])
  notes += [] if row.spread or atol is not None else ['it has no spread; the noise is our default']
  if others:
    notes.append(f'other rows: {", ".join(f"{each.id} ({each.value:g})" for each in others)}')
  _check_examples(measured, row, name)
  return Verification([compared], notes + _other_settings(measured, row))


def _check_examples(measured: Measurements, row: Row, name: str) -> None:
  """Raises `UserError` if the metric is of other data than the row."""
  *parents, _ = name.split('/')
  counts = measured.curves.get('/'.join([*parents, 'examples']))
  if not counts or row.target not in _EXAMPLES:
    return
  count, expected = counts[max(counts)], _EXAMPLES[row.target]
  if count is not None and count != expected:
    raise UserError(
      f'{measured.name} scored {count:,.0f} examples, but {row.target} ({row.id}) has '
      f'{expected:,}: these are other data.'
    )


def _other_settings(measured: Measurements, row: Row) -> list[str]:
  """Notes if the images had another size than those of the row, or the model is another one."""
  notes, settings = [], measured.settings
  size = settings.get('config.data.image_size') or settings.get('image_size')
  sides = {str(side) for side in size} if isinstance(size, (list, tuple)) else {str(size)}
  if size is not None and row.resolution and sides != {row.resolution}:
    notes.append(f'{measured.name} has images of {size} pixels, the row of {row.resolution}')
  variant, patch_size = (settings.get(f'config.model.{key}') for key in ('variant', 'patch_size'))
  if variant and f'{variant}/{patch_size}' not in row.model and variant not in row.model:
    notes.append(f'{measured.name} is of variant {variant}/{patch_size}, the row {row.model}')
  return notes


def _metric_of_row(measured: Measurements, row: Row) -> str:
  """The metric that measures what the row does."""
  if row.target.startswith('vtab_'):  # the mean of a group of tasks
    last = (row.target.removeprefix('vtab_'),)
  else:
    last = {'mean_accuracy': ('mean_accuracy', 'mean')}.get(row.metric, (row.metric,))
  kinds = {'real'} if row.target == 'imagenet_real' else set()
  kinds |= {'fewshot'} if row.metric.endswith('shot') else set()
  candidates = []
  for name in measured.metrics:
    *parents, metric = name.split('/')
    kind = {measured.settings.get(f'config.evals.{part}.kind', part) for part in parents}
    if metric in last and _OTHER_KINDS & kind == kinds:
      candidates.append(name)
  if len(candidates) == 1:
    return candidates[0]
  what = 'several metrics' if candidates else 'no metric'
  raise UserError(
    f'{measured.name} has {what} to compare with {row.id} ({row.target}, {row.metric}); name one '
    f'with --metric: {_names(measured)}.'
  )


def _names(measured: Measurements) -> str:
  names = measured.metrics
  return f'there are {", ".join(names[:20])}{", …" if len(names) > 20 else ""}'
