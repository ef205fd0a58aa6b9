"""What is held out of a training split."""

import numpy as np
import pytest

from vit_jax.data.sources import open_source
from vit_jax.data.sources.splitting import splits
from vit_jax.errors import UserError
from vit_jax.sweeps.held_out_split import hold_out, parse_percent


@pytest.mark.parametrize(
  ('split', 'train', 'held_out'),
  [
    ('train', 'train[:98%]', 'train[98%:]'),
    ('train+validation', 'train[:98%]+validation[:98%]', 'train[98%:]+validation[98%:]'),
    ('train[:800]', 'train[:784]', 'train[784:800]'),
    ('train[100:1100]', 'train[100:1080]', 'train[1080:1100]'),
    ('train[-200:]', 'train[-200:-4]', 'train[-4:]'),
    ('train[-300:-200]', 'train[-300:-202]', 'train[-202:-200]'),
    ('train[:10]', 'train[:9]', 'train[9:10]'),
    ('train[:50%]', 'train[:49%]', 'train[49%:50%]'),
    ('train[-10%:]', 'train[90%:99.8%]', 'train[99.8%:]'),
    (
      'train[:90%] + train[90%:]',
      'train[:88.2%]+train[90%:99.8%]',
      'train[88.2%:90%]+train[99.8%:]',
    ),
  ],
)
def test_the_end_of_each_term_is_held_out(split, train, held_out):
  assert hold_out(split, 2) == (train, held_out)


@pytest.mark.parametrize('split', ['train', 'train[:1000]', 'train[-700:]', 'train[10%:90%]'])
def test_both_parts_together_are_the_split(split):
  size = open_source('digits', 'train').size
  limits = [splits.bounds(splits.parse(part)[0], size) for part in (split, *hold_out(split, 2))]
  (start, stop), (first, middle), (second, last) = limits
  assert (first, middle, last) == (start, second, stop)
  np.testing.assert_allclose(last - second, 0.02 * (stop - start), atol=1)


@pytest.mark.parametrize(
  ('split', 'why'),
  [
    ('train[800:]', 'does not say how many examples it has'),
    ('train[:-200]', 'does not say how many examples it has'),
    ('train[:1]', 'too small to hold out 2% of it'),
    ('train[:60%]+train[40%:]', 'share examples'),
    ('train[:', 'cannot be parsed'),
  ],
)
def test_splits_of_which_nothing_can_be_held_out(split, why):
  with pytest.raises(UserError, match=why):
    hold_out(split, 2)


@pytest.mark.parametrize('text', ['2', '0%', '100%', '-1%', 'nan%', 'some%', ''])
def test_shares_that_cannot_be_held_out(text):
  with pytest.raises(UserError, match='must be a share between 0% and 100%'):
    parse_percent(text)
