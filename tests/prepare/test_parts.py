"""Parts, Apache Beam and one machine give the same bytes, whoever was killed on the way."""

import dataclasses
import pathlib
import shlex
import sys
import time

import numpy as np
import pytest

from tests.helpers import read_labels, run, start, write_images, write_tfds
from vit_jax import prepare_data
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError
from vit_jax.prepare import beam_pipeline, pipeline, target_folder
from vit_jax.prepare.examples import FileExamples
from vit_jax.prepare.file_lock import try_lock
from vit_jax.prepare.shard_plan import Part, Preparation, default_num_shards, open_plan, parse_part
from vit_jax.prepare.shard_writer import Encoding, write_shard

FLAGS = ('--shards=4', '--size=40', '--on_bad_example=skip')


@pytest.fixture
def preparation(tmp_path) -> Preparation:
  """Train and test of three classes, larger and smaller images, a duplicate, an unreadable one."""
  root = tmp_path / 'photos'
  for split, count in (('train', 20), ('test', 7)):
    names = [f'{split}/{name}/{i}.jpg' for name in ('cat', 'dog', 'ü') for i in range(count)]
    write_images(root, {name: (48, 35 + i % 20) for i, name in enumerate(names)})
  (root / 'test' / 'ü' / 'leak.jpg').write_bytes((root / 'train' / 'ü' / '1.jpg').read_bytes())
  (root / 'train' / 'dog' / 'bad.jpg').write_text('not an image')
  return Preparation(str(root), tmp_path / 'out', encoding=Encoding(40), shards=4, skip_bad=True)


def read_files(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def expected(preparation, tmp_path) -> dict[str, bytes]:
  """The files that one machine writes, by name."""
  pipeline.prepare(dataclasses.replace(preparation, target=tmp_path / 'here'), workers=2)
  return read_files(tmp_path / 'here')


def prepare_part(preparation: Preparation, part: str) -> pipeline.PartSummary | None:
  return pipeline.prepare_part(preparation, parse_part(part), workers=1)


def test_parts_in_any_order_give_the_bytes_of_one_machine(preparation, expected):
  summaries = [prepare_part(preparation, part) for part in ('3/3', '1/3', '2/3')]
  assert [summary.shards for summary in summaries] == [2, 3, 3]
  assert sum(summary.images for summary in summaries) == 60 + 22
  card = pipeline.merge(preparation)
  assert (card.unreadable, len(card.overlaps)) == (1, 1)
  assert read_files(preparation.target) == expected
  assert prepare_part(preparation, '2/3') is None and pipeline.merge(preparation) is None


def test_parts_may_begin_at_the_same_moment(preparation, expected):
  command = ('prepare_data', preparation.source, preparation.target, *FLAGS)
  parts = [start(*command, '--workers=1', f'--part={i}/3') for i in (1, 2, 3)]
  for i, process in enumerate(parts):
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert f'part {i + 1}/3 is finished: ' in out
  result = run(*command, '--merge')
  assert result.returncode == 0 and 'train: 60 images' in result.stdout, result.stderr
  assert read_files(preparation.target) == expected


# Without the first flag, DirectRunner tries another runner, which it downloads.
BEAM = ('--runner=DirectRunner', '--beam_options=--allow_unsafe_triggers')


def test_beam_gives_the_bytes_of_one_machine(preparation, expected):
  pytest.importorskip('apache_beam')
  prepare_part(preparation, '2/3')  # Beam writes what is missing
  flags = f'{BEAM[1]} --direct_running_mode=multi_processing --direct_num_workers=2'
  result = run('prepare_data', preparation.source, preparation.target, *FLAGS, BEAM[0], flags)
  assert result.returncode == 0 and 'train: 60 images' in result.stdout, result.stderr
  assert read_files(preparation.target) == expected


def test_an_unreadable_image_is_one_sentence_of_beam_too(preparation):
  pytest.importorskip('apache_beam')
  command = ('prepare_data', preparation.source, preparation.target, '--shards=2')
  result = run(*command, *BEAM)
  assert result.returncode == 2 and result.stderr.count('\n') == 1
  assert '1 image cannot be read (dog/bad.jpg: not a known image format)' in result.stderr


@pytest.mark.parametrize(
  ('error', 'message'),
  [
    (UserError('this machine sees others.'), 'this machine sees others.'),
    (OSError(28, 'No space left', '/x'), "[Errno 28] No space left: '/x'"),
  ],
)
def test_an_error_of_a_beam_worker_is_one_sentence(error, message, preparation, monkeypatch):
  pytest.importorskip('apache_beam')

  def fail(*unused):
    raise error

  monkeypatch.setattr(beam_pipeline, 'write_shard', fail)
  with pytest.raises(UserError) as caught:
    pipeline.prepare_on_beam(preparation, 'DirectRunner', '--allow_unsafe_triggers')
  assert str(caught.value) == message


def test_an_unknown_runner_is_one_sentence(preparation):
  pytest.importorskip('apache_beam')
  with pytest.raises(UserError, match='Beam refuses --runner=NoRunner: .* DataflowRunner, '):
    pipeline.prepare_on_beam(preparation, 'NoRunner')
  assert not preparation.target.exists()


def test_one_machine_finishes_what_parts_have_left(preparation, expected):
  prepare_part(preparation, '2/3')
  complete = list(preparation.target.glob('*array_record*'))
  times = [path.stat().st_mtime_ns for path in complete]
  pipeline.prepare(preparation, workers=1)
  assert [path.stat().st_mtime_ns for path in complete] == times and len(times) == 3
  assert read_files(preparation.target) == expected


def test_a_part_that_is_killed_resumes_to_the_same_bytes(tmp_path):
  source, target = tmp_path / 'many', tmp_path / 'out'
  write_images(source, {f'{i % 2}/{i}.png': (200, 200) for i in range(4)})
  for i in range(4, 400):
    (source / f'{i % 2}/{i}.png').hardlink_to(source / f'{i % 2}/{i % 4}.png')
  preparation = Preparation(str(source), target, shards=12)
  command = ('prepare_data', source, target, '--shards=12')
  process, limit = start(*command, '--workers=1', '--part=2/3'), time.monotonic() + 60
  while len(list(target.glob('.unfinished/*-of-*.json'))) < 2 and time.monotonic() < limit:
    time.sleep(0.01)
  process.kill()
  process.communicate(timeout=60)
  assert 2 <= len(list(target.glob('.unfinished/*-of-*.json'))) < 8
  with pytest.raises(UserError, match=r'Part 1/3 of .* is not finished \(nor are 2, 3\); run the'):
    pipeline.merge(preparation)
  for part in ('1/3', '3/3'):
    prepare_part(preparation, part)
  result = run(*command, '--merge')
  again = shlex.join(['python', '-m', 'vit_jax.prepare_data', str(source), str(target)])
  assert (result.returncode, result.stderr) == (
    2,
    f'error: Part 2/3 of {target} is not finished; run {again} --shards=12 --part=2/3.\n',
  )
  prepare_part(preparation, '2/3')
  pipeline.merge(preparation)
  pipeline.prepare(dataclasses.replace(preparation, target=tmp_path / 'here'), workers=1)
  assert read_files(target) == read_files(tmp_path / 'here')


def test_a_part_removes_only_its_own_scratch_files_and_none_in_use(preparation):
  prepare_part(preparation, '2/3')
  target = preparation.target
  name = 'photos-train.array_record-0000{}-of-00004.{}.part'
  abandoned = target / name.format(1, 'aaaaaaaa')
  others = target / name.format(0, 'aaaaaaaa')
  in_use = target / name.format(1, 'bbbbbbbb')
  for path in (abandoned, others, in_use):
    path.write_bytes(b'half a shard')
  with in_use.open('ab') as file:
    assert try_lock(file)
    prepare_part(preparation, '2/3')
  assert not abandoned.exists() and others.exists() and in_use.exists()
  pipeline.prepare(preparation, workers=1)
  assert not list(target.glob('*.part'))


def test_a_scratch_file_is_in_use_while_it_is_written(preparation):
  plan, in_use = open_plan(preparation), []

  def look(count):
    (scratch,) = preparation.target.glob('*.part')
    with scratch.open('r+b') as file:
      in_use.append(try_lock(file) is False)

  write_shard(plan.shards[0], look)
  assert in_use == [True] * len(plan.shards[0].examples)


def test_parts_wait_for_nobody_but_a_whole_preparation_and_a_merge_do(preparation):
  prepare_part(preparation, '1/2')
  with target_folder.locked(preparation.target, shared=True):
    prepare_part(preparation, '2/2')
    for finish in (pipeline.merge, pipeline.prepare):
      with pytest.raises(UserError, match='Another process is preparing'):
        finish(preparation)
  with target_folder.locked(preparation.target):
    with pytest.raises(UserError, match='Another process is preparing'):
      prepare_part(preparation, '2/2')
  pipeline.merge(preparation)


def test_where_there_are_no_links_and_no_locks_parts_run_too(preparation, expected, monkeypatch):
  def fail(*unused):
    raise OSError(38, 'Function not implemented')

  monkeypatch.setattr('os.link', fail)
  monkeypatch.setattr('fcntl.flock', fail)
  for part in ('2/2', '1/2'):
    prepare_part(preparation, part)
  (preparation.target / 'x.cccccccc.part').touch()
  pipeline.merge(preparation)
  assert read_files(preparation.target) == expected


def test_settings_of_two_that_begin_at_once_are_those_of_the_first(preparation, tmp_path):
  """Both see an empty folder; the second one creates the settings while the first counts."""
  other = tmp_path / 'other'
  write_images(other, {f'{split}/a/1.png': (9, 9) for split in ('train', 'test')})
  settings = {'splits': {'train': 1}, 'source': str(other), 'listing': 'x'}

  def count_shards():
    prepare_part(preparation, '1/2')
    return {'train': 1}

  with pytest.raises(UserError, match='was begun with splits='):
    target_folder.begin_or_resume(preparation.target, settings, count_shards)
  prepare_part(preparation, '2/2')
  pipeline.merge(preparation)


def test_a_part_that_sees_other_files_is_refused(preparation):
  prepare_part(preparation, '1/2')
  root = pathlib.Path(preparation.source)
  (root / 'train' / 'cat' / '3.jpg').rename(root / 'train' / 'cat' / '33.jpg')
  for run_again in (lambda p: prepare_part(p, '2/2'), pipeline.merge):
    with pytest.raises(UserError, match='have changed since .* began, or this machine sees others'):
      run_again(preparation)


def test_an_unreadable_image_is_named_by_its_part_and_by_merge(preparation):
  strict = dataclasses.replace(preparation, skip_bad=False)
  errors = []
  for part in ('1/2', '2/2'):
    try:
      prepare_part(strict, part)
    except UserError as error:
      errors.append(str(error))
  with pytest.raises(UserError) as caught:
    pipeline.merge(strict)
  assert errors == [str(caught.value)] and 'dog/bad.jpg: not a known image' in errors[0]
  assert pipeline.merge(preparation).unreadable == 1  # with --on_bad_example=skip


def test_merge_without_parts_is_an_error(preparation):
  with pytest.raises(UserError, match='No preparation has begun in'):
    pipeline.merge(preparation)
  assert not preparation.target.exists()


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    *(
      (['out', f'--part={text}'], 'is not a part such as 3/64') for text in ('0/4', '5/4', 'x', '')
    ),
    (['--check', '--part=1/2'], 'argument --part: not allowed with argument --check'),
    (['out', '--merge', '--part=1/2'], 'argument --part: not allowed with argument --merge'),
    (
      ['out', '--runner=DirectRunner', '--merge'],
      'argument --merge: not allowed with argument --r',
    ),
    (['out', '--beam_options=--x=1'], '--beam_options are those of a --runner'),
    (['out', '--part=1/2', '--json'], '--json prints the data card'),
    (
      ['out', '--runner=DirectRunner', '--workers=2'],
      "Beam's workers are chosen by --beam_options",
    ),
  ],
)
def test_an_invalid_combination_is_one_sentence(flags, message, monkeypatch, capsys):
  monkeypatch.setattr('sys.argv', ['prepare_data', 'digits', *flags])
  with pytest.raises(SystemExit) as caught:
    prepare_data.main()
  err = capsys.readouterr().err
  assert caught.value.code == 2 and message in err and err.count('\n') == 1


def test_beam_that_is_not_installed_is_one_sentence(preparation, monkeypatch):
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  with pytest.raises(UserError, match=r"pip install 'vit_jax\[beam\]'"):
    pipeline.prepare_on_beam(preparation, 'DirectRunner')
  assert not preparation.target.exists()


def test_every_shard_is_in_one_part():
  shards = list(range(10))
  for count in (1, 3, 10, 12):
    parts = [Part(number, count).select(shards) for number in range(1, count + 1)]
    assert sorted(sum(parts, [])) == shards


@pytest.mark.parametrize(
  ('num_examples', 'num_bytes', 'num_shards'),
  [(1, 10, 1), (1024, 10, 1), (1025, 10, 2), (50_000, 10, 49), (10**6, 10, 128), (600, 2**20, 3)],
)
def test_the_number_of_shards_depends_on_the_data_alone(
  num_examples, num_bytes, num_shards, tmp_path
):
  (tmp_path / 'image').write_bytes(bytes(num_bytes))
  examples = FileExamples(str(tmp_path), ['image'] * num_examples, np.zeros(num_examples))
  assert default_num_shards(examples, Encoding()) == num_shards


def test_labels_can_be_read_without_images(preparation, tmp_path):
  pipeline.prepare(preparation, workers=1)
  for split, count in (('train', 60), ('test', 22)):
    labels = np.load(preparation.target / f'photos-{split}.labels.npy', allow_pickle=False)
    assert (labels.dtype, labels.shape) == (np.int32, (count,))
    source = open_source(f'array_record:{preparation.target}', split)
    assert labels.tolist() == read_labels(source)
  write_tfds(tmp_path / 'pets', 'labels')
  pipeline.prepare(Preparation(f'array_record:{tmp_path}/pets', tmp_path / 'multi'), workers=1)
  assert not list((tmp_path / 'multi').glob('*.npy'))
