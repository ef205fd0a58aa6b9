"""A model as a notebook shows it: a small table in HTML."""

from typing import Any

from vit_jax import templates
from vit_jax.weights import adapt

_MAX_LABELS = 1000  # names that are printed; ImageNet-21k has 21,843


def render(
  kind: str,
  parameters: int,
  rows: list[tuple[str, Any]],
  labels: list[str] | None,
  report: adapt.LoadReport | None,
) -> str:
  """HTML of a model for a page of others: no style sheet, no script, names escaped.

  Args:
    kind: the name of the architecture.
    parameters: how many it has.
    rows: [(name, value), …] of the table.
    labels: the names of the classes, or None.
    report: what happened to the tensors of a file, or None.
  """
  shown = (labels or [])[:_MAX_LABELS]
  hidden = len(labels or []) - len(shown)
  page = templates.environment('vit_jax').get_template('classifier_card.html.j2')
  return page.render(
    kind=kind, parameters=parameters, rows=rows, labels=shown, hidden=hidden, report=report
  )
