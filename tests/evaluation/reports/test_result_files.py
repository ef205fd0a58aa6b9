"""Tables and pictures are written on request; what cannot be written is refused before."""

import csv
import functools

import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.helpers import GOLDEN, write_images
from vit_jax import evaluate
from vit_jax.data import imagenet
from vit_jax.evaluation import classification, score
from vit_jax.evaluation.reports import confusion_picture

CLASSES = ('ant', 'bee', 'cat')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  vit = vit_jax.load(GOLDEN / 'vit_gap.npz').with_head(3, list(CLASSES))
  shape = np.shape(vit.params['head']['kernel'])
  vit.params['head']['kernel'] = np.random.default_rng(1).normal(size=shape).astype(np.float32)
  path = tmp_path_factory.mktemp('model') / 'model'
  vit.save(path)
  return path


@pytest.fixture
def data(tmp_path):
  write_images(tmp_path / 'x', {f'test/{c}/{i}.png': (9, 9) for c in CLASSES for i in range(3)})
  (tmp_path / 'x' / 'test' / 'bee' / '1.png').write_bytes(b'nothing')
  return tmp_path / 'x'


@pytest.fixture
def command(command, model, data):
  """Runs evaluate on the data; returns (exit code, stdout, stderr)."""
  flags = (f'--model={model}', f'--data=folder:{data}', '--on_bad_example=skip')
  return functools.partial(command, evaluate, *flags)


def read_table(path) -> list[dict[str, str]]:
  with open(path, newline='', encoding='utf-8') as file:
    return list(csv.DictReader(file))


@pytest.mark.parametrize('batch_size', [8, 16])
def test_each_example_is_in_the_predictions(batch_size, command, model, data, tmp_path):
  table = tmp_path / 'table.csv'
  table.write_text('image,label,top_class,probability,correct\nof an earlier call')
  code, out, err = command(f'--predictions={table}', f'--batch_size={batch_size}')
  assert (code, err) == (0, '') and '8 examples' in out
  rows, vit = read_table(table), vit_jax.load(model)
  assert [row['image'] for row in rows] == [
    str(data / 'test' / c / f'{i}.png') for c in CLASSES for i in range(3) if (c, i) != ('bee', 1)
  ]
  for row in rows:
    ((name, probability),) = vit.predict(row['image'], top_k=1)[0]
    assert row['top_class'] == name and row['label'] in row['image']
    assert row['correct'] == ('true' if name == row['label'] else 'false')
    assert float(row['probability']) == pytest.approx(probability, rel=1e-5)


def test_parquet_has_the_rows_of_the_table(command, tmp_path):
  parquet = pytest.importorskip('pyarrow.parquet')
  assert command(f'--predictions={tmp_path}/x.parquet')[0] == 0
  assert command(f'--predictions={tmp_path}/x.csv')[0] == 0
  columns = parquet.read_table(tmp_path / 'x.parquet').to_pydict()
  rows = read_table(tmp_path / 'x.csv')
  for name in ('image', 'label', 'top_class'):
    assert columns[name] == [row[name] for row in rows]
  assert columns['correct'] == [row['correct'] == 'true' for row in rows]
  np.testing.assert_allclose(columns['probability'], [float(row['probability']) for row in rows])


def test_classes_and_confusions_are_counted(command, tmp_path):
  flags = [f'--{name}={tmp_path}/{name}' for name in ('per_class', 'predictions', 'confusion')]
  code, _, err = command(f'{flags[0]}.csv', f'{flags[1]}.csv', f'{flags[2]}.png')
  assert (code, err) == (0, '')
  examples = read_table(tmp_path / 'predictions.csv')
  table = read_table(tmp_path / 'per_class.csv')
  assert [row['class'] for row in table] == list(CLASSES)
  for row in table:
    own = [each for each in examples if each['label'] == row['class']]
    correct = sum(each['correct'] == 'true' for each in own)
    assert (int(row['examples']), int(row['correct'])) == (len(own), correct)
    assert float(row['accuracy']) == pytest.approx(correct / len(own), rel=1e-5)
    wrong = [each['top_class'] for each in own if each['correct'] == 'false']
    assert row['top_wrong_count'] == (str(max(map(wrong.count, wrong))) if wrong else '')
    assert row['top_wrong_class'] in (wrong or [''])
  with Image.open(tmp_path / 'confusion.png') as picture:
    assert picture.format == 'PNG' and min(picture.size) > 100


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--per_class=x.txt'], '--per_class=x.txt must end in .csv.'),
    (['--predictions=x.npz'], 'must end in .csv or .parquet'),
    (['--predictions=x.csv', '--per_class=x.csv'], 'x.csv is named for two different files'),
    (['--predictions=nowhere/x.csv'], 'nowhere/x.csv is in no existing folder'),
    (['--confusion=other.png'], 'other.png exists and is none of --confusion'),
    (['--per_class=other.csv'], 'other.csv exists and is none of --per_class'),
    (['--confusion=folder.png'], 'folder.png is not a file'),
    (['--per_class=x.csv', '--eval=knn'], '--per_class needs --eval=classification, not knn'),
    (['--confusion=x.png', '--eval=real'], '--confusion needs --eval=classification, not real'),
    (['--predictions=x.csv', '--eval=knn'], 'needs --eval=classification or real, not knn'),
  ],
)
def test_what_cannot_be_written_is_refused_first(flags, message, command, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(evaluate, 'load', lambda *args, **kwargs: pytest.fail('the model is loaded'))
  (tmp_path / 'other.png').write_text('text')
  (tmp_path / 'other.csv').write_text('a,b\n1,2\n')
  (tmp_path / 'folder.png').mkdir()
  code, out, err = command(*flags)
  assert (code, out) == (2, '') and message in err and err.count('\n') == 1
  assert not (tmp_path / 'x.csv').exists()


def test_data_without_one_label_each_is_refused_first(command, tmp_path, monkeypatch):
  monkeypatch.setattr(score, 'run_evaluations', lambda *args: pytest.fail('it runs'))
  monkeypatch.setattr(confusion_picture, 'MAX_CLASSES', 2)
  code, _, err = command(f'--confusion={tmp_path}/x.png')
  assert code == 2 and '3 classes, and --confusion draws up to 2; use --per_class.' in err
  monkeypatch.setattr(classification, 'keeps_labels', lambda source: False)
  code, _, err = command(f'--predictions={tmp_path}/x.csv')
  assert code == 2 and 'too many labels for --predictions' in err


def test_several_labels_of_an_image_are_all_named(command, tmp_path, monkeypatch):
  vit = vit_jax.load(GOLDEN / 'vit_gap.npz').with_head(1000)
  vit.save(tmp_path / 'model.npz')
  names = [f'{c}/ILSVRC2012_val_{i:08}.JPEG' for c, i in (('a', 1), ('a', 2), ('b', 3))]
  write_images(tmp_path / 'val', dict.fromkeys(names, (8, 8)))
  code, out, err = command(
    f'--model={tmp_path}/model.npz',
    f'--data=folder:{tmp_path}/val',
    '--split=all',
    '--eval=real',
    f'--predictions={tmp_path}/x.csv',
    '--json',
  )
  assert (code, err) == (0, '') and '"examples_without_label": 1' in out
  rows = read_table(tmp_path / 'x.csv')
  assert [row['image'] for row in rows] == [f'{tmp_path}/val/{name}' for name in names[1:]]
  labels = [set(row['label'].split(' | ')) for row in rows]
  ids = imagenet.synsets()
  assert labels[1] in (
    {ids[i] for i in (230, 231)},
    {imagenet.class_names(ids)[i] for i in (230, 231)},
  )
