"""results/published.csv: every row can be read, and its commands can be started."""

import argparse
import math
import re
import shlex

import pytest

from tests.helpers import ROOT, TINY
from vit_jax import command_line, main
from vit_jax.config import load_config
from vit_jax.data.sources.splitting import splits
from vit_jax.errors import UserError
from vit_jax.planning import topologies
from vit_jax.verification import published
from vit_jax.weights import registry

ROWS = published.read_rows(ROOT / 'results' / 'published.csv')
COMMANDS = {command: row.id for row in ROWS for command in row.command.split(' && ') if row.command}
KINDS = ('classification', 'real', 'fewshot', 'knn', 'linear_probe')


def parse(command: str) -> tuple[str, argparse.Namespace, list[str]]:
  """(module, --config, --model and the like, other flags) of a `python -m vit_jax.…` command."""
  python, dash_m, module, *flags = shlex.split(command)
  assert (python, dash_m, module[:8]) == ('python', '-m', 'vit_jax.')
  parser = argparse.ArgumentParser(allow_abbrev=False)
  for name in ('config', 'model', 'data', 'split', 'eval', 'workdir', 'topology'):
    parser.add_argument(f'--{name}')
  args, rest = parser.parse_known_args(flags)
  return module[8:], args, rest


def test_every_row_has_a_value_a_source_and_a_command():
  assert len({row.id for row in ROWS}) == len(ROWS) > 300
  for row in ROWS:
    assert math.isfinite(row.value) and row.source and row.noise > 0, row
    assert row.command or row.note.startswith('not reproducible here: '), row
    accuracies = ('accuracy', 'accuracy_5shot', 'mean_accuracy')
    assert row.metric in (*accuracies, 'exaflops', 'tpu_v3_core_days')
    assert 'accuracy' not in row.metric or 10 < row.value < 100


def test_the_headline_rows():
  by_id = {row.id: row for row in ROWS}
  values = {'imagenet': 88.55, 'imagenet_real': 90.72, 'cifar100': 94.55, 'vtab': 77.63}
  assert {name: by_id[f't2-h14-jft-{name}'].value for name in values} == values


@pytest.mark.parametrize('module', ['main', 'plan', 'evaluate', 'vtab'])
def test_every_command_can_be_started(module):
  """Configs load with their overrides, data and splits can be parsed, weights are published."""
  workdirs = {
    args.workdir or command_line.default_workdir(args.config)
    for name, args, _ in map(parse, COMMANDS)
    if name == 'main'
  }
  configs = set()
  for command in COMMANDS:
    name, args, rest = parse(command)
    if name != module:
      continue
    if args.config:
      configs.add((args.config, *(flag for flag in rest if 'init_from=runs/' not in flag)))
    else:
      assert not rest
    if args.topology:
      topologies.parse_topology(args.topology)
    if args.model and args.model.startswith('runs/'):
      assert args.model.removesuffix('/model') in workdirs
    elif args.model:
      assert registry.find(args.model).name
    if args.data:
      assert re.fullmatch(r'tfds:\w+', args.data) and splits.parse(args.split)
      assert args.eval in KINDS
  for config, *overrides in configs:
    load_config(config, overrides).resolve_steps(1_281_167)


def test_runs_start_from_what_was_trained_before():
  """Within a row, what a command reads the commands before it have written."""
  for row in ROWS:
    written = set()
    for command in filter(None, row.command.split(' && ')):
      _, args, rest = parse(command)
      used = [args.model, *(flag.partition('init_from=')[2] for flag in rest)]
      assert {name for name in used if name and name.startswith('runs/')} <= written, row.id
      if args.config:
        written.add(f'{args.workdir or command_line.default_workdir(args.config)}/model')


def test_rows_of_several_results_have_different_workdirs():
  training = {}
  for command in COMMANDS:
    name, args, rest = parse(command)
    if name == 'main':
      workdir = args.workdir or command_line.default_workdir(args.config)
      assert training.setdefault(workdir, command) == command


def test_values_agree_with_the_table_of_published_weights():
  for row in ROWS:
    name = parse(row.command)[1].model if row.command.count('vit_jax.') == 1 else None
    if name and row.target == 'imagenet' and (model := registry.find(name)).accuracy:
      assert (row.value, int(row.resolution)) == (model.accuracy, model.resolution)


def test_a_selection_finds_rows_of_one_result():
  (row,) = published.find_rows(ROWS, 'augreg-ti16')
  assert (row.model, row.value) == ('ViT-Ti/16', 78.22)
  found = published.find_rows(ROWS, 'ViT-L/16,imagenet21k,cifar10')
  assert found[0].id == 't2-l16-imagenet21k-cifar10' and len(found) == 4
  (row,) = published.find_rows(ROWS, 'vit-l/16, imagenet21k, cifar10, table 5')
  assert row.value == 99.16
  with pytest.raises(UserError, match=r'selects \d+ rows.*: t2-h14-jft-imagenet .*and \d+ more'):
    published.find_rows(ROWS, 'imagenet')
  with pytest.raises(UserError, match='neither a run nor a row'):
    published.find_rows(ROWS, 'ViT-L/16,imagenet22k')


@pytest.mark.parametrize(
  ('id', 'noise'),
  [
    ('t2-h14-jft-imagenet', 0.12),  # three standard deviations
    ('t2-l16-jft-flowers', 0.005),  # 0.00: as much as rounding hides
    ('band-b32-cifar10', 0.14),  # the width of the range
    ('augreg-ti16', 0.5),  # no spread
  ],
)
def test_the_noise_of_a_row(id, noise):
  assert published.find_rows(ROWS, id)[0].noise == pytest.approx(noise)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda lines: ['a,b', *lines[1:]], 'its columns are not id, model'),
    (lambda lines: [*lines, 'x,y'], 'line 3 does not have 12 columns'),
    (lambda lines: [lines[0], lines[1].replace('88.55', 'much')], 'could not convert'),
    (lambda lines: [lines[0], lines[1].replace('0.04', '1 to')], 'could not convert'),
    (lambda lines: ['\x00'], 'its columns are not|line contains NUL'),
  ],
)
def test_another_table_is_refused_in_one_sentence(change, message, tmp_path):
  path = tmp_path / 'rows.csv'
  lines = (ROOT / 'results' / 'published.csv').read_text().splitlines()[:2]
  path.write_text('\n'.join(change(lines)) + '\n')
  with pytest.raises(UserError, match=message) as caught:
    published.read_rows(path)
  assert '\n' not in str(caught.value)


def test_the_commands_of_the_page_can_be_started():
  """docs/reproduce.md: configs load, rows exist, what is read was written before."""
  page = (ROOT / 'docs' / 'reproduce.md').read_text()
  commands = re.findall(r'^python -m vit_jax[.].*', page, re.MULTILINE)
  written, configs = set(), set()
  for command in commands:
    name, args, rest = parse(command.partition(' > ')[0].partition('  #')[0])
    if args.config:
      rest = [flag for flag in rest if flag != '--paper_grid']
      configs.add((args.config, *(flag for flag in rest if 'init_from' not in flag)))
    used = [args.model, *(flag.partition('init_from=')[2] for flag in rest)]
    if name == 'verify':
      workdir, row = rest[0], rest[1].removeprefix('--against=')
      assert published.find_rows(ROWS, row)[0].id == row
      used += [f'{workdir}/model'] if workdir.startswith('runs/') else []
    assert {name for name in used if name and name.startswith('runs/')} <= written, command
    written.add(f'{args.workdir}/model')
  for config, *overrides in configs:
    load_config(config, overrides)
  assert len(commands) > 40


@pytest.mark.parametrize('id', ['t5-b16-jft-cifar10'])
def test_the_commands_of_a_row_run(id, monkeypatch, tmp_path):
  """Pretraining and fine-tuning of a tiny model on digits, two steps each."""
  (row,) = published.find_rows(ROWS, id)
  tiny = [flag for flag in TINY if 'total_steps' not in flag and 'warmup' not in flag]
  tiny += ['--config.total_steps=2', '--config.schedule.warmup_steps=1', '--config.eval_every=2']
  tiny += ['--config.data.train.source=digits', '--config.data.train.split=train']
  tiny += ['--config.data.test.split=test[:32]', '--config.data.num_classes=0']
  tiny += ['--config.model.patch_size=4', '--config.data.workers=0', '--config.loss=softmax']
  monkeypatch.chdir(tmp_path)
  commands = [command for command in row.command.split(' && ') if parse(command)[0] == 'main']
  for command in commands:
    _, args, rest = parse(command)
    flags = [f'--config={args.config}', *rest, *tiny]
    workdir = args.workdir or command_line.default_workdir(args.config)
    monkeypatch.setattr('sys.argv', ['main', *flags, f'--workdir={workdir}'])
    with pytest.raises(SystemExit) as caught:
      command_line.run(main.main)
    assert caught.value.code == 0
  assert (tmp_path / workdir / 'model').exists() and len(commands) == 2
