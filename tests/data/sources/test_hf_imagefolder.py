"""hf: folders of images as Hugging Face arranges them, with a table of labels beside the images."""

import gc
import json

import pytest

from tests.helpers import read_labels, write_images
from vit_jax.data.sources import open_source, split_names
from vit_jax.errors import UserError

datasets = pytest.importorskip('datasets')
# datasets leaves metadata.csv open.
pytestmark = pytest.mark.filterwarnings('ignore:.*unclosed file:ResourceWarning')
LABELS = {f'{i:04}.png': ('dog', 'cat')[i % 2] for i in range(6)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'hf_cache')
  datasets.disable_progress_bars()
  yield
  gc.collect()  # closes the files here, not in another test


def csv(prefix: str = '') -> str:
  return '\n'.join(['file_name,label', *(f'{prefix}{k},{v}' for k, v in LABELS.items())]) + '\n'


def jsonl() -> str:
  return '\n'.join(json.dumps({'file_name': k, 'label': v}) for k, v in LABELS.items())


@pytest.mark.parametrize(('name', 'text'), [('metadata.csv', csv()), ('metadata.jsonl', jsonl())])
@pytest.mark.parametrize('test', ['test', 'validation'])
def test_each_split_has_its_metadata(name, text, test, tmp_path):
  root = tmp_path / 'pets'
  for split in ('train', test):
    write_images(root / split, dict.fromkeys(LABELS, (3, 4)))
    (root / split / name).write_text(text)
  assert split_names(f'hf:{root}') == ('train', test)
  for split in ('train', 'test'):
    source = open_source(f'hf:{root}', split)
    assert (source.class_names, read_labels(source)) == (('cat', 'dog'), [1, 0] * 3)
  assert read_labels(open_source(f'table:{root}/train/{name}', 'all')) == [1, 0] * 3


def test_metadata_above_the_splits_is_a_table(tmp_path):
  root = tmp_path / 'pets'
  for split in ('train', 'test'):
    write_images(root / split, dict.fromkeys(LABELS, (3, 4)))
  (root / 'metadata.csv').write_text(csv('train/') + csv('test/').partition('\n')[2])
  with pytest.raises(UserError, match='is above test; use table:.*/metadata.csv') as caught:
    open_source(f'hf:{root}', 'train')
  spec = str(caught.value).partition(' use ')[2].rstrip('.')
  assert [open_source(spec, split).size for split in ('train', 'test')] == [6, 6]
