"""The `convert` command, and the portable program that it writes."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import vit_jax
from tests.helpers import GOLDEN, SANDBOX, run
from vit_jax import command_line, convert

TOKEN = GOLDEN / 'vit_token_prelogits.npz'
PATCH14 = GOLDEN / 'vit_patch14.npz'


@pytest.fixture
def command(monkeypatch, capsys):
  """Runs `convert` in this process; returns (exit code, stdout, stderr)."""

  def run_convert(*arguments):
    monkeypatch.setattr(sys, 'argv', ['convert', *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
      command_line.run(convert.main)
    captured = capsys.readouterr()
    return stopped.value.code, captured.out, captured.err

  return run_convert


def assert_same_files(one, two):
  with np.load(one) as a, np.load(two) as b:
    assert set(a.files) == set(b.files)
    for name in a.files:
      np.testing.assert_array_equal(a[name], b[name])


def test_the_round_trip_through_all_layouts_is_bit_exact(tmp_path):
  names = ('a.safetensors', 'hf', 'own', 'b.npz')
  steps = [PATCH14, *(tmp_path / name for name in names)]
  for source, target in zip(steps, steps[1:], strict=False):
    layout = ['--layout=model'] if target.name == 'own' else []
    result = run('convert', source, target, *layout)
    assert result.returncode == 0, result.stderr
    assert 'loaded' in result.stdout
  assert_same_files(PATCH14, tmp_path / 'b.npz')
  assert sorted(path.name for path in (tmp_path / 'hf').iterdir()) == [
    'config.json',
    'model.safetensors',
    'preprocessor_config.json',
  ]
  assert not list(tmp_path.glob('*.part'))


MODELS = ('vit_patch14', 'hybrid_stem', 'bit_resnet', 'vit_token_prelogits', 'mixer')


@pytest.mark.parametrize('name', MODELS)
def test_a_portable_program_gives_the_same_logits(name, tmp_path, command):
  expected = np.load(GOLDEN / f'{name}_expected.npz')
  size = '{}x{}'.format(*expected['images'].shape[1:3])
  target = tmp_path / 'model.stablehlo'
  code, _, err = command(GOLDEN / f'{name}.npz', target, f'--image_size={size}')
  assert (code, err) == (0, '')
  program = jax.export.deserialize(bytearray(target.read_bytes()))
  assert set(program.platforms) == {'cpu', 'tpu', 'cuda'}
  for batch in (1, 2):
    logits = program.call(expected['images'][:batch])
    np.testing.assert_allclose(logits, expected['logits'][:batch], atol=2e-5)


def test_a_portable_program_runs_without_this_package(tmp_path):
  vit_jax.load(PATCH14).save(tmp_path / 'model.stablehlo')
  script = (
    'import sys, jax, numpy as np\n'
    'program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))\n'
    'print(program.call(np.zeros((3, 56, 56, 3), np.float32)).shape)\n'
    'assert not any(name.startswith(("vit_jax", "flax")) for name in sys.modules)\n'
  )
  command = [sys.executable, '-c', script, str(tmp_path / 'model.stablehlo')]
  result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
  assert (result.stdout, result.returncode) == ('(3, 7)\n', 0), result.stderr


def test_another_size_and_a_new_head(tmp_path, command):
  code, out, _ = command(TOKEN, tmp_path / 'x', '--image_size=32x96', '--num_classes=3')
  assert code == 0
  assert 'resized' in out and 're-initialized' in out
  vit = vit_jax.load(tmp_path / 'x')
  assert (vit.image_size, vit.model.num_classes, vit.model.pre_logits) == ((32, 96), 3, 0)
  config = json.loads((tmp_path / 'x' / 'config.json').read_text())
  assert (config['image_size'], len(config['id2label'])) == ([32, 96], 3)


@pytest.mark.parametrize('layout', ['huggingface', 'timm', 'model'])
def test_what_another_library_does_not_learn_is_said(layout, tmp_path, command):
  code, _, err = command(PATCH14, tmp_path / 'x', f'--layout={layout}')
  assert code == 0 and vit_jax.load(tmp_path / 'x').preprocessing.rounding == 'tensorflow'
  assert ('note: ' in err and 'rounding as tensorflow does' in err) == (layout != 'model')
  assert err.count('\n') <= 1


def test_labels_are_written_with_the_model(tmp_path, command):
  (tmp_path / 'names').write_text('\n'.join('abcdefg') + '\n')
  assert command(PATCH14, tmp_path / 'x', f'--labels={tmp_path / "names"}')[0] == 0
  assert vit_jax.load(tmp_path / 'x').labels == list('abcdefg')
  (tmp_path / 'names').write_text('a\nb\n')
  for labels, message in (('names', '2 lines; the model has 7'), ('nothing', 'cannot be read')):
    code, _, err = command(PATCH14, tmp_path / 'y', f'--labels={tmp_path / labels}')
    assert code == 2 and message in err and not (tmp_path / 'y').exists()


@pytest.mark.parametrize(
  ('source', 'arguments', 'message'),
  [
    ('nothing.npz', ['x.npz'], 'There is no model at nothing.npz'),
    (TOKEN, ['x'], 'pre_logits layer'),
    (TOKEN, ['x.safetensors'], 'pre_logits'),
    (GOLDEN / 'hybrid_stem.npz', ['x'], 'a ResNet'),
    (GOLDEN / 'bit_resnet.npz', ['x'], 'a ResNet'),
    (PATCH14, ['x.npz', '--image_size=50'], 'do not tile'),
    (PATCH14, ['x.npz', '--image_size=big'], "'big' is not an image size"),
    (PATCH14, ['x.npz', '--image_size=9x9x9'], 'is not an image size'),
    (PATCH14, ['x.npz', '--num_classes=99999999999'], 'num_classes is'),
    (PATCH14, ['x.npz', f'--num_classes={2**24}'], 'must be from 0 to 1,048,576'),
    (PATCH14, ['x.npz', f'--num_classes={-(2**70)}'], 'num_classes is'),
    (PATCH14, ['x.npz', '--image_size=65534'], 'at most 262,144 patches'),
    (PATCH14, ['X.npz.gz'], 'is not a supported target'),
    (PATCH14, [''], 'is not a supported target'),
    ('', ['x.npz'], 'is empty'),
    ('https://example.org/x.npz', ['x.npz'], 'is a URL'),
    ('ftp://example.org/x.npz', ['x.npz'], 'neither a local path nor one in a bucket'),
    (PATCH14, ['ftp://x.npz'], 'neither a local path nor one in a bucket'),
    (PATCH14, ['x.npz', '--num_heads=5'], 'has 3 heads'),
    (PATCH14, ['x.npz', '--position_resize=cubic'], 'choose from'),
    (PATCH14, ['x.npz', '--gelu=relu'], 'choose from'),
    (PATCH14, ['x.npz', '--num_heads=0'], 'num_heads is 0'),
    (PATCH14, ['/proc/x.npz'], 'cannot be written'),
    (PATCH14, ['/proc/x'], 'cannot be written'),
    (PATCH14, ['x.npz', '--layout=onnx'], 'invalid choice'),
    (PATCH14, ['x.pth'], 'which PyTorch reads'),
  ],
)
def test_a_mistake_ends_in_one_sentence(source, arguments, message, tmp_path, command, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code, _, err = command(source, *arguments)
  assert code == 2
  assert err.startswith('error: ') and err.count('\n') == 1
  assert message in err
  assert list(tmp_path.iterdir()) == []


def test_pipes_and_devices_are_neither_read_nor_replaced(tmp_path, command):
  os.mkfifo(tmp_path / 'pipe')
  (tmp_path / 'hf').mkdir()
  os.mkfifo(tmp_path / 'hf' / 'model.safetensors')
  for source in (tmp_path / 'pipe', tmp_path / 'hf', '/dev/zero'):
    code, _, err = command(source, tmp_path / 'x.npz')
    assert code == 2 and 'is a pipe or a device' in err
  code, _, err = command(PATCH14, tmp_path / 'pipe', '--layout=npz')
  assert code == 2 and 'is a pipe or a device' in err
  assert (tmp_path / 'pipe').is_fifo()


def test_links_are_followed(tmp_path, command):
  for name in ('real', 'real.npz'):
    (tmp_path / f'link to {name}').symlink_to(tmp_path / name)
    link, layout = tmp_path / f'link to {name}', f'--layout={"npz" if "." in name else "model"}'
    assert command(PATCH14, link, layout)[0] == 0
    assert command(PATCH14, link, layout)[0] == 2
    assert command(PATCH14, link, layout, '--overwrite')[0] == 0
    assert (tmp_path / f'link to {name}').is_symlink()
    assert vit_jax.load(tmp_path / name).model.num_classes == 7


def test_written_files_have_the_usual_permissions(tmp_path):
  (tmp_path / 'plain').touch()
  vit = vit_jax.load(PATCH14)
  for name in ('x.npz', 'x.safetensors', 'x'):
    vit.save(tmp_path / name)
  files = [path for path in tmp_path.rglob('*') if path.is_file()]
  assert len({path.stat().st_mode for path in files}) == 1


@pytest.mark.parametrize('name', ['x.npz', 'x.safetensors', 'x'])
def test_a_full_disk_leaves_the_old_model_intact(name, tmp_path):
  """A limit on the size of files stops the writing in the middle."""
  vit_jax.load(PATCH14).save(tmp_path / name)
  before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
  (tmp_path / f'{name}.part').write_text("somebody else's")
  script = (
    'import resource, signal, sys, vit_jax\n'
    'vit = vit_jax.load(sys.argv[1])\n'
    'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
    'resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n'
    'try:\n'
    '  vit.save(sys.argv[2], overwrite=True)\n'
    'except vit_jax.UserError as error:\n'
    '  print(error)\n'
  )
  command = [sys.executable, '-c', script, str(PATCH14), str(tmp_path / name)]
  result = subprocess.run(command, cwd=SANDBOX, capture_output=True, text=True, timeout=120)
  assert 'cannot be written' in result.stdout, result.stderr
  assert {path: path.read_bytes() for path in before} == before
  assert {path.name for path in tmp_path.iterdir()} == {name, f'{name}.part'}


def test_other_files_at_the_target_are_kept(tmp_path, command):
  (tmp_path / 'thesis').mkdir()
  (tmp_path / 'thesis' / 'chapter.tex').write_text('years of work')
  (tmp_path / 'notes').write_text('more of it')
  for target, message in (('thesis', 'chapter.tex'), ('notes', 'is a file')):
    code, _, err = command(PATCH14, tmp_path / target)
    assert code == 2 and message in err
  code, _, err = command(PATCH14, tmp_path / 'thesis', '--layout=npz')
  assert code == 2 and 'is a folder' in err
  assert sorted(path.name for path in tmp_path.iterdir()) == ['notes', 'thesis']


@pytest.mark.parametrize('name', ['x.npz', 'x.safetensors', 'x.stablehlo', 'x'])
def test_an_existing_model_is_replaced_only_on_demand(name, tmp_path, command):
  target = tmp_path / name
  vit = vit_jax.load(PATCH14)
  vit.save(target)
  before = {path: path.read_bytes() for path in (*tmp_path.glob('x/*'), *tmp_path.glob('x.*'))}
  with pytest.raises(vit_jax.UserError, match='already exists'):
    vit.save(target)
  code, out, err = command(PATCH14, target, '--num_classes=3')
  assert (code, out) == (2, '') and 'already exists' in err and '--overwrite' in err
  assert {path: path.read_bytes() for path in before} == before
  assert command(PATCH14, target, '--num_classes=3', '--overwrite')[0] == 0
  assert {path: path.read_bytes() for path in before} != before


def test_an_empty_folder_is_a_target(tmp_path):
  (tmp_path / 'x').mkdir()
  vit_jax.load(PATCH14).save(tmp_path / 'x')
  assert vit_jax.load(tmp_path / 'x').model.num_classes == 7


def test_the_source_is_never_the_target(tmp_path, command, monkeypatch):
  """Neither by another path, nor over links, nor as a folder around it or a file inside of it."""
  monkeypatch.chdir(tmp_path)
  os.mkdir('run')
  vit_jax.load(PATCH14).save('run/model', 'model')
  vit_jax.load(PATCH14).save('m.npz')
  os.symlink('m.npz', 'soft.npz')
  os.link('m.npz', 'hard.npz')
  os.symlink('run/model', 'folder')
  os.mkdir('linked')
  os.symlink('../m.npz', 'linked/params.npz')
  before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
  for source, target in (
    ('m.npz', 'm.npz'),
    ('m.npz', './run/../m.npz'),
    ('m.npz', 'soft.npz'),
    ('soft.npz', 'm.npz'),
    ('m.npz', 'hard.npz'),
    ('linked', 'm.npz'),
    ('run/model', 'run/model'),
    ('folder', 'run/model/'),
    ('run/model', 'folder'),
    ('run', 'run/model'),
    ('run', 'run/model/params.npz'),
    ('run/model', 'run/model/new.npz'),
    ('run/model/params.npz', 'run/model'),
    ('run/model/params.npz', 'folder'),
  ):
    layout = [] if target.endswith('.npz') else ['--layout=model']
    code, _, err = command(source, target, '--num_classes=3', '--overwrite', *layout)
    assert code == 2 and 'the model to convert' in err and err.count('\n') == 1, (source, target)
  assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before
  assert command('run', 'run.npz')[0] == 0


@pytest.mark.parametrize('name', ['x.foo', 'x.npy', 'a.b/x.Model', 'B_16-lr_0.1.ckpt7'])
def test_an_unknown_suffix_is_not_a_folder(name, tmp_path, command, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code, _, err = command(PATCH14, name)
  assert code == 2 and 'is not a supported target' in err and err.count('\n') == 1
  assert list(tmp_path.iterdir()) == []
  assert command(PATCH14, f'{name}/')[0] == 0
  assert vit_jax.load(name).model.num_classes == 7
  assert command(PATCH14, name, '--overwrite')[0] == 0  # an existing folder


@pytest.mark.parametrize('name', ['vit-1.5', 'B_16-wd_0.1-do_0.0-sd_0.0', '.hidden'])
def test_a_dot_in_the_name_of_a_folder(name, tmp_path, command, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert command(PATCH14, name)[0] == 0
  assert (tmp_path / name / 'config.json').exists()


def test_a_folder_in_the_place_of_a_file_is_kept(tmp_path, command):
  diary = tmp_path / 'x' / 'config.json' / 'diary'
  diary.parent.mkdir(parents=True)
  diary.write_text('years of work')
  code, _, err = command(PATCH14, tmp_path / 'x', '--overwrite')
  assert code == 2 and 'not part of a model (config.json)' in err
  assert diary.exists()


def test_the_current_folder_is_not_replaced(tmp_path, command, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for target in ('.', tmp_path):
    code, _, err = command(PATCH14, target)
    assert code == 2 and 'the current folder' in err and err.count('\n') == 1


@pytest.mark.parametrize('target', ['x', 'names.npz'])
def test_the_labels_are_never_the_target(target, tmp_path, command):
  labels = tmp_path / ('x/labels.txt' if target == 'x' else target)
  labels.parent.mkdir(exist_ok=True)
  labels.write_text('a\nb\nc\nd\ne\nf\ng\n')
  code, _, err = command(PATCH14, tmp_path / target, f'--labels={labels}', '--overwrite')
  assert code == 2 and 'the file of --labels' in err and err.count('\n') == 1
  assert labels.read_text() == 'a\nb\nc\nd\ne\nf\ng\n'
