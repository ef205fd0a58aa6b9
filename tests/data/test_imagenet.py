"""ImageNet: classes, ReaL labels, tars and ground truth."""

import io
import pathlib
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy import io as scipy_io

from vit_jax.data import imagenet
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError
from vit_jax.prepare.listing import Options, list_examples
from vit_jax.prepare.pipeline import prepare
from vit_jax.prepare.shard_plan import Preparation

TRAIN = {'n01443537': 2, 'n01440764': 1, 'n15075141': 3}  # synset -> images
TRUTH = ['n15075141', 'n01440764', 'n01443537', 'n01440764']
PARTIAL = Options(partial=True)


def make_jpeg(seed: int) -> bytes:
  file = io.BytesIO()
  pixels = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)
  Image.fromarray(pixels).save(file, 'JPEG')
  return file.getvalue()


def make_tar(files: dict[str, bytes], mode: str = 'w') -> bytes:
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode=mode) as archive:
    for name, data in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return out.getvalue()


def class_tars() -> dict[str, bytes]:
  return {
    f'{synset}.tar': make_tar(
      {f'{synset}_{i}.JPEG': make_jpeg(int(synset[1:]) + i) for i in range(count)}
    )
    for synset, count in TRAIN.items()
  }


def write_tars(root: pathlib.Path) -> None:
  root.mkdir()
  (root / imagenet.TRAIN_TAR).write_bytes(make_tar(class_tars()))
  names = {f'ILSVRC2012_val_{i + 1:08}.JPEG': make_jpeg(i) for i in range(len(TRUTH))}
  (root / imagenet.VAL_TAR).write_bytes(make_tar(names))


def write_devkit(root: pathlib.Path) -> None:
  ids = {synset: i + 1 for i, synset in enumerate(reversed(imagenet.synsets()))}
  table = np.zeros((1000, 1), [('ILSVRC2012_ID', object), ('WNID', object)])
  for row, (synset, number) in zip(table, ids.items(), strict=True):
    row[0] = (number, synset)
  meta = io.BytesIO()
  scipy_io.savemat(meta, {'synsets': table})
  folder = 'ILSVRC2012_devkit_t12/data'
  truth = ''.join(f'{ids[synset]}\n' for synset in TRUTH).encode()
  files = {
    f'{folder}/meta.mat': meta.getvalue(),
    f'{folder}/ILSVRC2012_validation_ground_truth.txt': truth,
  }
  (root / 'ILSVRC2012_devkit_t12.tar.gz').write_bytes(make_tar(files, 'w:gz'))


def write_synset_lines(root: pathlib.Path) -> None:
  text = ''.join(f'{synset}\n' for synset in TRUTH)
  (root / 'imagenet_2012_validation_synset_labels.txt').write_text(text)


def write_kaggle_solution(root: pathlib.Path) -> None:
  rows = [
    f'ILSVRC2012_val_{i + 1:08},{synset} 1 2 3 4 {synset} 5 6 7 8' for i, synset in enumerate(TRUTH)
  ]
  text = '\n'.join(['ImageId,PredictionString', *reversed(rows)])
  (root / 'LOC_val_solution.csv').write_text(text)


def test_classes_are_in_label_order_with_unique_names():
  synsets, synsets_21k = imagenet.synsets(), imagenet.synsets('21k')
  assert (len(synsets), len(synsets_21k)) == (1000, 21843)
  assert synsets == tuple(sorted(synsets)) and synsets_21k == tuple(sorted(synsets_21k))
  names = imagenet.class_names(synsets)
  assert names[0] == 'tench, Tinca tinca' and names[207] == 'golden retriever'
  assert names[134] == 'crane (n02012849)' and names[517] == 'crane (n03126707)'
  for each in (names, imagenet.class_names(synsets_21k)):
    assert len(set(each)) == len(each)


def test_the_release_of_fall_2011_lacks_two_synsets():
  synsets, synsets_21k = imagenet.synsets('22k'), imagenet.synsets('21k')
  assert len(synsets) == 21841 and synsets == tuple(sorted(synsets))
  assert set(synsets_21k) - set(synsets) == {'n03931044', 'n09859684'}


@pytest.mark.parametrize(('num_classes', 'version'), [(1000, '1k'), (21843, '21k'), (21841, '22k')])
def test_a_head_of_imagenet_gets_its_class_names(num_classes, version):
  names = imagenet.class_names_of_head(num_classes)
  assert len(names) == len(set(names)) == num_classes
  assert names == imagenet.class_names(imagenet.synsets(version))


def test_class_names_of_21841_outputs_are_shifted_after_each_missing_synset():
  names, more = imagenet.class_names_of_head(21841), imagenet.class_names_of_head(21843)
  first, second = (imagenet.synsets('21k').index(synset) for synset in ('n03931044', 'n09859684'))
  assert (more[first], more[second]) == ('picture, image, icon, ikon', 'bleacher')
  assert names[:first] == more[:first] and names[second - 1 :] == more[second + 1 :]


@pytest.mark.parametrize('num_classes', [0, 10, 999, 21842])
def test_other_heads_have_no_class_names(num_classes):
  assert imagenet.class_names_of_head(num_classes) is None


def test_real_labels_follow_the_validation_images():
  real = imagenet.real_labels()
  assert len(real) == 50_000
  assert sum(not labels for labels in real) == 3163
  assert real[:3] == ((), (970, 795), (230, 231))
  assert imagenet.val_number('val/ILSVRC2012_val_00000002.JPEG') == 1
  assert imagenet.val_number('n01440764_2.JPEG') is None


@pytest.mark.parametrize('write', [write_devkit, write_synset_lines, write_kaggle_solution])
def test_each_form_of_the_ground_truth_is_read(write, tmp_path):
  write_tars(tmp_path / 'tars')
  write(tmp_path / 'tars')
  examples = list_examples(str(tmp_path / 'tars'), PARTIAL).splits['validation']
  assert [int(examples.read(i)[1]) for i in range(4)] == [999, 0, 1, 0]
  assert [examples.read(i)[0] for i in range(4)] == [make_jpeg(i) for i in range(4)]


def test_the_tars_become_a_data_set(tmp_path):
  import tensorflow_datasets as tfds

  write_tars(tmp_path / 'tars')
  write_synset_lines(tmp_path / 'tars')
  prepare(Preparation(str(tmp_path / 'tars'), tmp_path / 'out', PARTIAL, shards=1), workers=1)
  train = open_source(f'array_record:{tmp_path}/out', 'train')
  labels = [int(train.read(i)[1]) for i in range(6)]
  assert sorted(labels) == [0, 1, 1, 999, 999, 999]
  (index,) = (i for i in range(6) if 'n01443537_1.JPEG' in train.describe(i))
  assert train.read(index)[0] == make_jpeg(1443538) and labels[index] == 1
  assert train.class_names == imagenet.class_names(imagenet.synsets())
  by_tfds = tfds.builder_from_directory(tmp_path / 'out').as_data_source('validation')
  assert sorted(list(each['real']) for each in by_tfds) == sorted(
    list(labels) for labels in imagenet.real_labels()[:4]
  )


def test_incomplete_and_damaged_tars_are_named(tmp_path):
  write_tars(tmp_path / 'tars')
  file = tmp_path / 'tars' / imagenet.TRAIN_TAR
  with pytest.raises(UserError, match='has 3 of 1,000 classes'):
    list_examples(str(file))
  with pytest.raises(UserError, match='put .*devkit.* beside it'):
    list_examples(str(tmp_path / 'tars'), PARTIAL)
  file.write_bytes(file.read_bytes()[:20_000])
  with pytest.raises(UserError, match=f'{imagenet.TRAIN_TAR} is not a complete tar file'):
    list_examples(str(file), PARTIAL)


@pytest.mark.parametrize('packed', [True, False])
def test_imagenet_21k_is_read_from_class_tars_or_folders(packed, tmp_path):
  for name, data in class_tars().items():
    if packed:
      (tmp_path / name).write_bytes(data)
    else:
      (tmp_path / name[:-4]).mkdir()
      tarfile.open(fileobj=io.BytesIO(data)).extractall(tmp_path / name[:-4], filter='data')
  listing = list_examples(str(tmp_path), Options(classes='imagenet21k', splits=('train',)))
  synsets = imagenet.synsets('21k')
  assert listing.class_ids == synsets and len(listing.class_names) == 21843
  labels = {int(listing.splits['train'].read(i)[1]) for i in range(len(listing.splits['train']))}
  assert labels <= {synsets.index(synset) for synset in TRAIN}
  listing = list_examples(str(tmp_path), Options(classes='found'))
  assert listing.class_names == imagenet.class_names(tuple(sorted(TRAIN)))
