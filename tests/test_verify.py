"""The command `vit_jax.verify`, on real runs and results."""

import functools
import json
import re
import shutil

import pytest

from tests.helpers import ROOT
from vit_jax import verify
from vit_jax.config import default_config, from_config_dict, load_config, write_config

RUN = ROOT / 'results' / 'quickstart_seed0'  # 1,200 steps
OTHER = ROOT / 'results' / 'quickstart_seed1'


@pytest.fixture
def run(command):
  return functools.partial(command, verify)


def copy_of_run(folder, change=lambda line: line, lines=slice(None)):
  """A copy of RUN's metrics with every line changed; returns its workdir."""
  folder.mkdir()
  kept = [json.loads(line) for line in (RUN / 'metrics.jsonl').read_text().splitlines()][lines]
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(change(line)) + '\n' for line in kept))
  return folder


def with_loss(step: int, loss):
  def change(line):
    return line | {'train/loss': loss} if line['step'] == step and 'train/loss' in line else line

  return change


def test_a_run_equals_itself(run, tmp_path):
  timing = {'train/images_per_second': 1.0, 'time': 7.0, 'time/step': 3.0, 'train/goodput': 0.1}
  slower = copy_of_run(tmp_path / 'run', lambda line: line | timing)
  code, out, err = run(slower, f'--against={RUN}/metrics.jsonl')
  assert (code, err) == (0, '')
  assert 'train/loss' in out and 'differs' not in out and 'images_per_second' not in out
  assert 'time' not in out and 'goodput' not in out


def test_the_first_step_that_differs_is_named(run, tmp_path):
  loss = json.loads((RUN / 'metrics.jsonl').read_text().splitlines()[1])['train/loss']
  copy = copy_of_run(tmp_path / 'run', with_loss(100, loss * 1.001))
  code, out, err = run(copy, f'--against={RUN}')
  assert code == 1 and err.count('\n') == 1
  assert err.startswith(f'different: {copy} differs from {RUN}, first in train/loss at step 100: ')
  assert [line.split()[0] for line in out.splitlines() if 'differs' in line] == ['train/loss']
  assert run(copy, f'--against={RUN}', '--rtol=0.01')[0] == 0
  assert run(copy, f'--against={RUN}', '--atol=0.01')[0] == 0
  assert run(copy, f'--against={RUN}', '--rtol=0.0001')[0] == 1


def test_a_loss_that_is_not_finite_differs_from_a_number(run, tmp_path):
  copy = copy_of_run(tmp_path / 'run', with_loss(150, None))
  code, _, err = run(copy, f'--against={RUN}', '--rtol=1')
  assert code == 1 and 'train/loss at step 150: not finite, not 0.7' in err
  assert run(copy, f'--against={copy}')[0] == 0
  code, out, _ = run(copy, f'--against={RUN}', '--json')
  assert code == 1 and json.loads(out)['first_difference'] == {'step': 150, 'metric': 'train/loss'}


def test_a_number_of_any_size_is_not_finite(run, tmp_path):
  path = write_text(tmp_path / 'a.json', '{"accuracy": 1' + '0' * 400 + ', "loss": NaN}')
  assert run(path, f'--against={path}')[0] == 0
  code, _, err = run(path, '--against=augreg-ti16')
  assert code == 1 and 'first in accuracy: not finite, not 78.22' in err


def test_a_run_that_ended_before_differs(run, tmp_path):
  short = copy_of_run(tmp_path / 'run', lines=slice(4))
  code, _, err = run(short, f'--against={RUN}')
  assert code == 1 and '(last step) at step 201: 200, not 1200' in err


def test_two_seeds_differ_from_the_first_step(run, tmp_path):
  workdirs = [tmp_path / '0', tmp_path / '1']
  for seed, (source, workdir) in enumerate(zip((RUN, OTHER), workdirs, strict=True)):
    shutil.copytree(source, workdir)
    config = default_config()
    config.seed = seed
    write_config(from_config_dict(config), workdir / 'config.json')
  code, out, err = run(workdirs[0], f'--against={workdirs[1]}')
  assert code == 1 and 'at step 50' in err and 'their settings differ: config.seed (0, 1)' in out


def test_a_run_against_a_published_row(run, tmp_path):
  def as_cifar10(accuracy):
    return lambda line: (
      line | {'test/accuracy': accuracy, 'test/examples': 10_000} if 'test/loss' in line else line
    )

  good = copy_of_run(tmp_path / 'good', as_cifar10(0.9910))
  code, out, err = run(good, '--against=ViT-L/16,imagenet21k,cifar10')
  assert (code, err) == (0, '')
  assert '99.1 ' in out and '99.15' in out and '0.09' in out and 'Table 2' in out
  assert 'other rows: t5-l16-imagenet21k-cifar10 (99.16), readme-l16' in out
  bad = copy_of_run(tmp_path / 'bad', as_cifar10(0.9905))
  code, _, err = run(bad, '--against=t2-l16-imagenet21k-cifar10')
  assert code == 1 and 'first in test/accuracy at step 1,200: 99.05, not 99.15' in err
  code, out, _ = run(bad, '--against=t5-l16-imagenet21k-cifar10')  # without a spread
  assert code == 0 and 'it has no spread; the noise is our default' in out
  assert run(bad, '--against=t2-l16-imagenet21k-cifar10', '--atol=0.2')[0] == 0


def test_an_evaluation_of_a_run_is_known_by_its_kind(run, tmp_path):
  workdir = copy_of_run(tmp_path / 'run', lambda line: line | {'cleaned/accuracy': 0.9072})
  config = load_config('configs/default.py', ['--config.evals.cleaned.kind=real'])
  write_config(config, workdir / 'config.json')
  code, out, _ = run(workdir, '--against=t2-h14-jft-imagenet_real')
  assert code == 0 and 'cleaned/accuracy' in out
  shots = {'linear/accuracy_5shot': 0.6421, 'linear/accuracy_10shot': 0.7}
  workdir = copy_of_run(tmp_path / 'shots', lambda line: line | shots)
  config = load_config('configs/default.py', ['--config.evals.linear.kind=fewshot'])
  write_config(config, workdir / 'config.json')
  code, out, _ = run(workdir, '--against=t8-positions_1d')
  assert code == 0 and 'linear/accuracy_5shot' in out


RESULT = {
  'model': 'x.npz',
  'image_size': [224, 224],
  'preprocessing': {'resize': 'squash', 'crop_fraction': 1.0},
  'data': 'tfds:imagenet2012',
  'accuracy': 0.8797,
  'examples': 50_000,
  'real': {'accuracy': 0.9010, 'examples': 46_837},
  'confusions': [{'count': 3}],
}


def write_result(path, result):
  path.write_text(json.dumps(result))
  return path


def test_results_of_evaluate(run, tmp_path):
  path = write_result(tmp_path / 'a.json', RESULT)
  code, out, _ = run(path, '--against=t5-h14-jft-imagenet')
  assert code == 0 and '87.97' in out and 'images of [224, 224] pixels, the row of 384' in out
  code, out, _ = run(path, '--against=t5-h14-jft-imagenet_real', '--json')
  compared = json.loads(out)['comparisons'][0]
  assert (code, compared['metric']) == (0, 'real/accuracy')
  assert compared['measured'] == pytest.approx(90.10)
  changes = {
    'accuracy': 0.88,
    'preprocessing': {'resize': 'crop', 'crop_fraction': 0.9},
    'confusions': [],
  }
  other = write_result(tmp_path / 'b.json', RESULT | changes)
  code, out, err = run(path, f'--against={other}')
  assert code == 1 and 'first in accuracy: 0.8797, not 0.88' in err
  assert "their settings differ: preprocessing/resize ('squash', 'crop')" in out
  assert 'preprocessing/crop_fraction (1.0, 0.9)' in out and 'confusions' not in out


def test_a_mean_of_vtab(run, tmp_path):
  path = write_result(tmp_path / 'vtab.json', {'mean': 0.776, 'natural': 0.8})
  assert run(path, '--against=t2-h14-jft-vtab')[0] == 0
  assert run(path, '--against=bit-readme-r152x4-vtab_natural')[0] == 1


def test_the_table_comes_with_the_command(run, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = write_result(tmp_path / 'a.json', RESULT)
  assert run(path, '--against=t5-h14-jft-imagenet')[0] == 0


def _nothing(path):
  return ['/nowhere', '--against=augreg-ti16']


BAD_INPUT = {
  'no run': (_nothing, '/nowhere is no run and no result.*: No such file'),
  'no metrics': (lambda path: [path, '--against=augreg-ti16'], 'holds no metrics.jsonl'),
  'no such row': (lambda path: [RUN, '--against=b17'], "'b17' is neither a run nor a row"),
  'several rows': (lambda path: [RUN, '--against=cifar10'], 'and .* more; name the id of one'),
  'a cost': (lambda path: [RUN, '--against=t2-h14-jft-cost'], 'is the cost of pretraining'),
  'other data': (
    lambda path: [RUN, '--against=t5-b16-jft-cifar10'],
    r'scored 360 examples, but cifar10 \(t5-b16-jft-cifar10\) has 10,000',
  ),
  'no such metric': (
    lambda path: [RUN, '--against=augreg-ti16', '--metric=top1'],
    "has no metric 'top1'; there are train/gradient_norm, ",
  ),
  'no metric of the row': (
    lambda path: [RUN, '--against=t2-h14-jft-imagenet_real'],
    'has no metric to compare with t2-h14-jft-imagenet_real .*--metric',
  ),
  'nothing in common': (
    lambda path: [RUN, f'--against={write_result(path / "a.json", RESULT)}'],
    'have no metric and step in common',
  ),
  'no JSON': (
    lambda path: [RUN, f'--against={write_text(path / "a.json", "[1, 2")}'],
    'is no run and no result of evaluate --json',
  ),
  'no number': (
    lambda path: [RUN, f'--against={write_text(path / "a.json", "{}")}'],
    'there is no number in it',
  ),
  'a line cut short': (
    lambda path: [RUN, f'--against={write_text(path / "m.jsonl", "{")}'],
    'is no run and no result',
  ),
  'a line without a step': (
    lambda path: [RUN, f'--against={write_text(path / "m.jsonl", "{}")}'],
    'line 1 is not a JSON object with a step',
  ),
  'a negative tolerance': (
    lambda path: [RUN, f'--against={OTHER}', '--rtol=-1'],
    '--rtol is -1.0; it must be 0 or positive',
  ),
  'rtol and a row': (
    lambda path: [RUN, '--against=augreg-ti16', '--rtol=1'],
    '--rtol is for two runs',
  ),
  'a metric of two runs': (
    lambda path: [RUN, f'--against={OTHER}', '--metric=test/loss'],
    '--metric is for a published result',
  ),
  'no table': (
    lambda path: [RUN, '--against=augreg-ti16', f'--published={path}/none.csv'],
    'cannot be read as the table of published results: No such file',
  ),
}


def write_text(path, text):
  path.write_text(text)
  return path


@pytest.mark.parametrize('name', BAD_INPUT)
def test_bad_input_is_one_sentence(name, run, tmp_path):
  arguments, message = BAD_INPUT[name]
  code, out, err = run(*arguments(tmp_path))
  assert (code, out) == (2, '')
  assert err.count('\n') == 1 and err.startswith('error: ')
  assert re.search(message, err), err
