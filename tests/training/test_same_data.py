"""Files that differ between processes, or between stop and resume, end in one sentence."""

import io
import json
import tarfile

import pytest

from tests.helpers import TINY, run, write_images, write_tfds
from vit_jax.data.sources import Source, open_source
from vit_jax.errors import UserError
from vit_jax.training import same_data
from vit_jax.training.same_data import check_same_on_all_processes, data_facts


def source(**fields) -> Source:
  values = {'name': 'x', 'size': 80, 'class_names': ('a', 'b'), 'fingerprint': 'f'} | fields
  return Source(read=lambda i: (b'', 0), **values)


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'size': 72}, '80 examples on process 0 (a) and 72 on process 2 (c)'),
    ({'class_names': ('a', 'b', 'c')}, '2 classes on process 0 (a) and 3 on process 2 (c)'),
    ({'class_names': ('b', 'a')}, 'other class names on process 0 (a) than on process 2 (c)'),
    ({'fingerprint': 'g'}, 'other files on process 0 (a) than on process 2 (c)'),
  ],
)
def test_the_process_that_differs_is_named(fields, expected, monkeypatch):
  hosts = {'a': {}, 'b': {}, 'c': fields}

  def gather(unused):
    return [
      {
        'host': host,
        'facts': {'train': data_facts(source()), 'test': data_facts(source(**changed))},
      }
      for host, changed in hosts.items()
    ]

  monkeypatch.setattr(same_data, 'gather_from_all', gather)
  with pytest.raises(UserError) as caught:
    check_same_on_all_processes({'train': source(), 'test': source()})
  assert str(caught.value) == (
    f'The processes see different data: the test split has {expected}; give all of them the same '
    'files.'
  )


def add_image(root):
  write_images(root, {'a/new.png': (8, 8)}, seed=1)


def change_image(root):
  (root / 'a/1.png').write_bytes((root / 'a/1.png').read_bytes() + b'0')


def rename_image(root):
  (root / 'a/1.png').rename(root / 'a/x.png')


@pytest.mark.parametrize('split', ['all', 'all[:75%]', 'all[:50%]+all[50%:]'])
@pytest.mark.parametrize(
  ('change', 'name'),
  [(add_image, 'examples'), (change_image, 'file sizes'), (rename_image, 'files')],
)
def test_the_facts_of_a_folder_change_with_its_files(change, name, split, tmp_path):
  write_images(tmp_path, {f'{c}/{i}.png': (8, 8) for c in 'ab' for i in range(20)})
  before = data_facts(open_source(f'folder:{tmp_path}', split))
  assert data_facts(open_source(f'folder:{tmp_path}', split)) == before
  change(tmp_path)
  assert data_facts(open_source(f'folder:{tmp_path}', split))[name] != before[name]


def test_the_facts_of_prepared_data_change_with_the_counts_of_shards(tmp_path):
  write_tfds(tmp_path / 'x', 'label')
  before = data_facts(open_source(f'array_record:{tmp_path}/x', 'train'))
  info = json.loads((tmp_path / 'x/dataset_info.json').read_text())
  info['splits'][0]['shardLengths'] = ['2', '3']
  (tmp_path / 'x/dataset_info.json').write_text(json.dumps(info))
  after = data_facts(open_source(f'array_record:{tmp_path}/x', 'train'))
  assert [name for name in before if before[name] != after[name]] == ['files']


def write_tar(path, label: bytes) -> None:
  with tarfile.open(path, 'w') as tar:
    for name, content in {'0.jpg': b'0', '0.cls': label, '1.jpg': b'1', '1.cls': b'1'}.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))


def test_the_facts_of_tars_change_with_a_label(tmp_path, monkeypatch):
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  facts = []
  for label in (b'0', b'1'):
    write_tar(tmp_path / 'x.tar', label)
    facts.append(data_facts(open_source(f'webdataset:{tmp_path}/x.tar', 'all')))
  assert facts[0]['files'] != facts[1]['files'] and facts[0]['examples'] == facts[1]['examples']


def test_a_run_is_resumed_only_with_the_data_it_began_with(tmp_path):
  data, workdir = tmp_path / 'data', tmp_path / 'run'
  write_images(data, {f'{c}/{i}.png': (8, 8) for c in 'ab' for i in range(40)})
  flags = (f'--config.data.{part}.source=folder:{data}' for part in ('train', 'test'))
  arguments = ('--config=configs/quickstart.py', *TINY, *flags, f'--workdir={workdir}')
  arguments = (*arguments, '--config.total_steps=3', '--config.data.workers=0')
  assert run('main', *arguments).returncode == 0
  recorded = (workdir / 'data.json').read_text()
  deleted = next(iter((data / 'a').iterdir()))
  content = deleted.read_bytes()
  deleted.unlink()
  result = run('main', *arguments)
  assert result.returncode == 2
  (message,) = result.stderr.splitlines()
  assert f'error: The data of the run in {workdir} has changed: the ' in message
  assert ' examples at its beginning and ' in message
  assert (workdir / 'data.json').read_text() == recorded
  deleted.write_bytes(content)
  (workdir / 'data.json').unlink()  # as an older version left it
  result = run('main', *arguments)
  assert result.returncode == 0, result.stderr
  assert 'does not record the data that its run began with' in result.stdout
  assert (workdir / 'data.json').read_text() == recorded


def test_a_mixture_has_the_files_of_its_sources(tmp_path):
  write_images(tmp_path, {f'{c}/{i}.png': (8, 8) for c in 'ab' for i in range(9)})
  mixture = open_source(f'folder:{tmp_path} + digits', 'all')
  assert len(mixture.files()) == 18
  assert open_source('digits + digits', 'all').files is None
