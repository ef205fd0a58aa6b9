"""The command `vit_jax.goodput`."""

import json

from vit_jax import goodput


def test_the_report_of_a_run(tiny_run, command):
  code, out, err = command(goodput, tiny_run)
  assert (code, err) == (0, '')
  head, *table = out.splitlines()
  assert ' restart' in head and head.endswith(', step 6')
  shares = [float(line.split('%')[0].split()[-1]) for line in table[1:11]]
  assert abs(sum(shares) - 100) < 1
  assert any(line.startswith('step time: p50 ') for line in table)
  assert any(line.startswith('waits longest for data: process 0 on ') for line in table)
  assert table[-1].startswith('the largest loss is ')


def test_the_report_as_json(tiny_run, command):
  code, out, err = command(goodput, tiny_run, '--json')
  assert (code, err) == (0, '')
  report = json.loads(out)
  assert report['step'] == 6 and 0 < report['goodput'] < 1
  assert report['goodput'] == report['phase_shares']['step']


def test_a_folder_without_a_record_is_refused(tmp_path, command):
  for name in (tmp_path, tmp_path / 'none'):
    code, out, err = command(goodput, name)
    assert (code, out) == (2, '') and err.count('\n') == 1
    assert f'{name} has no record of its time' in err
