"""hf: Hugging Face data sets from files on disk, and a missing name on the hub."""

import io
import os
import pathlib
import subprocess
import sys

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.helpers import ROOT, SANDBOX, read_labels
from vit_jax.data.decoding.images import open_image
from vit_jax.data.sources import open_source, split_names
from vit_jax.errors import BadExampleError, UserError

NAMES = ['cat', 'dog', 'owl']
SIZES = {'train': 7, 'test': 4}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  """Converts parquet in the folder of the test, without progress bars."""
  monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'hf_cache')
  datasets.disable_progress_bars()


def pixels(i: int) -> np.ndarray:
  return np.random.default_rng(i).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def png(i: int) -> bytes:
  file = io.BytesIO()
  Image.fromarray(pixels(i)).save(file, 'PNG')
  return file.getvalue()


def make_split(
  count: int, image='image', label='label', feature=None, value=lambda i: i % 3, **more
):
  """Makes a split of `count` images; `value` gives the label of each."""
  feature = feature or datasets.ClassLabel(names=NAMES)
  columns = {image: [{'bytes': png(i), 'path': None} for i in range(count)]}
  columns |= {label: [value(i) for i in range(count)]} | {name: [0] * count for name in more}
  features = {image: datasets.Image(), label: feature} | more
  return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def make_splits(**kwargs) -> datasets.DatasetDict:
  return datasets.DatasetDict({name: make_split(n, **kwargs) for name, n in SIZES.items()})


def write_saved(root: pathlib.Path, **kwargs) -> None:
  make_splits(**kwargs).save_to_disk(root)


def write_parquet(root: pathlib.Path, **kwargs) -> None:
  (root / 'data').mkdir(parents=True)
  for name, split in make_splits(**kwargs).items():
    for shard in range(2):
      rows = split.shard(2, shard, contiguous=True)
      rows.to_parquet(root / 'data' / f'{name}-0000{shard}-of-00002.parquet')


def write_arrow(root: pathlib.Path, **kwargs) -> None:
  """Writes the layout of the cache of `datasets`."""
  write_saved(root / 'saved', **kwargs)
  for name in SIZES:
    (file,) = (root / 'saved' / name).glob('*.arrow')
    file.rename(root / f'pets-{name}.arrow')
  (root / 'cache-0123456789abcdef.arrow').write_bytes(b'left by map')


def write_clone(root: pathlib.Path, **kwargs) -> None:
  """Writes the layout of the cache of the hub's client."""
  write_parquet(root / 'snapshots' / 'abc123', **kwargs)
  (root / 'refs').mkdir()
  (root / 'refs' / 'main').write_text('abc123')


@pytest.mark.parametrize('write', [write_saved, write_parquet, write_arrow, write_clone])
def test_files_on_disk_are_read(write, tmp_path):
  root = tmp_path / 'pets'
  write(root)
  assert set(split_names(f'hf:{root}')) == set(SIZES)
  for split, size in SIZES.items():
    source = open_source(f'hf:{root}', split)
    assert (source.size, source.class_names) == (size, tuple(NAMES))
    assert source.fingerprint == open_source(f'hf:{root}', split).fingerprint
    for i in reversed(range(size)):
      image, label = source.read(i)
      assert (image, label, label.dtype, label.shape) == (png(i), i % 3, np.int32, ())
    assert read_labels(source) == [i % 3 for i in range(size)]
  np.testing.assert_array_equal(open_image(image, '').pixels(None), pixels(0))
  everything = open_source(f'hf:{root}', 'all')
  assert everything.size == sum(SIZES.values())
  assert source.describe(2) == f'hf:{root} (test), row 2'


def test_single_files_are_read(tmp_path):
  make_split(5).to_parquet(tmp_path / 'x.parquet')
  make_split(5).save_to_disk(tmp_path / 'saved')
  (arrow,) = (tmp_path / 'saved').glob('*.arrow')
  for path in tmp_path / 'x.parquet', tmp_path / 'saved', arrow:
    assert [open_source(f'hf:{path}', 'train').read(i)[1] for i in range(5)] == [0, 1, 2, 0, 1]
  assert open_source(f'hf:{path}', 'train[:40%]').size == 2


def test_options_name_the_columns(tmp_path):
  coarse = datasets.ClassLabel(names=['a', 'b', 'c', 'd'])
  write_saved(tmp_path / 'x', image='img', label='fine_label', coarse_label=coarse)
  assert open_source(f'hf:{tmp_path}/x', 'train').class_names == tuple(NAMES)
  source = open_source(f'hf:{tmp_path}/x?image=img&label=coarse_label', 'train')
  assert (source.class_names, source.read(1)[1]) == (('a', 'b', 'c', 'd'), 0)


def test_the_only_column_of_images_is_the_default(tmp_path):
  write_saved(tmp_path / 'x', image='photo')
  assert open_source(f'hf:{tmp_path}/x', 'train').read(0)[0] == png(0)


def test_lists_of_labels_are_multi_label(tmp_path):
  feature = datasets.Sequence(datasets.ClassLabel(names=NAMES))
  write_saved(tmp_path / 'x', label='labels', feature=feature, value=lambda i: [[], [2, 0]][i % 2])
  source = open_source(f'hf:{tmp_path}/x', 'train')
  assert source.multi_label
  label = source.read(1)[1]
  assert (label.dtype, list(label), list(source.read(0)[1])) == (np.uint8, [1, 0, 1], [0, 0, 0])


@pytest.mark.parametrize(
  ('kind', 'value', 'names'),
  [
    ('int64', lambda i: i, tuple(map(str, range(SIZES['train'])))),
    ('string', lambda i: NAMES[2 - i % 3], tuple(NAMES)),
  ],
)
def test_classes_without_a_list_are_gathered_from_all_splits(kind, value, names, tmp_path):
  write_saved(tmp_path / 'x', feature=datasets.Value(kind), value=value)
  source = open_source(f'hf:{tmp_path}/x', 'test')
  assert source.class_names == names
  assert [names[label] for label in read_labels(source)[:4]] == [str(value(i)) for i in range(4)]


def test_images_may_be_paths_or_plain_bytes(tmp_path):
  for i in range(2):
    file = tmp_path / 'files' / 'train' / NAMES[i] / f'{i}.png'
    file.parent.mkdir(parents=True)
    file.write_bytes(png(i))
  source = open_source(f'hf:{tmp_path}/files', 'train')
  assert (source.read(1)[0], source.class_names) == (png(1), ('cat', 'dog'))
  file.unlink()
  with pytest.raises(BadExampleError, match='row 1: .*dog/1.png cannot be read: No such file'):
    source.read(1)
  columns = {'image': [png(0), None], 'label': [0, 0]}
  datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / 'bytes')
  source = open_source(f'hf:{tmp_path}/bytes', 'train')
  assert source.read(0)[0] == png(0)
  with pytest.raises(BadExampleError, match='row 1 has no encoded image in its column image'):
    source.read(1)


def cut(name: str):
  def damage(root):
    (file,) = root.glob(name)
    file.write_bytes(file.read_bytes()[:-200])

  return damage


@pytest.mark.parametrize(
  ('write', 'damage', 'message'),
  [
    (
      write_saved,
      cut('train/*.arrow'),
      'train/data-00000-of-00001.arrow is not a complete Arrow file',
    ),
    (write_arrow, cut('pets-test.arrow'), 'pets-test.arrow is not a complete Arrow file'),
    (
      write_parquet,
      cut('data/train-00001-*'),
      'train-00001-of-00002.parquet is not a complete parquet file',
    ),
    (
      write_saved,
      lambda root: (root / 'train' / 'data-00000-of-00001.arrow').unlink(),
      'train/data-00000-of-00001.arrow',
    ),
  ],
)
def test_damaged_files_are_named(write, damage, message, tmp_path):
  write(tmp_path / 'x')
  damage(tmp_path / 'x')
  with pytest.raises(UserError, match=message) as caught:
    open_source(f'hf:{tmp_path}/x', 'train')
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('kwargs', 'query', 'split', 'message'),
  [
    (
      {},
      '',
      'extra',
      "has the splits train, test, not 'extra'; take one of them, or parts of one, such as",
    ),
    ({'label': 'kind'}, '', 'train', "columns image, kind, none is 'label' or 'labels'"),
    ({}, '?label=kind', 'train', "columns image, label, none is 'kind'; .*hf:name.label="),
    (
      {},
      '?lable=kind',
      'train',
      'has the unknown option lable; valid options are config, revision',
    ),
    ({'value': lambda i: -1}, '', 'test', '4 images without a label'),
    (
      {'feature': datasets.Value('float32')},
      '',
      'train',
      'has the type float, so its values are not classes',
    ),
    (
      {'feature': datasets.Value('int64'), 'value': lambda i: 10**9},
      '',
      'test',
      'goes up to 1,000,000,000, so its values are not classes',
    ),
  ],
)
def test_a_wrong_split_column_or_option_is_an_error_of_one_sentence(
  kwargs, query, split, message, tmp_path
):
  write_saved(tmp_path / 'x', **kwargs)
  with pytest.raises(UserError, match=message) as caught:
    open_source(f'hf:{tmp_path}/x{query}', split)
  assert '\n' not in str(caught.value)


def test_split_names_have_the_usual_synonyms(tmp_path):
  write_saved(tmp_path / 'x')
  for split, name in {'Training': 'train', 'val': 'test', 'TEST': 'test'}.items():
    assert open_source(f'hf:{tmp_path}/x', split).name == f'hf:{tmp_path}/x ({name})'
  assert open_source(f'hf:{tmp_path}/x', 'val[:2]').name == f'hf:{tmp_path}/x (val[:2])'


def test_a_missing_path_is_not_taken_for_a_name_on_the_hub(tmp_path):
  with pytest.raises(UserError, match='There is no .*gone; hf: takes a name on the hub or a path'):
    open_source(f'hf:{tmp_path}/gone', 'train')


def run(code: str, **environment) -> str:
  result = subprocess.run(
    [sys.executable, '-c', code],
    cwd=SANDBOX,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    check=True,
  )
  return result.stdout


def test_without_the_hub_or_the_package_the_error_has_a_way_out(tmp_path):
  code = """
import sys
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError
for hide in False, True:
  if hide:
    sys.modules['datasets'] = None
  try:
    open_source('hf:nobody/nothing', 'train')
  except UserError as error:
    print(error)
"""
  unreachable, missing = run(code, HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path)).splitlines()
  assert 'hf:nobody/nothing cannot be opened' in unreachable
  assert 'name its folder as hf:/path' in unreachable
  assert "pip install 'vit_jax[hf]'" in missing


def test_reading_does_not_import_tensorflow_jax_or_torch(tmp_path):
  write_saved(tmp_path / 'x')
  code = f"""
import sys, types
package = types.ModuleType('vit_jax')  # skips the imports of the package itself
package.__path__ = ['{ROOT}/vit_jax']
sys.modules['vit_jax'] = package
from vit_jax.data.sources import open_source
before = set(sys.modules)
open_source('hf:{tmp_path}/x', 'train').read(0)
unwanted = {{'tensorflow', 'jax', 'flax', 'torch'}}
print({{'datasets', 'pyarrow'}} & before, unwanted & set(sys.modules))
"""
  assert run(code) == 'set() set()\n'
