"""The rows of a submission."""

import pytest
from etils import epath

from vit_jax.errors import UserError
from vit_jax.evaluation.reports.predictions import Prediction
from vit_jax.evaluation.reports.submission import fill, read_template


def test_images_are_matched_by_their_names(tmp_path):
  path = tmp_path / 'sample.csv'
  path.write_text('file,label\ntest/2.jpg,x\n1,x\n')
  template = read_template(str(path), ('cat', 'dog'))
  predictions = [
    Prediction(epath.Path(f'/images/{name}'), ((0, label, 0.9),))
    for name, label in (('1.jpg', 'cat'), ('2.jpg', 'dog'), ('3.jpg', 'dog'))
  ]
  assert fill(template, predictions) == [['test/2.jpg', 'dog'], ['1', 'cat']]
  again = Prediction(epath.Path('/more/1.png'), ((0, 'cat', 0.9),))
  with pytest.raises(UserError, match='/images/1.jpg and /more/1.png have the name of one row'):
    fill(template, [*predictions, again])
