"""vtab: tasks read from data sets in TFDS's format, and copies by prepare_data."""

import re

import numpy as np
import pytest

from tests.helpers import read_example, read_labels
from tests.vtab_datasets import write_vtab
from vit_jax.data.sources import open_source, split_names
from vit_jax.errors import MissingDataError, UserError
from vit_jax.prepare import pipeline
from vit_jax.prepare.shard_plan import Preparation


@pytest.mark.parametrize(
  ('task', 'split', 'whole', 'start', 'stop'),
  [
    ('clevr_count_all', 'train', 'train', 0, 800),
    ('clevr_count_all', 'validation', 'train', 1800, 2000),
    ('clevr_count_all', 'test', 'validation', 0, 20),
    ('resisc45', 'validation', 'train', 600, 800),
    ('resisc45', 'test', 'train', 800, 1000),
    ('smallnorb_azimuth', 'validation', 'test', 0, 200),
    ('smallnorb_azimuth', 'test', 'test', 100, 200),
    ('dtd', 'validation', 'validation', 0, 200),
  ],
)
def test_splits_are_the_ranges_of_task_adaptation(task, split, whole, start, stop, tmp_path):
  folder = write_vtab(tmp_path, task)
  source = open_source(f'vtab:{tmp_path}/{task}', split)
  assert (source.size, source.name) == (stop - start, f'vtab:{tmp_path}/{task} ({split})')
  assert f'-{whole}.array_record-00000-of-00001, record {start}' in source.describe(0)
  assert str(folder) in source.describe(source.size - 1)
  assert f'record {stop - 1}' in source.describe(source.size - 1)


def test_labels_follow_the_rule_of_the_task(tmp_path):
  write_vtab(tmp_path, 'clevr_count_all')
  write_vtab(tmp_path, 'kitti_closest_vehicle_distance')
  source = open_source(f'vtab:{tmp_path}/clevr_count_all', 'train+validation')
  assert (source.size, source.num_classes) == (1000, 8)
  assert read_labels(source)[:9] == [0, 1, 2, 3, 4, 5, 6, 7, 0]
  distance = open_source(f'vtab:{tmp_path}/clevr_closest_object_distance', 'train')
  assert read_labels(distance)[:7] == [0, 1, 2, 3, 4, 5, 0]
  kitti = open_source(f'vtab:{tmp_path}/kitti_closest_vehicle_distance', 'train')
  assert read_labels(kitti)[:5] == [0, 1, 2, 3, 0]


def test_dsprites_are_black_and_white(tmp_path):
  write_vtab(tmp_path, 'dsprites_x_position')
  source = open_source(f'vtab:{tmp_path}/dsprites_x_position', 'train')
  assert set(np.unique(read_example(source, 0)[0])) == {0, 255}


def test_data_is_found_in_the_folder_of_tfds(tmp_path, monkeypatch):
  write_vtab(tmp_path, 'dtd')
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  assert open_source('vtab:dtd', 'train').size == 800
  assert split_names('vtab:dtd') == ('train', 'validation', 'test')


def test_prepare_data_copies_the_examples_of_a_task(tmp_path):
  write_vtab(tmp_path / 'tfds', 'dmlab')
  original = open_source(f'vtab:{tmp_path}/tfds/dmlab', 'validation')
  pipeline.prepare(Preparation(original.name.split(' ')[0], tmp_path / 'small' / 'dmlab'), 1)
  copy = open_source(f'vtab:{tmp_path}/small/dmlab', 'validation')
  assert copy.size == 200
  assert sorted(read_labels(copy)) == sorted(read_labels(original))
  assert open_source(f'vtab:{tmp_path}/small/dmlab', 'test').size == 20


def test_missing_data_is_reported_with_the_command_that_prepares_it(tmp_path):
  with pytest.raises(MissingDataError) as error:
    open_source(f'vtab:{tmp_path}/resisc45', 'train')
  assert 'tfds.builder("resisc45:3.*.*", data_dir="' in str(error.value)
  assert 'NWPU-RESISC45.rar' in str(error.value)
  (tmp_path / 'kitti' / '3.3.0').mkdir(parents=True)
  with pytest.raises(MissingDataError, match=re.escape('version 3.1.0') + '.*only 3.3.0'):
    open_source(f'vtab:{tmp_path}/kitti_closest_vehicle_distance', 'train')


def test_what_is_not_vtab_is_refused(tmp_path):
  with pytest.raises(UserError, match='close ones: dtd'):
    open_source(f'vtab:{tmp_path}/dtt', 'train')
  write_vtab(tmp_path, 'dtd')
  with pytest.raises(UserError, match="splits train, validation, test, not 'all'"):
    open_source(f'vtab:{tmp_path}/dtd', 'all')
  whole = f'array_record:{tmp_path}/dtd/3.0.0'
  pipeline.prepare(Preparation(whole, tmp_path / 'whole' / 'dtd'), 1)
  with pytest.raises(UserError, match='has 1,000 train examples where VTAB-1k has 800'):
    open_source(f'vtab:{tmp_path}/whole/dtd', 'train')
