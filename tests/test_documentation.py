"""Every command and snippet of README.md and docs/ works: run on tiny things, or at least parsed.

A command is in RUN or in PARSED, a Python block is run, any other block is in OTHER; something new
that is in none of them fails. Messages that docs/troubleshooting.md quotes are in the package.
"""

import ast
import importlib
import pathlib
import re
import runpy
import shlex
import shutil
import sys

import pytest

import vit_jax
from tests.helpers import GOLDEN, ROOT, TINY, write_images
from vit_jax import command_line
from vit_jax.config import load_config

DOCS = ROOT / 'docs'
PAGES = [ROOT / 'README.md', *sorted(DOCS.rglob('*.md'))]
# What stands in for what a reader has: in commands and in Python.
SUBSTITUTIONS = (
  ('/my/images', 'images'),
  ('/my/data', 'prepared'),
  ('IMAGE…', 'a.jpg b.png'),
  ('tabby,Egyptian cat', '3,5'),
  ('augreg/B_16-imagenet2012', 'runs/quickstart/model'),
  ('ViT-L_16.npz', str(GOLDEN / 'vit_gap.npz')),
  ('image_size=384', 'image_size=32'),
  ('folder-or-file-of-transformers-or-timm', 'transformers'),
  ('--model=M ', '--model=runs/quickstart/model '),
  ('--data=D ', '--data=digits '),
  ('WORKDIR', 'runs/quickstart'),
  ('sweep …', 'sweep --config=configs/quickstart.py --grid config.optimizer.b2=0.9,0.99'),
  ('…', ''),
)
_TINY = ' '.join(TINY)
_SMALL = (
  f'{_TINY} --config.total_steps=2 --config.schedule.warmup_steps=1 --config.eval_batch_size=8'
)
# Commands that are run (a regular expression of their beginning), with further arguments.
RUN = {
  r'main --config=configs/quickstart_finetune\.py$': (
    f'{_SMALL} --config.init_from=runs/quickstart/model --config.eval_batch_size=120'
  ),
  r'main --config=configs/ablations\.py:positions_2d,digits': (
    '--config.total_steps=2 --config.model.width=16 --config.model.mlp_dim=32 '
    '--config.model.num_heads=2 --config.batch_size=16 --config.eval_batch_size=120'
  ),
  r'evaluate --model=(M|runs/quickstart/model) --data=(digits|folder:/my/images)$': '',
  r'evaluate --model=M --data=D': '--per_class=classes.csv',
  r'predict --model=runs/quickstart/model': '',
  r'convert runs/quickstart/model': '',
  r'prepare_data (folder:)?/my/images': '--workers=1',
  r'catalog dinov2$': '',
  r'goodput (WORKDIR|runs/a|runs/quickstart)$': '',
  r'report (WORKDIR|runs/)': '',
  r'verify runs/a --against=runs/b$': '',
}
# Commands that are only parsed, with their config loaded, and why.
PARSED = {
  r'main --config=configs/quickstart\.py$': 'the fixture tiny_run',
  r'main --config=configs/quickstart\.py --config\.tracker=': 'tests/training/test_trackers.py',
  r'explain ': 'tests/test_explain.py',
  r'main .*(:h14,|:l16,|:b16,|vit_[bglh]1?\d+\.py|jft|imagenet21k|positions_2d$)': 'too large',
  r'main .*masked_patches|main .*masked_small': 'tests/training/test_masked_patch_runs.py',
  r'main .*configs/finetune\.py:ti16,folder': 'needs released weights; tests/test_own_images.py',
  r'main .*configs/finetune\.py:dinov2': 'needs weights; tests/config/test_foundation.py',
  r'main .*positions_2d,folder': 'as the one on digits',
  r'main .*small_images\.py:folder:/my/images$': 'tests/test_own_images.py has such folders',
  r'main .*local_resnet': 'tests/models/attention',
  r'main .*config\.json': 'tests/training/test_resume_from.py',
  r'main --config=… ': 'tests/training/test_profiling.py',
  r'evaluate .*(imagenet|/imagenet)': 'needs ImageNet; tests/evaluation',
  r'evaluate --model=dinov2': 'needs released weights; tests/weights/test_model_files.py',
  r'evaluate .*zero_shot': 'tests/evaluation/test_zero_shot.py',
  r'evaluate .*linear_probe': '12,500 steps; tests/evaluation/probes',
  r'predict .*(submission|runs/finetune)': 'tests/test_commands.py',
  r'convert imagenet21k': 'needs released weights; tests/test_convert.py',
  r'prepare_data (/data|/nfs|tfds:)': 'tests/prepare',
  r'plan ': 'tests/planning',
  r'sweep ': 'tests/test_sweep.py',
  r'experiments\.scaling ': 'tests/experiments',
  r'vtab ': 'tests/transfer',
  r'verify (?!runs/a --against=runs/b$)': 'tests/test_verify.py',
}
# Other lines of bash, and why they are not run.
OTHER = {
  r'pip install': 'the network',
  r'pytest': 'these tests',
  r'python -c "import (jax|tensorflow_datasets)': 'downloads, or only prints devices',
  r'kill -USR1': 'tests/training/test_profiling.py',
}


def blocks(language: str) -> list[tuple[pathlib.Path, str]]:
  """(page, text) of the blocks in a language, in order; without those that have a title."""
  pattern = re.compile(rf'^( *)```{language}\n(.*?)^ *```$', re.MULTILINE | re.DOTALL)
  return [
    (page, re.sub(f'^{indent}', '', text, flags=re.MULTILINE))
    for page in PAGES
    for indent, text in pattern.findall(page.read_text())
  ]


def commands() -> list[str]:
  """The lines of bash, joined where they continue, without comments; each once."""
  lines = []
  for _, text in blocks('bash'):
    for line in text.replace('\\\n', ' ').splitlines():
      parts = re.split(r' && ', re.sub(r'\s+# .*', '', line))
      lines += [re.sub(r'\s+', ' ', part).strip() for part in parts]
  return list(dict.fromkeys(filter(None, lines)))


COMMANDS = commands()
OURS = [re.sub(r'^.*?python -m vit_jax\.', '', x) for x in COMMANDS if 'python -m vit_jax.' in x]


def matching(table: dict[str, str], command: str) -> list[str]:
  return [value for pattern, value in table.items() if re.match(pattern, command)]


def substituted(text: str) -> str:
  for placeholder, value in SUBSTITUTIONS:
    text = text.replace(placeholder, value)
  return text


def split(command: str) -> tuple[str, list[str]]:
  """'main --config=… > x | y' -> 'main' and its arguments."""
  module, *arguments = shlex.split(substituted(re.split(r' [>|] ', f'{command} ')[0]))
  return module, arguments


@pytest.fixture(scope='module')
def folder(tiny_run, tmp_path_factory):
  """What a reader has: configs, a run, images."""
  path = tmp_path_factory.mktemp('reader')
  (path / 'configs').symlink_to(ROOT / 'configs')
  for name in ('quickstart', 'quickstart_finetune', 'a', 'b'):
    shutil.copytree(tiny_run, path / 'runs' / name)
  write_images(path, dict.fromkeys(('a.jpg', 'b.png', 'cat.jpg', 'dog.jpg'), (9, 12)))
  vit_jax.load(GOLDEN / 'vit_patch14.npz').save(path / 'transformers')
  # Of the classes of the tiny run, so that it can be evaluated on them.
  write_images(path, {f'images/{k}/{i}.png': (8, 8) for k in range(10) for i in range(8)})
  return path


def test_every_command_is_run_or_parsed_for_a_reason():
  for command in OURS:
    assert len(matching(RUN, command)) + bool(matching(PARSED, command)) == 1, command
  others = [x for x in COMMANDS if 'python -m vit_jax.' not in x]
  assert not [command for command in others if not matching(OTHER, command)]


def test_nothing_is_listed_that_no_page_has():
  listed = [*RUN, *PARSED, *OTHER]
  lines = [*OURS, *COMMANDS]
  assert not [pattern for pattern in listed if not any(re.match(pattern, x) for x in lines)]


class ParsedError(Exception):
  """Ends a command once its arguments are parsed."""


@pytest.mark.parametrize('command', [x for x in OURS if matching(PARSED, x)])
def test_a_command_is_parsed(command, monkeypatch):
  parse = command_line.Parser.parse_known_args
  seen = []

  def parse_known_args(self, args=None, namespace=None):
    seen.append(parse(self, args, namespace))
    raise ParsedError

  def parse_args(self, args=None, namespace=None):
    values, unknown = parse(self, args, namespace)
    assert not unknown
    seen.append((values, []))
    raise ParsedError

  monkeypatch.setattr(command_line.Parser, 'parse_known_args', parse_known_args)
  monkeypatch.setattr(command_line.Parser, 'parse_args', parse_args)
  module, arguments = split(command)
  monkeypatch.setattr(sys, 'argv', [module, *arguments])
  try:
    importlib.import_module(f'vit_jax.{module}').main()
  except ParsedError:
    (values, overrides), *_ = seen
  else:
    pytest.fail('it parsed nothing')
  config = getattr(values, 'config', '')
  if 'config.json' in config or not config:  # of a run, or of the command's own
    config = 'configs/quickstart.py'
  load_config(config, overrides)


@pytest.mark.parametrize('command', [x for x in OURS if matching(RUN, x)])
def test_a_command_runs(command, folder, monkeypatch, capsys):
  monkeypatch.chdir(folder)
  (more,) = matching(RUN, command)
  shutil.rmtree('prepared', ignore_errors=True)  # as of another command
  module, arguments = split(command)
  if module == 'main':
    arguments.append(f'--workdir=runs/{abs(hash(command))}')
  monkeypatch.setattr(sys, 'argv', [module, *arguments, *shlex.split(more)])
  with pytest.raises(SystemExit) as stopped:
    command_line.run(importlib.import_module(f'vit_jax.{module}').main)
  assert stopped.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize(
  'page', sorted({page for page, _ in blocks('python')}), ids=lambda p: p.name
)
def test_the_snippets_of_a_page_run(page, folder, monkeypatch):
  if page.name == 'extending.md':
    pytest.skip('tests/test_extending.py')
  if page.name == 'explain.md':
    pytest.importorskip('matplotlib')
  monkeypatch.chdir(folder)
  names = {}
  for of, text in blocks('python'):
    if of == page:
      exec(compile(substituted(text), str(page), 'exec'), names)


def strings_of_the_package() -> str:
  """All string literals, adjacent ones joined, with … for what is formatted into them."""
  texts = []
  for path in (ROOT / 'vit_jax').rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.JoinedStr):
        parts = [x.value if isinstance(x, ast.Constant) else '…' for x in node.values]
        texts.append(''.join(map(str, parts)))
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        texts.append(node.value)
  return '\n'.join(texts)


def test_quoted_messages_are_in_the_package():
  page = (DOCS / 'troubleshooting.md').read_text()
  package = strings_of_the_package()
  quoted = re.findall(r'^```text\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)
  assert len(quoted) > 10
  missing = [
    fragment
    for text in quoted
    for fragment in re.split(r'…|\); |; ', text.strip().removeprefix('error: '))
    if len(fragment.strip(' .,;:()')) > 3 and fragment.strip(' .') not in package
  ]
  assert not missing


def test_the_architecture_is_drawn_as_the_command_draws_it():
  drawing = runpy.run_path(str(DOCS / 'make_pictures.py'))
  picture = (DOCS / 'pictures' / 'architecture.svg').read_text()
  assert picture == drawing['draw_architecture']()
  names = [name for name, box in drawing['BOXES'].items() if box[3] != 'file' and '/' in name]
  folders = [ROOT / 'vit_jax' / name for name in names]
  assert all(path.exists() or path.with_suffix('.py').exists() for path in folders)


def test_links_inside_the_repository_lead_to_files():
  broken = []
  for page in [*PAGES, ROOT / 'CONTRIBUTING.md']:
    for link in re.findall(r'\]\(([^)#\s]+)', page.read_text()):
      if not re.match('[a-z]+:', link) and not (page.parent / link).exists():
        broken.append(f'{page.name}: {link}')
  assert not broken
