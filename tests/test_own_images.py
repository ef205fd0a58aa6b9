"""docs/own_images.md: every row of its tables, and a competition from its table to a submission."""

import csv
import functools
import pathlib
import re

import pytest

from tests.helpers import ROOT, TINY, run, write_images
from vit_jax.config import load_config
from vit_jax.training.preflight import inspect_data, open_sources

SIZE = (20, 20)
CLASSES = ('cat', 'dog', 'owl')
ANIMALS = {f'{c}{i}': c for c in CLASSES for i in range(8)}

# What one types -> the files that one has, for each row; {c} is a class, {i} a number.
FOLDERS = {
  'folder:/my/images': [
    ['{c}/{i}.png'],
    ['Training/{c}/{i}.png', 'Validation/{c}/{i}.png'],
    ['archive/dataset/train/{c}/{i}.png'],
    ['train/{c}/{i}.png', 'test/{i}{c}.png'],
  ],
  r'folder:/my/images?pattern=(\w+)\.\d+': [
    ['{c}.{i}.png'],
    ['train/{c}.{i}.png', 'test1/{i}.png'],
  ],
  'folder:/my/images?pattern=^[^/]+/([^/]+)/': [['2020/{c}/{i}.png', '2021/{c}/{i}.png']],
  r'folder:/my/images?group=(p\d+)_': [['{c}/p{i}_left.png', '{c}/p{i}_right.png']],
  'folder:/my/images?fold=2/5': [['{c}/{i}.png']],
}


def rows(header: str, *columns: str, separator: str = ',') -> str:
  """A table of all animals; in `columns`, n is the name, c the class, i a number."""
  lines = [header] if header else []
  for i, (name, kind) in enumerate(ANIMALS.items()):
    values = {'n': name, 'c': kind, 'i': str(i), 's': ('train', 'val', 'test')[i % 3]}
    lines.append(separator.join(values.get(column, column.format(**values)) for column in columns))
  return '\n'.join(lines) + '\n'


def one_hot(extra: str = '') -> str:
  lines = [f'id,cat,dog,owl{extra and ",age"}']
  for i, (name, kind) in enumerate(ANIMALS.items()):
    values = [int(c == kind or i % 5 == 0) for c in CLASSES]
    lines.append(','.join([name, *map(str, values)]) + extra)
  return '\n'.join(lines) + '\n'


# What one types -> the table that one has.
TABLES = {
  'train.csv': rows('id,breed', 'n', 'c'),
  'labels.csv': rows('file,label', r'images\{n}.png', 'c'),
  'a.csv?image=photo&label=kind': rows('id,photo,kind,age', 'i', 'n', 'c', '7'),
  'lists/b.csv?root=../photos': rows('file,label', 'n', 'c'),
  'c.csv': rows('id,labels', 'n', '{c}|wild'),
  'd.csv?sep=%20': rows('id,labels', 'n', '{c} wild'),
  'e.csv': one_hot(),
  'f.csv?label=cat,dog,owl': one_hot(',7'),
  'g.csv': rows('id,kind,set', 'n', 'c', 's'),
  'h.csv?split=usage_2': rows('id,kind,usage_2', 'n', 'c', 's'),
  'i.csv?incomplete=skip': rows('id,kind', 'n', 'c') + 'missing,cat\n',
  'j.csv?group=patient': rows('id,label,patient', 'n', 'c', 'i'),
  r'k.csv?group=(p\d+)_': rows('id,label', 'p{i}_left', 'c') + rows('', 'p{i}_right', 'c'),
  'l.csv?fold=2/5': rows('id,label', 'n', 'c'),
  'm.txt?columns=image,label': rows('', 'n', 'c', separator=' '),
  'metadata.jsonl': rows('', '{{"file_name": "{n}.png", "label": "{c}"}}'),
  'labels.parquet': '',
}


@functools.cache
def documented(kind: str) -> list[str]:
  """What the tables of the page say to type."""
  page = (ROOT / 'docs' / 'own_images.md').read_text()
  return re.findall(rf'^\|.*\| `({kind}:[^`]*)` \|$', page, re.MULTILINE)


def test_the_page_has_these_rows():
  assert sorted(documented('folder')) == sorted(s for s in FOLDERS for _ in FOLDERS[s])
  assert documented('table') == [f'table:/x/{name}' for name in TABLES]


def check_three_lines(spec: str, multi_label: bool = False) -> None:
  """Reads the config and the data as `main` does, up to the weights."""
  config = load_config(f'configs/finetune.py:ti16,{spec}')
  train, test = open_sources(config.data)
  assert set(CLASSES) <= set(train.class_names) <= {*CLASSES, 'wild'}
  assert train.multi_label == multi_label and test.size >= 3
  card = inspect_data(config.data, train, test)
  assert 'cat' in card and 'no images in' not in card


@pytest.mark.parametrize(
  ('spec', 'patterns'), [(spec, patterns) for spec in FOLDERS for patterns in FOLDERS[spec]]
)
def test_every_row_of_folders(spec, patterns, tmp_path):
  names = [p.format(c=c, i=i) for p in patterns for c in CLASSES for i in range(10)]
  write_images(tmp_path, dict.fromkeys(names, SIZE))
  check_three_lines(spec.replace('/my/images', str(tmp_path)))


@pytest.mark.parametrize('source', TABLES)
def test_every_row_of_tables(source, tmp_path):
  folder = 'photos' if 'photos' in source else 'images' if source == 'labels.csv' else 'train'
  names = [f'p{i}_{side}' for i in range(24) for side in ('left', 'right')]
  write_images(tmp_path, {f'{folder}/{name}.png': SIZE for name in (*ANIMALS, *names)})
  path = tmp_path / source.partition('?')[0]
  path.parent.mkdir(exist_ok=True)
  path.write_text(TABLES[source])
  if path.suffix == '.parquet':
    pa = pytest.importorskip('pyarrow')
    parquet = pytest.importorskip('pyarrow.parquet')
    columns = {'file_name': list(ANIMALS), 'label': list(ANIMALS.values())}
    parquet.write_table(pa.table(columns), path)
  check_three_lines(f'table:{tmp_path}/{source}', multi_label=source[0] in 'cdef')


def test_a_competition_from_its_table_to_a_submission(tmp_path):
  data = tmp_path / 'dog-breed'
  images = [f'train/{name}.jpg' for name in ANIMALS] + [f'test/t{i}.jpg' for i in range(5)]
  write_images(data, dict.fromkeys(images, SIZE))
  (data / 'labels.csv').write_text(rows('id,breed', 'n', 'c'))
  ids = ['t3', 't0', 't4', 't1', 't2']
  template = data / 'sample_submission.csv'
  template.write_text('\n'.join(['id,cat,dog,owl', *(f'{i},.3,.3,.3' for i in ids)]) + '\n')
  workdir, submission = tmp_path / 'run', tmp_path / 'submission.csv'
  trained = run(
    'main', f'--config=configs/finetune.py:ti16,table:{data}/labels.csv', f'--workdir={workdir}',
    *TINY, '--config.total_steps=2', '--config.batch_size=8', '--config.eval_batch_size=8',
    '--config.init_from=', '--config.data.image_size=16', '--config.schedule.warmup_steps=0',
  )  # fmt: skip
  assert trained.returncode == 0, trained.stderr
  predicted = run(
    'predict', f'--model={workdir}', f'--csv={submission}', f'--template={template}', data / 'test'
  )
  assert predicted.returncode == 0, predicted.stderr
  with submission.open(newline='') as file, pathlib.Path(template).open(newline='') as expected:
    written, wanted = list(csv.DictReader(file)), list(csv.DictReader(expected))
  assert [list(row) for row in written] == [list(row) for row in wanted]
  assert [row['id'] for row in written] == ids
  for row in written:
    assert abs(sum(float(row[name]) for name in CLASSES) - 1) < 1e-4
