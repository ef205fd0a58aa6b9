"""The tasks of VTAB-1k and their label rules, against examples made by hand."""

import collections
import math

import pytest

from vit_jax.data import vtab_tasks
from vit_jax.data.vtab_tasks import TASKS
from vit_jax.errors import UserError


def test_there_are_seven_natural_four_specialized_and_eight_structured_tasks():
  groups = collections.Counter(task.group for task in TASKS.values())
  assert groups == {'natural': 7, 'specialized': 4, 'structured': 8}


def label(task: str, **features) -> int:
  rule = TASKS[task].rule
  assert rule is not None
  return rule.label({name.replace('__', '/'): values for name, values in features.items()})


@pytest.mark.parametrize(('count', 'expected'), [(3, 0), (4, 1), (10, 7)])
def test_clevr_counts_objects_from_three(count, expected):
  assert (
    label('clevr_count_all', objects__size=[0, 1] * (count // 2) + [1] * (count % 2)) == expected
  )


@pytest.mark.parametrize(
  ('distance', 'expected'),
  [(1.0, 0), (8.0, 0), (8.01, 1), (8.5, 1), (8.6, 2), (9.2, 3), (9.5, 3), (9.6, 4), (10.5, 5)],
)
def test_clevr_bins_the_distance_of_the_closest_object(distance, expected):
  coords = [200.0, 100.0, 30.0, 5.0, 6.0, distance, 1.0, 2.0, 11.0]  # x, y, depth of three objects
  assert label('clevr_closest_object_distance', objects__pixel_coords=coords) == expected


@pytest.mark.parametrize(
  ('kinds', 'depths', 'expected'),
  [
    ([0], [7.9], 0),
    ([0], [8.0], 0),
    ([1], [8.1], 1),
    ([2], [20.5], 2),
    ([0, 2], [30.0, 12.0], 1),
    ([3, 0], [2.0, 25.0], 2),  # a pedestrian is no vehicle
    ([3, 5, 6], [2.0, 3.0, 4.0], 3),
    ([], [], 3),
    ([0], [-1.0], 0),
  ],
)
def test_kitti_bins_the_distance_of_the_closest_car_van_or_truck(kinds, depths, expected):
  location = [number for z in depths for number in (1.0, 2.0, z)]
  features = {'objects__type': kinds, 'objects__location': location}
  assert label('kitti_closest_vehicle_distance', **features) == expected


def test_dsprites_groups_neighboring_values_into_16_classes():
  for value in range(32):
    assert label('dsprites_x_position', label_x_position=[value]) == value // 2
  for value in range(40):  # task_adaptation divides by 2.5
    assert label('dsprites_orientation', label_orientation=[value]) == math.floor(value / 2.5)


def test_smallnorb_has_the_classes_that_are_stored():
  assert label('smallnorb_azimuth', label_azimuth=[17]) == 17
  assert label('smallnorb_elevation', label_elevation=[8]) == 8


def test_tasks_and_groups_are_chosen_by_name():
  assert vtab_tasks.parse_tasks('') == tuple(TASKS)
  assert vtab_tasks.parse_tasks('svhn, dtd') == ('dtd', 'svhn')
  assert len(vtab_tasks.parse_tasks('specialized,dtd')) == 5


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('dtd,svnh', "'svnh' is not a task of VTAB; close ones: svhn"),
    ('clevr', 'clevr_count_all, clevr_closest_object_distance'),
    ('dtd,', "'' is not a task of VTAB; there are caltech101"),
    ('natrual', 'close ones: natural'),
  ],
)
def test_another_name_is_refused_with_close_ones(text, message):
  with pytest.raises(UserError) as error:
    vtab_tasks.parse_tasks(text)
  assert message in str(error.value)


def test_the_command_that_prepares_a_task_names_data_set_version_and_folder():
  command = vtab_tasks.preparation_command('clevr_count_all', '/my data')
  assert '"clevr:3.*.*", data_dir="/my data", file_format="array_record"' in command
