"""table: columns, labels, splits, files, and tables that cannot be read."""

import json
import os
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from tests.helpers import read_labels, write_images
from vit_jax.data.sources import open_source, split_names
from vit_jax.data.sources.source import hash_files, is_held_out
from vit_jax.errors import BadExampleError, MissingDataError, UserError

ANIMALS = {'1.jpg': 'cat', '2.jpg': 'dog', '3.jpg': 'cat', '4.jpg': 'owl'}


@pytest.fixture
def folder(tmp_path):
  write_images(tmp_path, dict.fromkeys(ANIMALS, (6, 8)))
  return tmp_path


def table(folder, text, name='labels.csv', query='', split='all'):
  """Writes a table and opens it."""
  (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
  return open_source(f'table:{folder}/{name}{query}', split)


def lines(header, delimiter=',', rows=ANIMALS):
  return '\n'.join([header, *(delimiter.join(row) for row in rows.items())]) + '\n'


def contents(source):
  """{'1.jpg': 'cat', …}, or lists of names for multi-label data."""
  found = {}
  for i in range(source.size):
    image, label = source.read(i)
    path = source.location(i)
    with open(path, 'rb') as file:
      assert image == file.read()
    names = [source.class_names[k] for k in np.flatnonzero(label)]
    found[os.path.basename(path)] = names if source.multi_label else source.class_names[label]
  return found


def refused(folder, text, match, **kwargs):
  with pytest.raises(UserError, match=match) as error:
    table(folder, text, **kwargs)
  assert '\n' not in str(error.value)


def test_a_table_of_names_and_labels(folder):
  source = table(folder, lines('image,label'))
  assert contents(source) == ANIMALS
  assert source.class_names == ('cat', 'dog', 'owl')
  assert source.name == f'table:{folder}/labels.csv (all)'
  assert source.read(0)[1].dtype == np.int32
  assert not source.multi_label and not source.notes


@pytest.mark.parametrize(
  'header',
  ['file,breed', 'id,category', 'Image Index,Finding Labels', 'filename,x', 'path,Target', 'f,dx'],
)
def test_columns_are_found_by_their_names_and_values(header, folder):
  assert contents(table(folder, lines(header))) == ANIMALS


@pytest.mark.parametrize('delimiter', [',', ';', '\t', '|'])
@pytest.mark.parametrize('encode', [
  lambda text: text,
  lambda text: text.replace('\n', '\r\n'),
  lambda text: '\ufeff' + text,
  lambda text: text.replace('cat', '"cat"').replace('image', '"image"'),
  lambda text: text.replace('\n', '\n\n'),
], ids=['plain', 'crlf', 'bom', 'quotes', 'empty lines'])  # fmt: skip
def test_csv_as_programs_write_it(delimiter, encode, folder):
  assert (
    contents(table(folder, encode(lines('image,label'.replace(',', delimiter), delimiter))))
    == ANIMALS
  )


def test_the_index_of_pandas_is_no_label(folder):
  rows = '\n'.join(f'{i},{name},{label}' for i, (name, label) in enumerate(ANIMALS.items()))
  assert contents(table(folder, f',filename,what\n{rows}\n')) == ANIMALS
  assert contents(table(folder, f'Unnamed: 0,filename,what\n{rows}\n')) == ANIMALS


def test_jsonl(folder):
  rows = [{'file_name': name, 'label': label} for name, label in ANIMALS.items()]
  text = '\n'.join(map(json.dumps, rows))
  assert contents(table(folder, text, 'metadata.jsonl')) == ANIMALS
  several = '{"image": "1.jpg", "labels": ["b", "a"]}\n{"image": "2.jpg", "labels": []}\n'
  several += '{"image": "3.jpg", "labels": ["c"]}\n'
  source = table(folder, several, 'several.jsonl')
  assert contents(source) == {'1.jpg': ['a', 'b'], '2.jpg': [], '3.jpg': ['c']}
  numbers = '{"image": "1.jpg", "label": 10}\n{"image": "2.jpg", "label": 9}\n'
  assert table(folder, numbers, 'numbers.jsonl').class_names == ('9', '10')


def test_parquet(folder):
  pa = pytest.importorskip('pyarrow')
  parquet = pytest.importorskip('pyarrow.parquet')
  columns = {'image': list(ANIMALS), 'label': list(ANIMALS.values()), 'n': [1, 2, 3, 4]}
  parquet.write_table(pa.table(columns), folder / 'a.parquet')
  assert contents(open_source(f'table:{folder}/a.parquet', 'all')) == ANIMALS
  columns = {'id': [1, 2, 3], 'label': [[0, 3], [], [3]]}
  parquet.write_table(pa.table(columns), folder / 'b.parquet')
  source = open_source(f'table:{folder}/b.parquet', 'all')
  assert contents(source) == {'1.jpg': ['0', '3'], '2.jpg': [], '3.jpg': ['3']}
  inside = {'image': [{'bytes': b'x', 'path': None}], 'label': ['a']}
  parquet.write_table(pa.table(inside), folder / 'c.parquet')
  with pytest.raises(UserError, match='hf:/path'):
    open_source(f'table:{folder}/c.parquet', 'all')
  (folder / 'a.parquet').write_bytes(b'PAR1 no')
  with pytest.raises(UserError, match='a.parquet is not a complete Parquet file'):
    open_source(f'table:{folder}/a.parquet', 'all')


def test_parquet_without_pyarrow_names_the_command(folder, monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'pyarrow.parquet', None)
  refused(folder, b'PAR1', r"pyarrow; run pip install 'vit_jax\[parquet\]'", name='a.parquet')


def test_named_columns(folder):
  (folder / 'labels').mkdir()
  text = 'file,label,breed,note\n1.jpg,pet,cat,x\n2.jpg,pet,dog,y\n'
  query = '?image=file&label=Breed&root=..'
  assert contents(table(folder, text, 'labels/x.csv', query)) == {'1.jpg': 'cat', '2.jpg': 'dog'}
  text = 'file,a,b,age\n1.jpg,1,0,7\n2.jpg,1,1,8\n'
  source = table(folder, text, query='?label=a,b')
  assert contents(source) == {'1.jpg': ['a'], '2.jpg': ['a', 'b']}
  for query, match in (
    ('?label=breed', "no column 'breed' .* columns are file, a, b, age"),
    ('?lable=a', 'unknown option .lable=a.; valid options are image, label'),
    ('?incomplete=yes', 'unknown option'),
    ('?label', 'unknown option'),
  ):
    refused(folder, text, match, query=query)


def test_ambiguous_columns(folder):
  source = table(folder, 'image,target,breed\n1.jpg,0,cat\n2.jpg,1,dog\n')
  assert source.class_names == ('cat', 'dog')
  assert 'column breed, not target' in source.notes[0]
  source = table(folder, 'image,age,primary_label\n1.jpg,3,Cat\n2.jpg,4,cat\n')
  assert source.notes == (
    f'{folder}/labels.csv has the classes Cat and cat, which differ in case only',
  )
  assert table(folder, 'id,label,,\n1,a,,\n2,b,,\n,,,\n').size == 2
  refused(folder, 'image,age,weight\n1.jpg,3,x\n2.jpg,5,y\n', r'no column called label.*\?label=')
  refused(
    folder, 'a,label\nx,1\ny,0\n', r'no column of image files.*\?image=.*\?columns=image,label'
  )
  refused(
    folder, 'image,label,label\n1.jpg,a,b\n', 'two columns called .label', query='?label=label'
  )


def test_numbers_are_classes_in_the_order_of_their_values(folder):
  source = table(folder, 'id,label\n1,10\n2,9\n3,10\n4,9.0\n')
  assert source.class_names == ('9', '10')
  assert read_labels(source) == [1, 0, 1, 0]
  refused(folder, 'id,score\n1,0.25\n2,0.5\n', 'numbers such as 0.25, not classes')
  assert table(folder, 'id,label\n1,1\n2,-1\n').class_names == ('-1', '1')
  refused(folder, 'id,label\n1,0\n2,1\n3,-1\n', "1 row of 3 with no label, such as '3'")


def test_many_numbers_may_be_amounts(tmp_path):
  write_images(tmp_path, {f'{i}.png': (2, 2) for i in range(60)})
  ages = '\n'.join(['id,label', *(f'{i},{i // 2 + i // 40}' for i in range(60))])
  assert 'are 30 numbers from 0 to 30; each is a class' in table(tmp_path, ages).notes[0]
  numbers = '\n'.join(['id,label', *(f'{i},{i // 2}' for i in range(60))])
  assert not table(tmp_path, numbers).notes


def test_several_labels_in_a_cell(folder):
  source = table(folder, 'id,labels\n1,cat|dog\n2,dog\n3,\n')
  assert contents(source) == {'1.jpg': ['cat', 'dog'], '2.jpg': ['dog'], '3.jpg': []}
  assert source.multi_label and source.class_names == ('cat', 'dog')
  np.testing.assert_array_equal(source.read(0)[1], np.array([1, 1], np.uint8), strict=True)
  assert "separated at each '|'" in source.notes[0]
  text = 'id,tags\n1,haze primary\n2,haze\n3,primary\n'
  source = table(folder, text)
  assert not source.multi_label and '?sep=%20' in source.notes[0]
  for query in ('?sep=%20', '?sep= '):
    assert contents(table(folder, text, query=query))['1.jpg'] == ['haze', 'primary']
  source = table(folder, 'id;labels\n1;16,0\n2;0\n', query='?sep=,&label=labels')
  assert source.class_names == ('0', '16')
  assert table(folder, 'id,l\n1,a+b\n2,b&c\n', query='?sep=+').class_names == ('a', 'b', 'b&c')
  assert table(folder, 'id,l\n1,a+b\n2,b&c\n', query='?sep=%26').class_names == ('a+b', 'b', 'c')


def test_one_column_per_class(folder):
  source = table(folder, 'id,cat,dog,owl\n1,1,0,1\n2,0,1.0,0\n3,0,0,0\n')
  assert source.class_names == ('cat', 'dog', 'owl')
  assert contents(source) == {'1.jpg': ['cat', 'owl'], '2.jpg': ['dog'], '3.jpg': []}
  source = table(folder, 'id,cat,dog\n1,1,-1\n2,1,1\n')
  assert contents(source) == {'1.jpg': ['cat'], '2.jpg': ['cat', 'dog']}
  source = table(folder, 'id,cat,dog\n1,1,0\n2,0,1\n')
  assert contents(source) == {'1.jpg': 'cat', '2.jpg': 'dog'}
  assert 'one class per image' in source.notes[0]
  text = 'id,cat,dog\n1,1,-1\n2,0,1\n'
  refused(folder, text, "'-1' in its columns of classes .cat, dog.; 0 or 1")


def test_blank_and_uncertain_cells_of_classes(folder):
  text = 'id,sex,cat,dog,owl\n1,m,1.0,,0.0\n2,f,,,\n3,m,nan,1.0,1.0\n'
  expected = {'1.jpg': ['cat'], '2.jpg': [], '3.jpg': ['dog', 'owl']}
  source = table(folder, text, query='?label=cat,dog,owl')
  assert contents(source) == expected
  assert 'blank cells in the columns of classes' in source.notes[0]
  text += '4,f,-1.0,1.0,\n'
  match = r"has '-1.0' .*\(cat, dog, owl\); 0 or 1 is needed: .*\?incomplete=skip\.$"
  refused(folder, text, match, query='?label=cat,dog,owl')
  source = table(folder, text, query='?label=cat,dog,owl&incomplete=skip')
  assert contents(source) == expected
  refused(folder, text, r"has 'm' .*; 0 or 1 is needed\.$", query='?label=sex,cat')
  refused(folder, text, r"has 'm' .*; 0 or 1", query='?label=sex,cat&incomplete=skip')


def test_a_column_of_splits(folder):
  text = 'id,label,Split\n1,a,TRAIN\n2,b,Training\n3,a,valid\n4,c,Test\n'
  files = {}
  for split in ('train', 'val', 'test', 'all'):
    source = table(folder, text, split=split)
    assert source.class_names == ('a', 'b', 'c')
    files[split] = sorted(contents(source))
  assert files == {
    'train': ['1.jpg', '2.jpg'], 'val': ['3.jpg'], 'test': ['4.jpg'], 'all': sorted(ANIMALS)
  }  # fmt: skip
  assert split_names(f'table:{folder}/labels.csv') == ('train', 'val', 'test')
  text = text.replace('valid', 'odd')
  refused(folder, text, "has 'odd' in its column of splits, 'Split'; train, val or test")
  source = table(folder, 'id,label,fold\n1,a,0\n2,b,1\n')
  assert 'column fold .* is not used: its values, such as 0' in source.notes[0] or source.notes
  refused(folder, 'id,label,fold\n1,a,0\n2,b,1\n', "has '0' in its column", query='?split=fold')
  text = 'id,label,Split\n1,a,train\n2,b,train\n1,a,test\n'
  refused(folder, text, '1.jpg in two splits, train and test')


@pytest.mark.parametrize('split', ['', ',train'])
def test_a_part_is_held_out_by_the_names_in_the_table(split, tmp_path):
  names = [f'{i:03}' for i in range(100)]
  write_images(tmp_path, {f'train/{name}.png': (4, 4) for name in names})
  header = 'id,label' + (',split' if split else '')
  text = '\n'.join([header, *(f'{name},{int(name) % 2}{split}' for name in names)])
  train, test, val = (table(tmp_path, text, split=name) for name in ('train', 'test', 'val'))
  held_out = {f'{name}.png' for name in names if is_held_out(name)}  # none had to be moved
  assert set(contents(test)) == set(contents(val)) == held_out
  assert set(contents(train)) == {f'{name}.png' for name in names} - held_out
  assert split_names(f'table:{tmp_path}/labels.csv') == ('train', 'test')
  with pytest.raises(UserError, match='splits train, test and all'):
    table(tmp_path, text, split='extra')


def test_each_class_is_on_both_sides(tmp_path):
  names = [f'{i:03}' for i in range(60)]
  write_images(tmp_path, {f'{name}.png': (2, 2) for name in names})
  text = '\n'.join(['id,label', *(f'{name},{int(name) // 2}' for name in names), './000,0'])
  for split in ('train', 'test'):
    assert set(read_labels(table(tmp_path, text, split=split))) == set(range(30))


def test_one_class_an_image_of_few(folder):
  refused(folder, 'id,label\n1,a\n2,b\n', 'too few images: none is in', split='test')


@pytest.mark.parametrize('query', ['?group=patient', r'?group=^(\d)', r'?group=PATIENT&fold=1/3'])
def test_images_of_one_group_are_on_one_side(query, tmp_path):
  names = [f'{i:03}' for i in range(600)]
  write_images(tmp_path, {f'{name}.png': (2, 2) for name in names})
  rows = (f'{name},{int(name) % 3},{name[0]}' for name in names)
  text = '\n'.join(['id,label,patient', *rows])
  files = {s: set(contents(table(tmp_path, text, query=query, split=s))) for s in ('train', 'test')}
  patients = {split: {name[0] for name in names} for split, names in files.items()}
  assert patients['train'] | patients['test'] == set('012345')
  assert not patients['train'] & patients['test']
  assert table(tmp_path, text).notes == (
    'images of one patient may be on both sides of what is held out; ?group=patient prevents it',
  )


def test_folds_test_each_image_once(tmp_path):
  names = [f'{i:03}' for i in range(40)]
  write_images(tmp_path, {f'{name}.png': (2, 2) for name in names})
  text = '\n'.join(['id,label', *(f'{name},{int(name) % 4}' for name in names)])
  folds = [
    set(contents(table(tmp_path, text, 'a.csv', f'?fold={k}/4', 'test'))) for k in (1, 2, 3, 4)
  ]
  assert set.union(*folds) == {f'{name}.png' for name in names} and sum(map(len, folds)) == 40


def test_bad_groups_and_folds(folder):
  text = 'id,label,who\n1,a,x\n2,b,x\n3,a,x\n'
  refused(folder, text, "no column 'patient' for .group", query='?group=patient')
  refused(
    folder, text, "one value in its column 'who'; nothing can be held out", query='?group=who'
  )
  refused(folder, text, 'does not match 1; every image needs a group', query='?group=(p)')
  refused(folder, text, 'is not a fold', query='?fold=3/2')
  text = 'id,label,who,split\n1,a,x,train\n2,b,x,test\n3,a,,train\n'
  refused(folder, text, 'in split, so nothing is held out; leave out group=', query='?group=who')
  refused(folder, text, 'leave out fold=', query='?fold=1/5')


def test_a_file_that_changes_its_size_is_other_data(folder):
  source = table(folder, lines('image,label'))
  before = hash_files(source.files())
  (folder / '1.jpg').write_bytes(b'x')
  assert hash_files(source.files()) != before
  assert open_source(f'table:{folder}/labels.csv', 'all').fingerprint == source.fingerprint


def test_the_folders_of_images_may_be_splits(tmp_path):
  names = [f'{split}/{i}.png' for split in ('train', 'test') for i in range(4)]
  write_images(tmp_path, dict.fromkeys(names, (2, 2)))
  text = '\n'.join(['file_name,label', *(f'{name},{i % 2}' for i, name in enumerate(names))])
  assert table(tmp_path, text, split='test').location(0) == f'{tmp_path}/test/0.png'
  source = table(tmp_path, text, split='train')
  assert source.size == 4 and 'the folders of its images' in source.notes[0]
  refused(tmp_path, text, 'in their folders, so nothing is held out', query='?fold=1/5')
  text = text.replace('test/', '../x/test/')
  refused(tmp_path, text, 'outside')


def test_a_table_without_a_header(folder):
  text = '# a list\n1.jpg cat 3\n2.jpg  dog 4\n'
  source = table(folder, text, 'list.txt', '?columns=image,label')
  assert contents(source) == {'1.jpg': 'cat', '2.jpg': 'dog'}
  refused(folder, text, r'no header, .*1.jpg,cat,3.; .* \?columns=image,label\.', name='list.txt')
  text = '5,cat,1.jpg\n6,dog,2.jpg\n'
  refused(folder, text, r'name its columns as \?columns=,label,image\.')
  assert table(folder, text, query='?columns=,label,image').class_names == ('cat', 'dog')
  refused(folder, text, '3 cells in its first line, too few', query='?columns=a,b,c,d')
  refused(folder, '{"a": 1}', 'has names for its columns', name='a.jsonl', query='?columns=a')
  refused(folder, '1.jpg\n2.jpg\n', 'lists images without labels; .* use folder:/path instead')
  refused(folder, '1 1 2\n2 1 3\n', r"two columns called '1'; .*\?columns=", name='list.txt')


@pytest.mark.parametrize('begin', ['C:\\Users\\me\\data\\', '/kaggle/input/pets/', 'data/x/'])
def test_names_may_begin_with_folders_of_another_machine(begin, folder):
  rows = {begin + name: label for name, label in ANIMALS.items()}
  source = table(folder, lines('image,label', rows=rows))
  assert contents(source) == ANIMALS
  assert source.notes[0].endswith(
    f'begin with {begin}, which is taken to be {folder}'.replace('\\', '/')
  )
  rows = {begin + name: label for name, label in {**ANIMALS, '9.jpg': 'cat'}.items()}
  refused(folder, lines('image,label', rows=rows), "1 row of 5 with no image file .* '.*9.jpg'")


def test_names_are_found_in_any_case_if_one_fits(folder):
  write_images(folder, {'IMG_1.JPG': (2, 2), 'Img_2.Png': (2, 2)})
  expected = {'IMG_1.JPG': 'a', 'Img_2.Png': 'b'}
  assert contents(table(folder, 'id,label\nimg_1.jpg,a\nIMG_2,b\n')) == expected
  write_images(folder, {'Photos/Raw/IMG_3.JPG': (2, 2), 'Photos/Raw/4.jpg': (2, 2)})
  source = table(folder, 'id,label\nphotos\\raw\\img_3.jpg,a\nPHOTOS/raw/4,b\n')
  assert contents(source) == {'IMG_3.JPG': 'a', '4.jpg': 'b'}
  write_images(folder, {'img_1.JPG': (2, 2)})
  refused(folder, 'id,label\nimg_1.jpg,a\n2,b\n', 'has both IMG_1.JPG and img_1.JPG .*lower case')


@pytest.mark.parametrize(
  ('name', 'file'),
  [
    ('1', 'a/b/c/x/1.jpg'),
    ('x/1.jpg', 'a/b/c/x/1.jpg'),
    ('1', '../photos/1.jpg'),
    ('x/1.jpg', '../photos/x/1.jpg'),
  ],
)
def test_missing_images_are_looked_for(name, file, tmp_path):
  (tmp_path / 'set').mkdir()
  write_images(tmp_path / 'set', {file: (2, 2), file.replace('1', '2'): (2, 2)})
  text = f'id,label\n{name},a\n{name.replace("1", "2")},b\n'
  with pytest.raises(UserError, match=r'missing in .*; name their folder as \?root=[^…]*\.') as no:
    table(tmp_path / 'set', text)
  root = str(no.value).split('?root=')[1].rstrip('.')
  assert table(tmp_path / 'set', text, query=f'?root={root}').size == 2


@pytest.mark.parametrize('file', ['../one/cat/{}.png', '../one/{}.png', 'a/b/c/{}.png'])
def test_images_of_another_data_set_are_not_advised(file, tmp_path):
  (tmp_path / 'set').mkdir()
  count = 6 if 'cat' in file else 3  # of six
  write_images(tmp_path / 'set', {file.format(i): (2, 2) for i in range(count)})
  text = '\n'.join(['id,label', *(f'{i},{i % 2}' for i in range(6))])
  refused(tmp_path / 'set', text, r"6 of 6 images .* '0', are missing .* as \?root=…, or")


@pytest.mark.parametrize('suffix', ['', '.png'])
def test_names_that_lost_their_leading_zeros(suffix, tmp_path):
  write_images(tmp_path, {f'imgs/{i:03}.png': (2, 2) for i in range(98, 102)})
  text = '\n'.join(['id,label', *(f'{i}{suffix},{i % 2}' for i in range(98, 102))])
  source = table(tmp_path, text)
  assert contents(source) == {'098.png': '0', '099.png': '1', '100.png': '0', '101.png': '1'}
  assert f'without leading zeros, such as 98{suffix}, are taken to be of files' in source.notes[0]
  refused(tmp_path, text.replace('99', '097'), "2 rows of 4 with no image file .* such as '98")
  write_images(tmp_path, {f'imgs/{i:04}.png': (2, 2) for i in range(98, 102)})
  refused(tmp_path, text, "no image file .* such as '98")


def test_masks_are_no_images_of_a_table(tmp_path):
  write_images(tmp_path, {f'{d}/{i}.png': (2, 2) for d in ('images', 'masks') for i in (1, 2)})
  assert table(tmp_path, 'id,label\n1,a\n2,b\n').location(0) == f'{tmp_path}/images/1.png'


def test_labels_as_programs_export_them(folder):
  source = table(folder, "id,tags\n1,\"['cat', 'dog']\"\n2,['dog']\n3,[]\n")
  assert contents(source) == {'1.jpg': ['cat', 'dog'], '2.jpg': ['dog'], '3.jpg': []}
  source = table(folder, 'Filename,Label,ClassName\n1.jpg,0,cat\n2.jpg,1,dog\n3.jpg,0,cat\n')
  assert source.class_names == ('cat', 'dog') and 'ClassName, not Label' in source.notes[0]
  assert table(folder, 'sep=;\r\nid;label\r\n1;a\r\n2;b\r\n').class_names == ('a', 'b')
  source = table(folder, 'id,x,y,Finding Labels\n1,3,4,cat\n2,3,5,dog\n')
  assert source.class_names == ('cat', 'dog') and not source.notes
  refused(folder, 'id,Label\n1,"{""a"":1}"\n2,"{""a"":2}"\n', 'are objects such as .*; export it')
  refused(folder, 'emotion,pixels\n1,70 80\n', 'has the pixels of images, not their files; save')
  text = '{"data_row": {"external_id": "1.jpg"}, "label": "a"}\n'
  refused(
    folder,
    text,
    'row 1 has an object .*; export it as CSV',
    name='a.jsonl',
    query='?image=data_row',
  )


@pytest.mark.parametrize(
  'file, name',
  [
    ('1.jpg', '1.jpg'),
    ('1.PNG', '1'),
    ('a/1.jpg', 'a/1.jpg'),
    ('a/1.jpg', r'a\1.jpg'),
    ('a/1.jpg', './a//1'),
    ('train/1.jpg', '1'),
    ('train/1.jpg', '1.jpg'),
    ('train_images/a/1.jpg', 'a/1.jpg'),
    ('images/train/1.jpg', '1'),
    ('1.2.840.1.jpg', '1.2.840.1'),
    ('große Bilder/schön 猫.jpg', 'schön 猫'),
  ],
)
def test_names_find_their_files(file, name, tmp_path):
  write_images(tmp_path, {file: (4, 4), 'train/2.jpg': (4, 4), 'test/9.jpg': (4, 4)})
  source = table(tmp_path, f'image,label\n{name},a\n2.jpg,b\n')
  assert source.location(0) == f'{tmp_path}/{file}'
  assert source.size == 2


def test_absolute_paths_below_the_root_and_others(folder):
  (folder / 'lists').mkdir()
  text = lines('image,label', rows={f'{folder}/{name}': label for name, label in ANIMALS.items()})
  assert contents(table(folder, text)) == ANIMALS
  assert contents(table(folder, text, 'lists/a.csv', '?root=..')) == ANIMALS
  assert contents(table(folder, text, 'lists/a.csv', f'?root={folder}')) == ANIMALS
  refused(folder, text, rf'outside {folder}/lists; .*\?root={folder}\.', name='lists/a.csv')


@pytest.mark.parametrize('name', ['../1.jpg', '../../etc/passwd', 'a/../../1.jpg', r'..\1.jpg'])
def test_a_name_cannot_leave_the_root(name, folder):
  write_images(folder, {'x/a/9.jpg': (4, 4)})
  refused(folder, f'image,label\n9.jpg,a\n{name},b\n', r'outside .*/x;', name='x/labels.csv')


def test_test_images_are_no_training_images(tmp_path):
  write_images(tmp_path, {f'{split}/{i}.png': (4, 4) for split in ('train', 'test') for i in '12'})
  text = 'id,label\n1,a\n2,b\n'
  source = table(tmp_path, text, 'train.csv')
  assert {source.location(i) for i in (0, 1)} == {f'{tmp_path}/train/{i}.png' for i in '12'}
  assert table(tmp_path, text, 'trainLabels.csv').location(0) == f'{tmp_path}/train/1.png'
  refused(tmp_path, text, r"'1' in .* fits both test/1.png and train/1.png .*\?root=test")
  (tmp_path / 'train' / '2.png').unlink()
  refused(tmp_path, text, "1 row of 2 with no image file .* such as '2'", name='train.csv')
  write_images(tmp_path, {'train/2.jpg': (4, 4), 'train/2.png': (4, 4)})
  refused(tmp_path, text, 'both 2.jpg and 2.png', name='train.csv')


def test_rows_without_images_or_labels(folder):
  text = lines('image,label') + '5.jpg,cat\n6.jpg,cat\n'
  refused(
    folder,
    text,
    r"labels.csv has 2 rows of 6 with no image file in .*, such as '5.jpg'; leave out such rows "
    r'with \?incomplete=skip\.',
  )
  source = table(folder, text, query='?incomplete=skip')
  assert contents(source) == ANIMALS and '2 rows of 6' in source.notes[0]
  text = 'image,label\n1.jpg,a\n2.jpg,b\n3.jpg,\n4.jpg,nan\n'
  refused(folder, text, "2 rows of 4 with no label, such as '3.jpg'; leave out")
  assert contents(table(folder, text, query='?incomplete=skip')) == {'1.jpg': 'a', '2.jpg': 'b'}
  text = 'image,label\nx.jpg,a\ny.jpg,b\n'
  refused(folder, text, r"2 of 2 images .*, such as 'x.jpg', are missing in .*\?root=.*\?image=")


def test_repeated_rows(folder):
  source = table(folder, lines('image,label') + '1.jpg,cat\n./1.jpg,cat\n')
  assert contents(source) == ANIMALS and source.size == 4
  assert 'repeats 2 rows of the same image and label, such as 1.jpg' in source.notes[0]
  text = lines('image,label') + '1.jpg,dog\n'
  refused(folder, text, 'two rows for 1.jpg with different labels, cat and dog; keep one')


@pytest.mark.parametrize(
  'text, match',
  [
    (
      lines('1.jpg,cat'),
      r"has no header, its first line is '1.jpg,cat'; .* \?columns=image,label\.",
    ),
    ('', 'is empty; it needs a header such as image,label'),
    ('image,label\n', 'has a header but no rows'),
    ('image,label\n1.jpg\n', 'line 2 has 1 cell, but the first line has 2'),
    ('image,label\n1.jpg,a,b\n', 'line 2 has 3 cells, but the first line has 2'),
    ('image,label\n1.jpg,"a\n', 'line 3 is not valid CSV|line 2 is not valid CSV'),
    ('image,label\n1.jpg,Ä'.encode('latin1'), 'is not UTF-8 text; save it'),
    ('image,label\n1.jpg,a\n'.encode('utf-16'), 'is not UTF-8 text; save it'),
    ('id,label\n1,0\n2,0\n', "only '0' in 'label'.*template of a submission"),
    ('id\n1\n2\n', 'has images but no labels .columns: id.*template of a submission'),
    ('id,a,b,c\n1,.33,.33,.33\n2,.33,.33,.33\n', 'template of a submission'),
    ('id,a,b\n1,0,0\n2,0,0\n', 'template of a submission'),
    ('image,label\n1.jpg,"a\nb"\n2.jpg,c\n', 'unprintable characters'),
    (f'image,label\n1.jpg,{"a" * 200_000}\n', 'line 2 is not valid CSV'),
  ],
  ids=str,
)
def test_tables_without_examples(text, match, folder):
  refused(folder, text, match)


def test_labels_that_are_different_in_every_row(tmp_path):
  write_images(tmp_path, {f'{i}.png': (2, 2) for i in range(30)})
  text = '\n'.join(['file,caption', *(f'{i}.png,text {max(i, 3)}' for i in range(30))])
  refused(tmp_path, text, r"27 classes in 30 rows of its column 'caption'; name .*\?label=")


@pytest.mark.parametrize('name, match', [('a.xlsx', 'export it as CSV'), ('a.json', 'not a table')])
def test_other_files(name, match, folder):
  refused(folder, '{}', match, name=name)
  refused(folder, '[1]\n', 'line 1 is not a JSON object', name='a.jsonl')
  refused(folder, '[' * 100_000, 'line 1 is not a JSON object', name='a.jsonl')
  with pytest.raises(MissingDataError, match='There is no table .*no.csv'):
    open_source(f'table:{folder}/no.csv', 'train')
  (folder / 'b.csv').mkdir()
  with pytest.raises(UserError, match='not a table'):
    open_source(f'table:{folder}/b.csv', 'train')


def test_pipes_are_not_read(folder):
  os.mkfifo(folder / 'pipe.csv')
  with pytest.raises(UserError, match='pipe.csv cannot be read'):
    open_source(f'table:{folder}/pipe.csv', 'train')
  (folder / '2.jpg').unlink()
  os.mkfifo(folder / '2.jpg')
  source = table(folder, lines('image,label'))
  with pytest.raises(BadExampleError, match='2.jpg cannot be read'):
    source.read(1)
  (folder / '1.jpg').unlink()
  with pytest.raises(BadExampleError, match='1.jpg cannot be read: No such file'):
    source.read(0)


def test_the_fingerprint_follows_files_labels_and_splits(folder):
  fingerprints = [
    table(folder, text, split='train').fingerprint
    for text in (
      'id,label,split\n1,a,train\n2,b,train\n3,a,test\n',
      'id,label,split\n1,a,train\n3,b,train\n2,a,test\n',
      'id,label,split\n1,b,train\n2,a,train\n3,b,test\n',
      'id,label,split\n1,a,train\n2,b,test\n3,a,train\n',
    )
  ]
  assert len(set(fingerprints)) == 4


def test_a_table_is_read_again_when_its_folder_changes(folder):
  text = lines('image,label')
  source = table(folder, text)
  again = open_source(f'table:{folder}/labels.csv', 'all')
  assert again.fingerprint == source.fingerprint
  (folder / '1.jpg').unlink()
  with pytest.raises(UserError, match='1 row of 4 with no image file'):
    open_source(f'table:{folder}/labels.csv', 'all')


def test_a_path_may_have_spaces_and_question_marks(tmp_path):
  root = tmp_path / 'my images?x=1'
  write_images(root, {'1.jpg': (2, 2), '2.jpg': (2, 2)})
  assert table(root, 'id,label\n1,a\n2,b\n').size == 2


def test_a_large_table_is_small_in_memory(tmp_path):
  count = 20_000
  (tmp_path / 'train').mkdir()
  for i in range(count):
    open(tmp_path / 'train' / f'{i:012}.jpg', 'w').close()
  rows = (f'{i:012},class {i % 50}' for i in range(count))
  (tmp_path / 'train.csv').write_text('\n'.join(['id,label', *rows]))
  tracemalloc.start()
  source = open_source(f'table:{tmp_path}/train.csv', 'train')
  size, _ = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert source.size < count
  assert size < 100 * count


def test_images_are_decoded(folder):
  source = table(folder, lines('image,label'))
  with Image.open(source.location(0)) as image:
    assert image.size == (8, 6)
