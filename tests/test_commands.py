"""The `predict` and `evaluate` commands."""

import csv
import dataclasses
import importlib.util
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.helpers import GOLDEN, ROOT, write_images
from vit_jax import evaluate, predict
from vit_jax.evaluation.reports.predictions import predict_files, read_list


@pytest.fixture
def images(tmp_path):
  """One image of each kind that cameras, scanners and browsers write."""
  pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
  image = Image.fromarray(pixels)
  image.convert('L').save(tmp_path / 'gray.jpg')
  image.convert('CMYK').save(tmp_path / 'cmyk.jpg')
  image.convert('RGBA').save(tmp_path / 'with alpha.png')
  Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(tmp_path / 'sixteen bits.png')
  return tmp_path


def test_predict_prints_class_names(tiny_run, images, command):
  code, out, err = command(predict, f'--model={tiny_run}', images, '--top_k=3')
  assert (code, err) == (0, '')
  lines = out.splitlines()
  assert lines[::4] == [str(path) for path in sorted(images.iterdir())]
  assert all(line.split()[-1] in '0123456789' for line in lines if line.startswith('  '))


def test_predict_json_is_the_models_softmax(tiny_run, images, command):
  files = [images / 'cmyk.jpg', images / 'gray.jpg']
  code, out, err = command(predict, f'--model={tiny_run}/model', *files, '--json')
  assert (code, err) == (0, '')
  vit = vit_jax.load(tiny_run)
  for file, line in zip(files, out.splitlines(), strict=True):
    answer = json.loads(line)
    assert answer['image'] == str(file)
    logits = np.asarray(vit(vit.preprocess(file.read_bytes())[None]))[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    assert [entry['index'] for entry in answer['top']] == list(np.argsort(-expected)[:5])
    for entry in answer['top']:
      assert entry['label'] == str(entry['index'])
      np.testing.assert_allclose(entry['probability'], expected[entry['index']], rtol=1e-5)


def test_predictions_do_not_depend_on_the_batch_size(tiny_run, tmp_path):
  write_images(tmp_path, {f'{i:02}.png': (8 + i % 3, 9) for i in range(35)})
  vit = vit_jax.load(tiny_run)
  paths = sorted(tmp_path.iterdir())
  whole = list(predict_files(vit, paths, top_k=10))
  assert [each.path for each in whole] == paths
  for one, many in zip(predict_files(vit, paths, top_k=10, batch_size=4), whole, strict=True):
    probabilities = [[p for _, _, p in each.top] for each in (one, many)]
    np.testing.assert_allclose(*probabilities, rtol=1e-5)


def test_predict_reads_a_list_and_writes_a_table(tiny_run, images, command, tmp_path):
  names = [images / 'gray.jpg', images / 'cmyk.jpg']
  (tmp_path / 'list.txt').write_text(''.join(f'{name}\n\n' for name in names))
  table = tmp_path / 'table.csv'
  code, out, err = command(
    predict, f'--model={tiny_run}', f'--list={tmp_path}/list.txt', f'--csv={table}', '--top_k=2'
  )
  assert (code, out, err) == (0, '', '')
  with table.open(newline='') as file:
    rows = list(csv.DictReader(file))
  assert [row['image'] for row in rows] == [str(name) for name in names for _ in range(2)]
  assert [row['rank'] for row in rows] == ['1', '2'] * 2
  expected = vit_jax.load(tiny_run).predict(names, top_k=2)
  assert [row['label'] for row in rows] == [label for top in expected for label, _ in top]
  probabilities = [p for top in expected for _, p in top]
  np.testing.assert_allclose([float(row['probability']) for row in rows], probabilities, rtol=1e-4)


@pytest.mark.parametrize('name', ['gray.jpg', 'm.npz', 'paths', 'folder', 'pipe', 'none/x.csv'])
def test_a_table_replaces_nothing_but_a_table(name, images, command):
  os.mkfifo(images / 'pipe')
  (images / 'folder').mkdir()
  (images / 'm.npz').write_bytes((GOLDEN / 'vit_gap.npz').read_bytes())
  (images / 'paths').write_text(f'{images}/gray.jpg\n')
  before = {path: path.read_bytes() for path in images.iterdir() if path.is_file()}
  arguments = (f'--model={images}/m.npz', f'--list={images}/paths', f'--csv={images / name}')
  code, out, err = command(predict, *arguments)
  assert (code, out) == (2, '') and name in err and err.count('\n') == 1
  assert {path: path.read_bytes() for path in images.iterdir() if path.is_file()} == before
  assert (images / 'pipe').is_fifo()


def test_results_are_not_in_the_line_of_the_progress_bar(images, command, monkeypatch):
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  (images / 'bad.png').write_text('no image')
  for name in ('stdout', 'stderr'):
    monkeypatch.setattr(sys, name, terminal)
  command(predict, f'--model={GOLDEN}/vit_gap.npz', images, '--top_k=1')
  lines = [line.split('\r')[-1] for line in terminal.getvalue().split('\n')]
  assert '0/5' in terminal.getvalue()
  assert sum(line.startswith(str(images)) for line in lines) == 4
  assert sum(line.startswith('error: ') for line in lines) == 1


def test_names_of_a_list_end_only_with_the_line(tmp_path):
  (tmp_path / 'list').write_text('a\x0cb\u2028c.jpg\r\n\nd.jpg\n')
  assert read_list(str(tmp_path / 'list')) == ['a\x0cb\u2028c.jpg', 'd.jpg']


def test_predict_writes_a_submission(tiny_run, images, command, tmp_path):
  template, written = tmp_path / 'sample.csv', tmp_path / 'submission.csv'
  template.write_text('\ufeffid,digit\r\ngray,0\r\ncmyk.jpg,0\r\n', 'utf-8')
  flags = [f'--model={tiny_run}', f'--template={template}', images]
  assert command(predict, *flags, f'--csv={written}') == (0, '', '')
  expected = vit_jax.load(tiny_run).predict([images / 'gray.jpg', images / 'cmyk.jpg'], top_k=1)
  with written.open(newline='') as file:
    assert list(csv.reader(file)) == [
      ['id', 'digit'], ['gray', expected[0][0][0]], ['cmyk.jpg', expected[1][0][0]]
    ]  # fmt: skip
  template.write_text(f'id,{",".join("9876543210")}\ngray{",0" * 10}\n')
  written.unlink()
  assert command(predict, *flags, f'--csv={written}') == (0, '', '')
  with written.open(newline='') as file:
    (row,) = csv.DictReader(file)
  assert max('0123456789', key=lambda name: float(row[name])) == expected[0][0][0]
  np.testing.assert_allclose(sum(float(row[name]) for name in '0123456789'), 1, rtol=1e-5)
  for text, reason in (
    ('id,digit\ngray,0\nother,0\n', "1 row of 2 without a prediction, such as 'other'"),
    ('id,a,b\ngray,0,0\n', 'columns id, a, b; a name and a label are needed, or a name and the 10'),
  ):
    template.write_text(text)
    code, _, err = command(predict, *flags, f'--csv={written}.2')
    assert code == 2 and reason in err and err.count('\n') == 1
  code, _, err = command(predict, *flags)
  assert code == 2 and '--csv=FILE' in err


def test_predict_takes_other_labels(images, command, tmp_path):
  (tmp_path / 'names').write_text('\n'.join('abcdefg'))
  model = f'--model={GOLDEN}/vit_gap.npz'
  code, out, _ = command(predict, model, images / 'gray.jpg', f'--labels={tmp_path}/names')
  assert code == 0 and out.splitlines()[1].split()[-1] in 'abcdefg'
  code, _, err = command(predict, model, images / 'gray.jpg', f'--labels={images}/gray.jpg')
  assert code == 2 and 'gray.jpg cannot be read' in err


def test_evaluate_takes_another_preprocessing(tiny_run, command):
  own = command(evaluate, f'--model={tiny_run}', '--data=digits', '--json')[1]
  flags = ['--crop=squash', '--crop_fraction=0.5', '--interpolation=bicubic', '--no-antialias']
  code, out, _ = command(
    evaluate, f'--model={tiny_run}', '--data=digits', '--json', '--dtype=bfloat16', *flags
  )
  own, other = json.loads(own), json.loads(out)
  assert code == 0 and own['examples'] == other['examples'] and own['loss'] != other['loss']
  assert other['dtype'] == 'bfloat16' and own['dtype'] == 'float32'
  assert other['preprocessing'] | {'resize': 'squash', 'antialias': False} == other['preprocessing']
  code, _, err = command(evaluate, f'--model={tiny_run}', '--data=digits', '--crop_fraction=1e-9')
  assert code == 2 and 'crop_fraction is 1e-09; it must be 0.05 to 1' in err


def test_predict_names_each_bad_file_and_classifies_the_others(tiny_run, images, command):
  (images / 'broken.jpg').write_bytes((images / 'gray.jpg').read_bytes()[:300])
  code, out, err = command(predict, f'--model={tiny_run}', images, images / 'gone.png')
  assert code == 2
  assert out.count('\n') == 4 * 6
  lines = err.splitlines()
  assert len(lines) == 2 and 'broken.jpg' in lines[0] and 'gone.png' in lines[1]


def test_hostile_names_are_escaped_except_in_json(tmp_path, command):
  vit = vit_jax.load(GOLDEN / 'vit_patch14.npz')
  labels = ['\x1b[2J', '\u202egnp', 'a\nb', '猫 é', '\ud800', '\u200b', '\x9b']
  dataclasses.replace(vit, labels=labels).save(tmp_path / 'x.npz')
  name = os.fsdecode(b'\xff\x1b\n.png')  # not UTF-8
  write_images(tmp_path, {'images/x.png': (9, 9)})
  os.rename(tmp_path / 'images' / 'x.png', tmp_path / 'images' / name)
  (tmp_path / 'images' / f'2{name}').touch()
  code, out, err = command(predict, f'--model={tmp_path}/x.npz', tmp_path / 'images', '--top_k=7')
  assert code == 2 and out.count('\n') == 8 and err.count('\n') == 1
  assert r'/\udcff\x1b\n.png' in out and r'/2\udcff\x1b\n.png cannot be read' in err
  shown = [r'\x1b[2J', r'\u202egnp', r'a\nb', '猫 é', r'\ud800', r'\u200b', r'\x9b']
  assert sorted(line.split('  ')[-1] for line in out.splitlines()[1:]) == sorted(shown)
  code, out, _ = command(
    predict, f'--model={tmp_path}/x.npz', tmp_path / 'images' / name, '--json', '--top_k=7'
  )
  answer = json.loads(out)
  assert answer['image'] == str(tmp_path / 'images' / name)
  assert sorted(entry['label'] for entry in answer['top']) == sorted(labels)


def test_closed_streams(images):
  command = f'-m vit_jax.predict --model={GOLDEN}/vit_gap.npz --list=- --top_k=1'
  for closed, code in (('<&-', 2), (f'<<< {images}/gray.jpg >&- 2>&-', 0)):
    script = ['bash', '-c', f'"{sys.executable}" {command} {closed}']
    result = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == code and result.stderr.count('\n') == (code == 2), result.stderr


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='Linux only')
@pytest.mark.parametrize('arguments', ['--model=none.npz x.jpg', '--mode'])
def test_the_exit_code_is_right_where_nothing_can_be_printed(arguments):
  script = f'"{sys.executable}" -m vit_jax.predict {arguments} 2>/dev/full'
  assert subprocess.run(['bash', '-c', script], cwd=ROOT, timeout=120).returncode == 2


def test_pipes_and_devices_are_no_images(tmp_path, command):
  os.mkfifo(tmp_path / 'pipe.png')
  for image in (tmp_path / 'pipe.png', tmp_path, '/dev/zero'):
    code, _, err = command(predict, f'--model={GOLDEN}/vit_patch14.npz', image)
    assert code == 2 and 'it is a pipe or a device' in err and err.count('\n') == 1


@pytest.mark.parametrize('name', ['x', 'x.npz', 'own'])
def test_names_survive_an_ascii_locale(name, tmp_path):
  (tmp_path / 'labels').write_text('é\n猫\n' * 3 + 'x', 'utf-8')
  write_images(tmp_path, {'ü.png': (9, 9)})
  environment = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}
  script = (
    'import sys, vit_jax\n'
    'from vit_jax import command_line, convert, predict\n'
    'for module, *sys.argv[1:] in (\n'
    '  (convert, sys.argv[1], sys.argv[2], "--labels=labels", *sys.argv[4:]),\n'
    '  (predict, "--model=" + sys.argv[2], sys.argv[3], "--top_k=7"),\n'
    '):\n'
    '  try:\n'
    '    command_line.run(module.main)\n'
    '  except SystemExit as stopped:\n'
    '    assert stopped.code == 0\n'
  )
  layout = ['--layout=model'] if name == 'own' else []
  result = subprocess.run(
    [sys.executable, '-c', script, GOLDEN / 'vit_patch14.npz', name, 'ü.png', *layout],
    cwd=tmp_path,
    capture_output=True,
    env=os.environ | environment | {'PYTHONPATH': str(ROOT)},
    timeout=120,
  )
  out = result.stdout.decode('ascii')
  assert result.returncode == 0, result.stderr
  assert (out.count(r'\xe9'), out.count(r'\u732b')) == (3, 3) and r'\udcc3\udcbc.png' in out
  assert vit_jax.load(tmp_path / name).labels == ['é', '猫'] * 3 + ['x']


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    (['--model=nowhere', 'x.png'], 'nowhere'),
    (['--model=README.md', 'x.png'], 'README.md'),
    (['x.png'], '--model'),
    (['--modle=x', 'x.png'], 'unrecognized arguments: --modle;'),
    (['--modle', 'x', '--top-k=-1', 'x.png'], 'unrecognized arguments: --modle --top-k;'),
    (['--model', '--', '--modle'], 'expected one argument'),
    ([f'--model={GOLDEN}/vit_gap.npz', 'x.png', f'--top_k={-(2**70)}'], '--top_k'),
    ([f'--model={GOLDEN}/vit_gap.npz', 'no.png', f'--top_k={2**70}'], 'no.png cannot be read'),
    ([f'--model={GOLDEN}/vit_gap.npz'], 'IMAGE'),
    ([f'--model={GOLDEN}/vit_gap.npz', 'x.png', '--top_k=0'], '--top_k'),
    ([f'--model={GOLDEN}/vit_gap.npz', 'configs'], 'no images'),
    ([f'--model={GOLDEN}/vit_gap.npz', 'x.png', '--labels=https://x/y'], 'neither a local path'),
    ([f'--model={GOLDEN}/vit_gap.npz', 'x.png', f'--top_k={"9" * 10**5}'], '--top_k'),
  ],
)
def test_mistakes_in_predict_end_in_one_sentence(arguments, expected, command):
  code, out, err = command(predict, *arguments)
  assert (code, out) == (2, '')
  assert expected in err and err.startswith('error: ') and err.count('\n') == 1
  assert len(err) < 3_000


@pytest.mark.skipif(importlib.util.find_spec('s3fs') is not None, reason='s3fs is installed')
@pytest.mark.parametrize('flag', ['--model=', '--csv=', '--list='])
def test_a_bucket_without_the_package_that_reads_it(flag, images, command):
  model = f'--model={GOLDEN}/vit_gap.npz'
  code, out, err = command(predict, model, images / 'gray.jpg', f'{flag}s3://bucket/x')
  assert (code, out) == (2, '') and 's3fs' in err and err.count('\n') == 1


def test_sigterm_ends_evaluate_in_one_sentence(tiny_run, command, monkeypatch):
  monkeypatch.setattr('vit_jax.distributed.processes.should_stop', lambda: True)
  code, out, err = command(evaluate, f'--model={tiny_run}', '--data=digits')
  assert (code, out) == (75, '')
  assert err == 'stopped: received SIGTERM; rerun the same command to start over.\n'


def test_evaluate_agrees_with_training(tiny_run, command):
  last = json.loads((tiny_run / 'metrics.jsonl').read_text().splitlines()[-1])
  for batch_size in (8, 360, 512):
    code, out, _ = command(
      evaluate, f'--model={tiny_run}', '--data=digits', '--json', f'--batch_size={batch_size}'
    )
    result = json.loads(out)
    assert code == 0
    assert result['examples'] == 360
    assert result['accuracy'] == last['test/accuracy']
    np.testing.assert_allclose(result['loss'], last['test/loss'], rtol=1e-5)


def test_evaluate_prints_the_number_of_examples(tiny_run, command):
  code, out, _ = command(evaluate, f'--model={tiny_run}', '--data=digits', '--split=train')
  assert code == 0 and '1,437 examples' in out


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    (['--data=folder:/nowhere'], '/nowhere'),
    (['--data=folder:https://x/y'], 'neither a local path'),
    (['--data=array_record:https://x/y'], 'neither a local path'),
    (['--data=digits', '--split=dev'], 'train, test and all'),
    (['--data=digits', '--batch_size=12'], 'batch_size is 12'),
    (['--data=digits', f'--batch_size={2**40}'], 'from 1 to 1,048,576'),
    (['--data=digits', f'--batch_size={-(2**70)}'], 'from 1 to 1,048,576'),
    (['--data=digits', '--image_size=65536'], 'at most 262,144 patches'),
    (['--data=digits', f'--image_size={"9" * 5000}'], 'is not an image size'),
    (['--data=digits', '--image_size=999999999'], 'at most 65536 pixels'),
    (['--data=digits', '--image_size=9'], '9x9'),
    (['--data=digits', '--eval=magic'], 'classification'),
  ],
)
def test_mistakes_in_evaluate_end_in_one_sentence(arguments, expected, tiny_run, command):
  code, out, err = command(evaluate, f'--model={tiny_run}', *arguments)
  assert (code, out) == (2, '')
  assert expected in err and err.startswith('error: ') and err.count('\n') == 1


def test_evaluate_refuses_other_classes(tiny_run, tmp_path, command):
  write_images(tmp_path, {f'{name}/{i}.png': (8, 8) for name in 'ab' for i in range(9)})
  code, _, err = command(
    evaluate, f'--model={tiny_run}', f'--data=folder:{tmp_path}', '--split=all'
  )
  assert code == 2 and 'missing: 0, 1, 2' in err and 'not expected: a, b' in err
