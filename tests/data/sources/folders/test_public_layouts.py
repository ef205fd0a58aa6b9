"""Well-known data sets as they unpack: read as meant, or refused with what to type instead.

Files are empty: no image is read. R is the folder; each case says what is typed, and
  - what is to be typed instead, if that is refused; '' if it is read
  - the classes, and the number of images of each split; one number if a part is held out
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping

import pytest

from vit_jax.data.sources import open_source, split_names
from vit_jax.errors import UserError

N = 6  # images of a pattern and class


@dataclasses.dataclass(frozen=True)
class Case:
  """A data set; in `files`, {c} is a class, {j} its number, {i} a number of an image."""

  files: tuple[str, ...]
  classes: tuple[str, ...]
  sizes: int | dict[str, int]
  instead: str = ''
  typed: str = 'folder:R'
  names: tuple[str, ...] = ()  # values of {c}, if they are not the classes
  texts: Mapping[str, str] = dataclasses.field(default_factory=dict)  # tables and lists


def rows(header: str, *values: str, names: tuple[str, ...] = ('a', 'b')) -> str:
  """A table with a row for each image of each name."""
  lines = [','.join(values).format(c=c, j=j, i=i) for j, c in enumerate(names) for i in range(N)]
  return '\n'.join([header] * bool(header) + lines) + '\n'


MOVE = 'move the images of each class into a sub-folder of its name, or write a table with the'
AB = ('a', 'b')
BIRDS = ('001.Black_footed_Albatross', '002.Laysan_Albatross')
SYNSETS = ('n01443537', 'n01629819')
SUBMISSION = {'sample_submission.csv': 'id,label\nt0,a\nt1,b\n'}
TESTS = 'test/t{i}.jpg'

CASES = {
  'dogs-vs-cats': Case(
    ('train/{c}.{i}.jpg', 'test1/{i}.jpg'), ('cat', 'dog'), 12,
    r"use 'folder:R?pattern=(\w+)\.\d+'",
    texts={'sampleSubmission.csv': 'id,label\n0,0\n1,0\n'},
  ),
  'dog-breed': Case(
    ('train/{j}f{i}.jpg', TESTS), AB, 12,
    "if labels.csv has their labels, use 'table:R/labels.csv'",
    texts={'labels.csv': rows('id,breed', '{j}f{i}', '{c}'), **SUBMISSION},
  ),
  'fruits-360': Case(
    ('fruits-360_100x100/fruits-360/Training/{c}/{i}_100.jpg',
     'fruits-360_100x100/fruits-360/Test/{c}/r_{i}_100.jpg',
     'fruits-360_100x100/fruits-360/test-multiple_fruits/{i}.jpg'),
    ('Apple Braeburn 1', 'Banana 1'), {'train': 12, 'test': 12},
    texts={'fruits-360_100x100/fruits-360/LICENSE': ''},
  ),
  'fruits-360 with three splits': Case(
    ('f/Training/{c}/r0_{i}.jpg', 'f/Validation/{c}/r0_{i}.jpg', 'f/Test/{c}/r0_{i}.jpg'),
    ('apple_6', 'pear_1'), {'train': 12, 'val': 12, 'test': 12},
  ),
  'intel': Case(
    ('seg_train/seg_train/{c}/{i}.jpg', 'seg_test/seg_test/{c}/{i}.jpg',
    'seg_pred/seg_pred/{i}.jpg'),
    ('forest', 'sea'), {'train': 12, 'test': 12},
  ),
  'chest_xray': Case(
    tuple(f'{f}/{s}/{{c}}/{{i}}.jpeg' for f in ('chest_xray', 'chest_xray/chest_xray')
          for s in ('train', 'test', 'val')),
    ('NORMAL', 'PNEUMONIA'), {'train': 12, 'test': 12, 'val': 12},
    texts={'chest_xray/.DS_Store': '', 'chest_xray/__MACOSX/chest_xray/train/NORMAL/._0.jpeg': ''},
  ),
  'flowers-102': Case(('jpg/image_{i:05}.jpg',), (), 0, MOVE, texts={'imagelabels.mat': ''}),
  'stanford dogs': Case(
    ('images/Images/{c}/{i}.jpg',), ('n02085620-Chihuahua', 'n02085782-Japanese_spaniel'), 12,
    texts={'annotations/Annotation/n02085620-Chihuahua/n02085620_1': ''},
  ),
  'cub-200': Case(
    ('CUB_200_2011/images/{c}/{i}.jpg',), BIRDS, 12,
    texts={'CUB_200_2011/images.txt': '1 001.Black_footed_Albatross/0.jpg\n', 'attributes.txt': ''},
  ),
  'pets': Case(
    ('images/{c}_{i}.jpg', 'annotations/trimaps/{c}_{i}.png'), ('Abyssinian', 'american_bulldog'),
    12,
    r"use 'folder:R/images?pattern=(.+)_\d+'",
    texts={'annotations/list.txt': '#Image CLASS-ID SPECIES\n' + rows('', '{c}_{i} {j} 1')},
  ),
  'pets by their list': Case(
    ('images/{c}_{i}.jpg', 'annotations/trimaps/{c}_{i}.png'), ('1', '2'), 12, names=AB,
    typed='table:R/annotations/list.txt?columns=image,label&root=../images',
    texts={
      'annotations/list.txt': '#Image CLASS-ID SPECIES\n'
      + ''.join(f'{c}_{i} {j} 1\n' for c, j in (('a', 1), ('b', 2)) for i in range(N))
    },
  ),
  'cifar-10 of kaggle': Case(
    ('train/{j}{i}.png', 'test/{j}{i}.png'), AB, 12, "use 'table:R/trainLabels.csv'",
    texts={'trainLabels.csv': rows('id,label', '{j}{i}', '{c}'),
           'sampleSubmission.csv': rows('id,label', '{j}{i}', '{c}')},
  ),
  'cassava': Case(
    ('train_images/1{j}{i}.jpg', 'test_images/9{i}.jpg'), ('0', '1'), 12, "use 'table:R/train.csv'",
    names=AB, texts={'train.csv': rows('image_id,label', '1{j}{i}.jpg', '{j}'),
                     'label_num_to_disease_map.json': '{"0": "a"}', **SUBMISSION},
  ),
  'plant pathology 2020': Case(
    ('images/Train_{j}{i}.jpg', 'images/Test_{i}.jpg'), ('healthy', 'scab'), 12,
    "use 'table:R/train.csv'", names=AB,
    texts={'train.csv': 'image_id,healthy,scab\n'
           + ''.join(f'Train_{j}{i},{j},{1 - j}\n' for j in (0, 1) for i in range(N)),
           'test.csv': 'image_id\nTest_0\n',
           'sample_submission.csv': 'image_id,healthy,scab\nTest_0,1,0\nTest_1,0,1\n'},
  ),
  'plant pathology 2021': Case(
    ('train_images/{c}{i}.jpg',), ('complex', 'rust', 'scab'), 12,
    typed='table:R/train.csv?sep=%20', names=AB,
    texts={'train.csv': rows('image,labels', 'a{i}.jpg', 'scab complex', names=('a',))
           + rows('', 'b{i}.jpg', 'rust', names=('b',))},
  ),
  'ham10000': Case(
    ('HAM10000_images_part_1/0{j}{i}.jpg', 'HAM10000_images_part_2/1{j}{i}.jpg'), ('bkl', 'nv'), 12,
    "use 'table:R/HAM10000_metadata.csv'",
    texts={'HAM10000_metadata.csv': rows('lesion_id,image_id,dx,dx_type,age', '{c}{i}', '0{j}{i}',
                                         '{c}', 'histo', '80.0', names=('bkl', 'nv')),
           'hmnist_8_8_L.csv': 'pixel0000,label\n0,1\n'},
  ),
  'aptos': Case(
    ('train_images/{j}a{i}.png', 'test_images/{i}.png'), ('0', '1'), 12, "use 'table:R/train.csv'",
    names=AB, texts={'train.csv': rows('id_code,diagnosis', '{j}a{i}', '{j}'),
                     'test.csv': 'id_code\n0\n1\n'},
  ),
  'humpback': Case(
    ('train/{j}{i}.jpg', TESTS), ('new_whale', 'w_1'), 12, "use 'table:R/train.csv'",
    texts={'train.csv': rows('Image,Id', '{j}{i}.jpg', '{c}', names=('new_whale', 'w_1'))},
  ),
  'mura': Case(
    ('MURA-v1.1/train/XR_HAND/patient{i}/study1_{c}/image1.png',
     'MURA-v1.1/valid/XR_HAND/patient9{i}/study1_{c}/image1.png'),
    ('negative', 'positive'), {'train': 12, 'val': 12}, typed=r'folder:R?pattern=study\d+_(\w+)/',
  ),
  'food-101': Case(
    ('food-101/images/{c}/{i}.jpg',), ('apple_pie', 'waffles'), 12,
    texts={'food-101/meta/train.txt': 'apple_pie/1\n', 'food-101/meta/train.json': '{}'},
  ),
  'caltech-101': Case(
    ('caltech-101/101_ObjectCategories/{c}/image_{i:04}.jpg',), ('BACKGROUND_Google', 'accordion'),
    12,
    texts={'caltech-101/Annotations/accordion/annotation_0001.mat': '', '__MACOSX/._x': ''},
  ),
  'eurosat': Case(('2750/{c}/{c}_{i}.jpg',), ('Forest', 'SeaLake'), 12),
  'eurosat of kaggle': Case(
    ('EuroSAT/{c}/{i}.jpg', 'EuroSATallBands/{c}/{i}.tif'), ('Forest', 'SeaLake'), 24,
    "if the sub-folders are, use 'folder:R?pattern=^[^/]+/([^/]+)/'",
  ),
  'eurosat by its table': Case(
    ('{c}/{i}.jpg',), ('Forest', 'SeaLake'), 12, typed='table:R/train.csv',
    texts={'train.csv': rows(',Filename,Label,ClassName', '{i}', '{c}/{i}.jpg', '{j}', '{c}',
                             names=('Forest', 'SeaLake'))},
  ),
  'gtsrb': Case(
    ('GTSRB/Final_Training/Images/0000{j}/00000_{i:05}.ppm', 'GTSRB/Final_Test/Images/{i:05}.ppm'),
    ('00000', '00001'), 12, names=AB,
    texts={'GTSRB/Final_Training/Images/00000/GT-00000.csv': 'Filename;ClassId\n0.ppm;0\n'},
  ),
  'gtsrb by a table': Case(
    ('GTSRB/Final_Test/Images/{j}{i}.ppm',), ('0', '1'), 12, names=AB,
    typed='table:R/GT-final_test.csv?root=GTSRB/Final_Test/Images',
    texts={'GT-final_test.csv': rows('Filename,Roi.X1,Roi.Y1,ClassId', '{j}{i}.ppm', '5', '6',
    '{j}')
           .replace(',', ';')},
  ),
  'imagenette': Case(
    ('imagenette2-160/train/{c}/{i}.JPEG', 'imagenette2-160/val/{c}/{i}.JPEG'),
    SYNSETS, {'train': 12, 'val': 12},
    texts={'imagenette2-160/noisy_imagenette.csv': 'path,noisy_labels_0,is_valid\nx.JPEG,n0,0\n'},
  ),
  'tiny-imagenet': Case(
    ('t/train/{c}/images/{c}_{i}.JPEG', 't/val/images/val_{j}{i}.JPEG',
    't/test/images/test_{i}.JPEG'),
    SYNSETS, 12,
    texts={'t/train/n01443537/n01443537_boxes.txt': 'n01443537_0.JPEG\t0\t10\t63\t58\n'},
  ),
  "tiny-imagenet's validation": Case(
    ('val/images/val_{j}{i}.JPEG',), SYNSETS, 12, typed='folder:R/val',
    instead="use 'table:R/val/val_annotations.txt?columns=image,label'",
    texts={'val/val_annotations.txt': rows('', 'val_{j}{i}.JPEG', '{c}', '0', '32', '44', '62',
                                           names=SYNSETS).replace(',', '\t')},
  ),
  'mnist': Case(
    ('mnist_png/training/{c}/{i}.png', 'mnist_png/testing/{c}/{i}.png'), tuple('0123456789'),
    {'train': 60, 'test': 60},
  ),
  'utkface': Case(('UTKFace/{i}_{j}_2_20170116.jpg.chip.jpg',), (), 0, MOVE, names=AB),
  'utkface with ages': Case(
    ('2{i}_{j}_1_2017.jpg.chip.jpg',), (), 0,
    r"by a pattern, as 'folder:R?pattern=^\d+_(\d+)_'", names=AB,
  ),
  'utkface by its names': Case(
    ('UTKFace/{i}_{j}_2_20170116.jpg.chip.jpg',), ('0', '1'), 12, names=AB,
    typed=r'folder:R?pattern=^\d+_(\d)_',
  ),
  'utkface in parts': Case(
    ('part1/{i}_{j}_2.jpg', 'part2/{i}_{j}_3.jpg'), (), 0, f'parts of one data set; {MOVE}',
    names=AB,
  ),
  'folds that share their classes': Case(
    ('fold1/{c}/f1_{i}.jpg', 'fold2/{c}/f2_{i}.jpg', 'fold3/{c}/f3_{i}.jpg'), ('rose', 'tulip'), 36,
    'look like parts of one data set; '
    "if their sub-folders are the classes, use 'folder:R?pattern=^[^/]+/([^/]+)/'",
  ),
  'lfw': Case(('lfw/{c}/{c}_{i:04}.jpg', 'lfw/Zico/Zico_0001.jpg'), ('Aaron', 'Bush', 'Zico'), 13,
              names=('Aaron', 'Bush')),
  'an imagefolder with metadata': Case(
    ('train/{j}{i}.png', 'test/{j}{i}.png'), AB, 12, "use 'table:R/train/metadata.csv'",
    texts={f'{s}/metadata.csv': rows('file_name,label', '{j}{i}.png', '{c}')
           for s in ('train', 'test')},
  ),
  'an imagefolder with metadata above': Case(
    ('train/{j}{i}.png', 'test/{j}{i}.png'), AB, {'train': 12, 'test': 12},
    "use 'table:R/metadata.csv'",
    texts={'metadata.csv': rows('file_name,label', 'train/{j}{i}.png', '{c}')
           + rows('', 'test/{j}{i}.png', '{c}')},
  ),
  'an imagefolder with json': Case(
    ('train/{c}{i}.png', 'validation/{c}{i}.png'), AB, 12, "use 'table:R/train/metadata.jsonl'",
    texts={f'{s}/metadata.jsonl': ''.join(
      json.dumps({'file_name': f'{c}{i}.png', 'label': c}) + '\n' for c in AB for i in range(N))
           for s in ('train', 'validation')},
  ),
  'coco': Case(('train2017/{i:012}.jpg', 'val2017/{i:012}.jpg'), (), 0, MOVE,
               texts={'annotations/instances_train2017.json': '{}'}),
  'images and masks': Case(
    ('images/{i}.jpg', 'masks/{i}.png'), (), 0, f'images and what belongs to them; {MOVE}',
  ),
  'images and masks of splits': Case(
    ('train/images/{i}.jpg', 'train/masks/{i}.png', 'val/images/{i}.jpg', 'val/masks/{i}.png'), (),
    0,
    f'images and what belongs to them; {MOVE}',
  ),
  'images of classes and masks': Case(
    ('images/{c}/{i}.jpg', 'masks/{c}/{i}.png'), AB, 12, 'use folder:R/images',
  ),
  'voc': Case(
    ('VOC2012/JPEGImages/{i}.jpg', 'VOC2012/SegmentationClass/{i}.png',
     'VOC2012/SegmentationObject/{i}.png'), (), 0, f'images and what belongs to them; {MOVE}',
  ),
  'yolo': Case(('images/train/{i}.jpg', 'images/val/{i}.jpg'), (), 0, MOVE,
               texts={'labels/train/1.txt': '0 0.5 0.5 1 1\n', 'data.yaml': ''}),
  'busi': Case(
    ('Dataset_BUSI_with_GT/{c}/{c} ({i}).png', 'Dataset_BUSI_with_GT/{c}/{c} ({i})_mask.png'),
    ('benign', 'normal'), 12, "use 'folder:R?pattern=^(?!.*_mask[^/]*$)([^/]+)/'",
  ),
  'label studio': Case(
    ('{c}-{i}.jpg',), AB, 12, typed='table:R/export.csv?label=choice',
    texts={'export.csv': rows('image,id,choice,annotator', '/data/upload/1/{c}-{i}.jpg', '{i}',
    '{c}', '1')},
  ),
  'years': Case(('2020/{c}/{i}.jpg', '2021/{c}/{i}.jpg', '2021/owl/{i}.jpg'), ('cat', 'dog',
  'owl'), 30,
                "if the sub-folders are, use 'folder:R?pattern=^[^/]+/([^/]+)/'", names=('cat',
                'dog')),
  'spaces and umlauts': Case(('Große Bilder/{c}/Bild {i} (Kopie).jpg',), ('Bären & Co', 'l’été'),
  12),
  'one image of a class': Case(
    ('{c}/x.jpg',), (), 0, 'has too few images: none is in its split', names=('a', 'b', 'c'),
  ),
  'imagenet': Case(
    ('ILSVRC/Data/CLS-LOC/train/{c}/{i}.JPEG', 'ILSVRC/Data/CLS-LOC/val/{i}.JPEG',
     'ILSVRC/Data/CLS-LOC/test/{i}.JPEG'), SYNSETS, 12,
    texts={'ILSVRC/Annotations/CLS-LOC/val/1.xml': '',
    'LOC_val_solution.csv': 'ImageId,P\n0,n1 2\n'},
  ),
  'celeba': Case(
    ('img_align_celeba/img_align_celeba/{j}{i}.jpg',), ('Male', 'Young'), 12,
    "use 'table:R/list_attr_celeba.csv'", names=AB,
    texts={'list_attr_celeba.csv': rows('image_id,Male,Young', '{j}{i}.jpg', '1', '1', names=('a',))
           + rows('', '1{i}.jpg', '-1', '1', names=('b',))},
  ),
  'isic-2019': Case(
    ('ISIC_2019_Training_Input/{j}{i}.jpg',), ('MEL', 'NV'), 12,
    "use 'table:R/ISIC_2019_Training_GroundTruth.csv'", names=AB,
    texts={'ISIC_2019_Training_GroundTruth.csv': rows('image,MEL,NV', '0{i}', '1.0', '0.0',
    names=('a',))
           + rows('', '1{i}', '0.0', '1.0', names=('b',))},
  ),
  'chest x-rays of the nih': Case(
    ('images_001/images/{j}{i}.png', 'images_002/images/x.png'), ('Hernia', 'No Finding'), 12,
    "use 'table:R/Data_Entry_2017.csv'",
    texts={'Data_Entry_2017.csv': rows(
      'Image Index,Finding Labels,Patient ID,OriginalImagePixelSpacing[x,y],', '{j}{i}.png', '{c}',
      '{i}', '0.143', '0.143', '', names=('Hernia', 'No Finding'))},
  ),
  'retinopathy': Case(
    ('train/{j}{i}_left.jpeg', 'train/{j}{i}_right.jpeg'), ('0', '1'), 24, names=AB,
    typed=r'table:R/trainLabels.csv?group=(\d+)_',
    texts={'trainLabels.csv': rows('image,level', '{j}{i}_left', '{j}')
           + rows('', '{j}{i}_right', '{j}')},
  ),
  'places365': Case(
    ('val_256/Places365_val_{j}{i}.jpg',), ('0', '1'), 12, names=AB,
    typed='table:R/places365_val.txt?columns=image,label',
    texts={'places365_val.txt': rows('', 'Places365_val_{j}{i}.jpg', '{j}').replace(',', ' ')},
  ),
  'plantvillage': Case(
    ('PlantVillage/{c}/{i}.JPG', 'PlantVillage/PlantVillage/{c}/{i}.JPG'),
    ('Pepper__healthy', 'Tomato_healthy'), 12, 'use folder:R/PlantVillage/PlantVillage',
  ),
  'brain tumors': Case(
    ('{c}/Y{i}.jpg', 'brain_tumor_dataset/{c}/Y{i}.jpg'), ('no', 'yes'), 12,
    'use folder:R/brain_tumor_dataset',
  ),
  'new plant diseases': Case(
    ('New Plant (Augmented)/New Plant (Augmented)/train/{c}/{i}.JPG',
     'New Plant (Augmented)/New Plant (Augmented)/valid/{c}/{i}.JPG', 'test/test/AppleScab{i}.JPG'),
    ('Apple___healthy', 'Apple___scab'), {'train': 12, 'val': 12},
    'use folder:R/New Plant (Augmented)',
  ),
  'test beside the classes': Case(
    ('{c}/{i}.jpg', 'test/{i}.jpg'), ('cats', 'dogs'), 12,
    "use 'folder:R?pattern=^(?!test/)([^/]+)/'",
  ),
  'validation beside the classes': Case(
    ('{c}/{i}.jpg', 'validation/{i}.jpg'), ('cats', 'dogs'), 12,
    "use 'folder:R?pattern=^(?!validation/)([^/]+)/'",
  ),
  'images and test': Case(
    ('images/{c}_{i}.jpg', 'test/{i}.jpg'), ('cats', 'dogs'), 12,
    r"use 'folder:R/images?pattern=(.+)_\d+'",
  ),
  'roboflow': Case(
    ('train/{c}{i}.jpg', 'valid/{c}{i}.jpg'), ('cat', 'dog'), 12,
    "use 'table:R/train/_classes.csv'",
    names=AB, texts={f'{s}/_classes.csv': rows('filename, cat, dog', '{c}{i}.jpg', ' 1', ' {j}')
                     for s in ('train', 'valid')},
  ),
  'inaturalist': Case(('train/Aves/{c}/{i}.jpg', 'train/Plantae/Rosa {c}/{i}.jpg'), ('Aves',
  'Plantae'),
                      24, names=('Corvus', 'Parus')),
  'two lists': Case(
    ('images/{c}{i}.jpg',), AB, 12, "use 'table:R/train.csv'",
    texts={s: rows('filename,label', '{c}{i}.jpg', '{c}') for s in ('test.csv', 'train.csv')},
  ),
  'a copy that lacks a class': Case(
    ('Original/{c}/{i}.jpg', 'Augmented/{c}/{i}.jpg', 'Original/c/{i}.jpg'), ('a', 'b', 'c'), 30,
    "if the sub-folders are, use 'folder:R?pattern=^[^/]+/([^/]+)/'", names=AB,
  ),
}  # fmt: skip


def build(case: Case, root: pathlib.Path) -> None:
  for pattern in case.files:
    for j, c in enumerate(case.names or case.classes or AB):
      for i in range(N):
        path = root / pattern.format(c=c, i=i, j=j)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
  for name, text in case.texts.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def check(spec: str, case: Case) -> None:
  sources = {split: open_source(spec, split) for split in split_names(spec)}
  assert all(source.class_names == case.classes for source in sources.values())
  sizes = {split: source.size for split, source in sources.items()}
  if isinstance(case.sizes, int):
    assert sizes.keys() == {'train', 'test'} and sum(sizes.values()) == case.sizes
  else:
    assert sizes == case.sizes


@pytest.mark.parametrize('name', CASES)
def test_a_data_set_is_read_as_meant_or_refused(name, tmp_path):
  case = CASES[name]
  build(case, tmp_path)
  spec = case.typed.replace('R', str(tmp_path), 1)
  if not case.instead:
    check(spec, case)
    return
  with pytest.raises(UserError) as caught:
    for split in ('train', 'test'):
      open_source(spec, split)
  message = str(caught.value).replace(str(tmp_path), 'R')
  assert case.instead in message and '\n' not in message
  # What is advised works as it is written.
  advised = re.findall(r"use '([^']*)'|use (folder:.*?)(?:;|\.$)", str(caught.value))
  if case.classes:
    check(''.join(advised[0]), case)
  for quoted, plain in advised[1:]:
    open_source(quoted or plain, 'all')


def test_a_class_may_be_called_like_a_mask(tmp_path):
  build(Case(('{c}/{i}.jpg',), ('gas_mask', 'hat'), 12), tmp_path)
  assert open_source(f'folder:{tmp_path}', 'all').class_names == ('gas_mask', 'hat')


@pytest.mark.parametrize(
  'names', ['1 2', 'class_1 class_2', 'photo sketch', 'sample1 other', 'n0 n1']
)
def test_names_of_classes(names, tmp_path):
  names = tuple(names.split())
  build(Case(('{c}/{i}.jpg',), names, 12), tmp_path)
  assert set(open_source(f'folder:{tmp_path}', 'all').class_names) == set(names)


def test_a_lone_folder_for_testing(tmp_path):
  build(Case(('val/{c}/{i}.jpg',), AB, 12), tmp_path)
  assert open_source(f'folder:{tmp_path}', 'test').size == 12
  with pytest.raises(UserError, match="splits val, not 'train'; to hold out .* use folder:/") as no:
    open_source(f'folder:{tmp_path}', 'train')
  assert open_source(str(no.value).split(' use ')[1].rstrip('.'), 'train').class_names == AB


def test_classes_whose_names_differ_in_case(tmp_path):
  build(Case(('train/{c}/{i}.jpg', 'test/A/{i}.jpg'), AB, 12), tmp_path)
  with pytest.raises(
    UserError, match='test/A/0.jpg belongs to a class .*; rename it to a as there'
  ):
    open_source(f'folder:{tmp_path}', 'test')


def test_options_are_joined(tmp_path):
  build(Case(('2020/{c}/{i}.jpg', '2021/{c}/{i}.jpg'), AB, 24), tmp_path)
  with pytest.raises(UserError) as caught:
    open_source(f'folder:{tmp_path}?fold=2/5', 'train')
  advised = re.findall("use '([^']*)'", str(caught.value))
  assert len(advised) == 2 and all('?fold=2/5&pattern=' in spec for spec in advised)
  assert open_source(advised[0], 'train').class_names == AB


def test_notes_tell_what_is_merged_and_where_test_labels_are(tmp_path):
  build(CASES['inaturalist'], tmp_path / 'i')
  (note,) = open_source(f'folder:{tmp_path}/i', 'train').notes
  assert 'the sub-folders of 2 classes, such as Corvus, Parus of Aves, are merged' in note
  classes = open_source(re.findall("use '([^']*)'", note)[0], 'train').class_names
  assert classes == ('Corvus', 'Parus', 'Rosa Corvus', 'Rosa Parus')
  root = tmp_path / 't'
  build(CASES['tiny-imagenet'], root)
  names = [f'val_{j}{i}.JPEG\t{c}\t0\t1' for j, c in enumerate(SYNSETS) for i in range(N)]
  (root / 't' / 'val' / 'val_annotations.txt').write_text('\n'.join(names))
  notes = ' '.join(open_source(f'folder:{root}', 'train').notes)
  (source,) = re.findall('--config.data.test.source=(.*?) --config.data.test.split=all', notes)
  assert open_source(source, 'all').size == 12
  assert os.path.dirname(open_source(source, 'all').describe(0)) == f'{root}/t/val/images'
  (root / 't' / 'val' / 'val_annotations.txt').write_text('val_00.JPEG 1\nval_01.JPEG 2\n')
  assert 'test.source' not in ' '.join(open_source(f'folder:{root}', 'train').notes)
