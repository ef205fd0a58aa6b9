"""The tables of VTAB-1k: no task is left out of a mean without being said."""

import csv
import io
import sys

import pytest

from vit_jax import verify
from vit_jax.data.vtab_tasks import TASKS
from vit_jax.errors import DifferentResultsError
from vit_jax.transfer import vtab_tables
from vit_jax.transfer.vtab_tables import PUBLISHED, Outcome, Report


def report(tasks, missing=(), compares=True) -> Report:
  scored = {task: Outcome(0.25 + 0.01 * i, 100 + i) for i, task in enumerate(tasks)}
  missing = {task: Outcome(None, reason='There is no data.') for task in missing}
  outcomes = {task: (scored | missing)[task] for task in TASKS if task in scored | missing}
  return Report('my_model', ['384x384 pixels'], outcomes, compares)


def test_published_results_have_the_published_means():
  assert PUBLISHED.keys() == TASKS.keys()
  for model, mean in enumerate(vtab_tables.PUBLISHED_MEANS):
    own = sum(results[model] for results in PUBLISHED.values()) / len(TASKS)
    assert own == pytest.approx(mean, abs=0.02)  # of results with one decimal


def test_all_tasks_make_vtab():
  whole = report(list(TASKS))
  assert '| **VTAB (19 tasks)** |  | 34.00 | 77.63 | 76.28 | 72.72 |' in whole.to_markdown()
  assert '| **natural, 7 tasks** |' in whole.to_markdown()
  assert whole.to_json()['mean'] == pytest.approx(0.34)
  assert whole.to_json()['specialized'] == pytest.approx(0.335)


def test_fewer_tasks_are_never_called_vtab():
  part = report(['dtd', 'oxford_iiit_pet', 'dmlab'], missing=['clevr_count_all'])
  text = part.to_markdown()
  assert 'VTAB (' not in text
  assert '| **natural, 2 of 7 tasks** |  | 25.50 | 86.2 | 85.5 | 83.4 |' in text  # of the same two
  assert '| **structured, 1 of 8 tasks** |' in text
  assert '| **mean of 3 of 19 tasks** |  | 26.00 | 75.2 | 73.6 | 69.6 |' in text
  assert '| clevr_count_all |  | – | 91.7 | 86.4 | 70.3 |' in text
  assert '- clevr_count_all: There is no data.' in text
  json = part.to_json()
  assert (json['mean'], json['natural'], json['specialized']) == (None, None, None)
  assert json['means']['all'] == {'accuracy': pytest.approx(0.26), 'tasks': 3, 'of': 19}
  assert json['tasks']['clevr_count_all']['reason'] == 'There is no data.'


def test_a_group_without_results_has_no_mean():
  text = report(['dtd'], missing=['dmlab']).to_markdown()
  assert '| **structured, 0 of 8 tasks** |  | – | – | – | – |' in text


def test_csv_has_the_rows_of_the_table():
  rows = list(csv.DictReader(io.StringIO(report(['dtd'], missing=['svhn']).to_csv())))
  assert [row['name'] for row in rows] == ['dtd', 'svhn', 'natural', 'all']
  assert rows[0]['accuracy'] == '25.00'
  assert (rows[0]['examples'], rows[0]['ViT-H/14 JFT']) == ('100', '75.2')
  assert rows[1]['accuracy'] == ''
  assert (rows[3]['tasks'], rows[3]['of']) == ('1', '19')


def test_validation_results_are_not_compared():
  assert 'ViT-H/14' not in report(['dtd'], compares=False).to_markdown()


def test_verify_compares_the_mean_with_a_published_row(tmp_path, monkeypatch):
  vtab_tables.write_report(report(list(TASKS)), tmp_path / 'run')
  result = f'{tmp_path}/run/vtab.json'
  monkeypatch.setattr(sys, 'argv', ['verify', result, '--against=t2-l16-jft-vtab'])
  with pytest.raises(DifferentResultsError, match='mean: 34, not 76.28'):
    verify.main()
