"""npz and safetensors files: valid ones, and every way in which headers and sizes can be wrong."""

import ast
import io
import json
import resource
import struct
import time
import zipfile
import zlib

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.resnet import BiTResNet
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights import adapt
from vit_jax.weights.formats import lazy_tensor as tensors_lib
from vit_jax.weights.formats.tensor_file import read_tensors
from vit_jax.weights.layouts import released

X = np.arange(24, dtype=np.float32).reshape(6, 4)
MODEL = VisionTransformer(4, 16, 2, 24, 2, num_classes=3, pool='token')


def arrays(path):
  return {name: tensor.read() for name, tensor in read_tensors(path).tensors.items()}


def refused(path, message):
  """Reading all of the file ends in one sentence, without asking for much memory."""
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(UserError, match=message) as caught:
    arrays(path)
  assert len(str(caught.value).splitlines()) == 1
  assert path.name in str(caught.value)
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


# --- npz ------------------------------------------------------------------------------------


def npy(header, data, version=(1, 0)):
  """An npy file with any text for a header."""
  text = header.encode() + b'\n'
  length = struct.pack('<H' if version == (1, 0) else '<I', len(text))
  return b'\x93NUMPY' + bytes(version) + length + text + data


def header(shape='(6, 4)', descr="'<f4'", fortran='False'):
  return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


def write_zip(path, entries, method=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, 'w', method) as archive:
    for name, data in entries:
      archive.writestr(name, data)


def good_npz():
  return npy(header(), X.tobytes())


HEADERS = {
  'negative': (header('(-6, -4)'), 'does not match its data'),
  'one negative': (header('(-1, -24)'), 'does not match its data'),
  'huge': (header(f'({2**62}, {2**62})'), 'does not match its data'),
  'huge and empty': (header(f'(0, {10**30})'), 'does not match its data'),
  'too small': (header('(6, 3)'), 'does not match its data'),
  'bool': (header('(6, 4, True)'), 'does not match its data'),
  'too many dimensions': (header('(6, 4' + ', 1' * 70 + ')'), 'does not match its data'),
  'float dimensions': (header('(6.0, 4)'), 'damaged'),
  'a list': (header('[6, 4]'), 'damaged'),
  'objects': (header(descr="'|O'"), 'pickled'),
  'objects in a structure': (header(descr="[('a', '|O')]"), 'pickled'),
  'unknown dtype': (header(descr="'zzz'"), 'damaged'),
  'an empty type': (header(descr='()'), 'damaged'),
  'a list for a key': ('{[]: 1}', 'damaged'),
  'code': ("__import__('os').abort()", 'damaged'),
  'open bracket': (header('(6, 4'), 'damaged'),
  'deep brackets': ('(' * 5000, 'damaged'),
  'nothing': ('', 'damaged'),
  'a key more': (header()[:-1] + "'more': 1}", 'damaged'),
}


@pytest.mark.parametrize('case', HEADERS)
@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_wrong_headers_of_arrays_are_refused(case, method, tmp_path):
  text, message = HEADERS[case]
  write_zip(tmp_path / 'x.npz', [('a.npy', npy(text, X.tobytes()))], method)
  refused(tmp_path / 'x.npz', message)


@pytest.mark.parametrize('descr', ["[('a', '<f2'), ('b', '<f2')]", "('<f2', (2,))", "'<c8'"])
def test_arrays_that_are_not_floats_are_refused(descr, tmp_path):
  data = npy(header(descr=descr), bytes(24 * (8 if 'c8' in descr else 4)))
  write_zip(tmp_path / 'x.npz', [('a.npy', data)])
  tensors = read_tensors(tmp_path / 'x.npz').tensors
  with pytest.raises(UserError, match='which is not a float'):
    adapt._check_same_shapes(tensors, tensors, 'x.npz')


def patch_directory(data, offset, value, entry=0):
  """`data` with other bytes in an entry of the zip's directory."""
  start = -1
  for _ in range(entry + 1):
    start = data.index(b'PK\x01\x02', start + 1)
  return data[: start + offset] + value + data[start + offset + len(value) :]


def zip_of(*entries, method=zipfile.ZIP_STORED):
  file = io.BytesIO()
  write_zip(file, entries, method)
  return file.getvalue()


TWO = zip_of(('a.npy', good_npz()), ('b.npy', good_npz()))


def nested():
  """The second entry lies within the data of the first."""
  inner = zip_of(('b.npy', good_npz()))
  inner = inner[: inner.index(b'PK\x01\x02')]
  outer = zip_of(('a.npy', inner), ('b.npy', good_npz()))
  return patch_directory(outer, 42, struct.pack('<I', 35), entry=1)


def swallowed():
  """The second entry is hidden in the comment of the first, so the directory lists one entry."""
  return patch_directory(TWO, 32, struct.pack('<H', 46 + 5))


ZIPS = {
  'the same name': (lambda: TWO.replace(b'b.npy', b'a.npy'), 'same name'),
  'the same array': (lambda: zip_of(('a.npy', good_npz()), ('a', good_npz())), 'same name'),
  'at the same place': (
    lambda: patch_directory(TWO, 42, struct.pack('<I', 0), entry=1),
    'overlaps',
  ),
  'one within another': (nested, 'overlaps'),
  'a lost entry': (swallowed, 'do not end where its directory starts'),
  'a wrong size': (
    lambda: patch_directory(TWO, 24, struct.pack('<I', 100)),
    'compressed and the uncompressed size of a.npy differ',
  ),
  'two wrong sizes': (
    lambda: patch_directory(TWO, 20, struct.pack('<II', 100, 100)),
    'overlaps|leaves a gap',
  ),
  'behind the end': (
    lambda: patch_directory(TWO, 20, struct.pack('<II', 99_999, 99_999), 1),
    'do not end',
  ),
  'a place behind the end': (
    lambda: patch_directory(TWO, 42, struct.pack('<I', 99_999), 1),
    'leaves a gap',
  ),
  'a declared bomb': (
    lambda: patch_directory(
      zip_of(('a.npy', good_npz()), method=zipfile.ZIP_DEFLATED), 24, struct.pack('<I', 2**31)
    ),
    'zip bomb',
  ),
  'a wrong compressed size': (
    lambda: patch_directory(
      zip_of(('a.npy', good_npz()), method=zipfile.ZIP_DEFLATED),
      24,
      struct.pack('<I', len(good_npz()) - 4),
    ),
    'damaged',
  ),
  'another name in the entry': (lambda: TWO.replace(b'a.npy', b'c.npy', 1), 'damaged'),
  'a line feed in a name': (lambda: zip_of(('a\nb.npy', good_npz())), 'invalid name'),
  'a long name': (lambda: zip_of(('a' * 9999, good_npz())), 'invalid name'),
  'text before': (lambda: b'PK\x03\x04' + bytes(99) + TWO, 'leaves a gap'),
  'more behind an array': (lambda: zip_of(('a.npy', good_npz() + b'0')), 'does not match its data'),
  'no array': (lambda: zip_of(('a.npy', b'hello, world')), 'damaged'),
  'an unknown version': (
    lambda: zip_of(('a.npy', npy(header(), X.tobytes(), (9, 0)))),
    'unknown version',
  ),
}


@pytest.mark.parametrize('case', ZIPS)
def test_inconsistent_zips_are_refused(case, tmp_path):
  make, message = ZIPS[case]
  (tmp_path / 'x.npz').write_bytes(make())
  refused(tmp_path / 'x.npz', message)


def test_a_gigabyte_of_zeros_is_never_inflated(tmp_path):
  zeros, compressor = bytes(2**20), zlib.compressobj(1, zlib.DEFLATED, -15)
  packed = b''.join(compressor.compress(zeros) for _ in range(1024)) + compressor.flush()
  small = npy(header(), X.tobytes())
  data = zip_of(('a.npy', small), method=zipfile.ZIP_DEFLATED)
  begin, end = 35, data.index(b'PK\x01\x02')
  directory = end - begin
  for declared in (2**30, len(small)):
    bomb = patch_directory(data, 20, struct.pack('<II', len(packed), declared))
    bomb = bomb[:begin] + packed + bomb[end:]
    bomb = bomb[:-6] + struct.pack('<I', end - directory + len(packed)) + bomb[-2:]
    (tmp_path / 'x.npz').write_bytes(bomb)
    refused(tmp_path / 'x.npz', 'zip bomb' if declared == 2**30 else 'damaged')


def test_too_many_entries(tmp_path, monkeypatch):
  monkeypatch.setattr(tensors_lib, 'MAX_TENSORS', 1)
  (tmp_path / 'x.npz').write_bytes(TWO)
  refused(tmp_path / 'x.npz', '2 tensors; at most 1 are supported')


def test_a_hundred_thousand_tensors_are_refused(tmp_path):
  entry = {'dtype': 'F32', 'shape': [0], 'data_offsets': [0, 0]}
  write_safetensors(tmp_path / 'x.safetensors', {str(i): entry for i in range(100_001)}, b'')
  refused(tmp_path / 'x.safetensors', '100,001 tensors')


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_npz_files_of_all_float_types_are_read(save, tmp_path):
  arrays = {
    'float32': X,
    'columns first': np.asfortranarray(X),
    'big endian': X.astype('>f4'),
    'float64': X.astype(float),
    'float16': X.astype(np.float16),
    'bfloat16': X.astype(ml_dtypes.bfloat16),  # is V2 in the file
    'scalar': np.float32(3),
    'empty': np.zeros((0, 3), np.float32),
  }
  save(tmp_path / 'x.npz', **arrays)
  tensors = read_tensors(tmp_path / 'x.npz').tensors
  assert tensors.keys() == arrays.keys()
  for name, x in arrays.items():
    array = tensors[name].read()
    assert (
      (array.shape, array.dtype) == (x.shape, x.dtype) == (tensors[name].shape, tensors[name].dtype)
    )
    np.testing.assert_array_equal(array.astype(np.float32), x.astype(np.float32))


def test_a_streamed_npz_is_read(tmp_path):
  """Its entries end in data descriptors."""

  class Pipe(io.BytesIO):
    def seekable(self):
      return False

    def seek(self, *unused):
      raise OSError('a pipe')

    def tell(self):
      raise OSError('a pipe')

  pipe = Pipe()
  np.savez(pipe, a=X, b=X)
  (tmp_path / 'x.npz').write_bytes(pipe.getvalue())
  np.testing.assert_array_equal(arrays(tmp_path / 'x.npz')['b'], X)


@pytest.mark.parametrize('kind', ['stored', 'compressed', 'columns first', 'safetensors'])
def test_rows_of_a_tensor(kind, tmp_path):
  path = tmp_path / ('x.safetensors' if kind == 'safetensors' else 'x')
  if kind == 'safetensors':
    safetensors.numpy.save_file({'a': X}, path)
  else:
    with path.open('wb') as file:
      save = np.savez_compressed if kind == 'compressed' else np.savez
      save(file, a=np.asfortranarray(X) if kind == 'columns first' else X)
  tensor = read_tensors(path).tensors['a']
  for start, stop in ((0, 6), (2, 3), (5, 6), (3, 3)):
    rows = tensor.rows(start, stop)
    assert rows.shape == (stop - start, 4)
    np.testing.assert_array_equal(rows.read(), X[start:stop])
  inner = tensor.rows(1, 5).rows(2, 3).map((4,), lambda x: 2 * x[0])
  np.testing.assert_array_equal(inner.read(), 2 * X[3])


def test_no_header_is_parsed_by_the_threads_that_read(tmp_path, monkeypatch):
  """Python 3.11 may fail in that with a SystemError."""
  np.savez_compressed(tmp_path / 'x.npz', a=X, b=np.asfortranarray(X))
  tensors = read_tensors(tmp_path / 'x.npz').tensors
  monkeypatch.setattr(ast, 'literal_eval', None)
  for tensor in tensors.values():
    np.testing.assert_array_equal(tensor.read(), X)


def test_a_compressed_stack_is_inflated_once(tmp_path, monkeypatch):
  np.savez_compressed(tmp_path / 'x.npz', a=X)
  tensor = read_tensors(tmp_path / 'x.npz').tensors['a']
  opened, open_entry = [], zipfile.ZipFile.open

  def count(archive, entry):
    opened.append(entry)
    return open_entry(archive, entry)

  monkeypatch.setattr(zipfile.ZipFile, 'open', count)
  for i in range(6):
    np.testing.assert_array_equal(tensor.rows(i, i + 1).read(), X[i : i + 1])
  assert len(opened) == 1


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_the_crc_is_checked_when_only_rows_are_read(save, tmp_path):
  path = tmp_path / 'x.npz'
  save(path, a=np.random.default_rng(0).normal(size=(1000, 9)))
  data = bytearray(path.read_bytes())
  data[data.index(b'PK\x01\x02') + 16] ^= 1  # the CRC
  path.write_bytes(data)
  tensor = read_tensors(path).tensors['a']
  for tensor_or_rows in (tensor, tensor.rows(0, 1)):
    with pytest.raises(UserError, match='CRC'):
      tensor_or_rows.read()


# --- safetensors ----------------------------------------------------------------------------


def write_safetensors(path, header, data, padding=0):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack('<Q', len(text) + padding) + text + data)


def entry(dtype='F32', shape=(6, 4), offsets=(0, 96)):
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(offsets)}


def twice(one, two):
  return f'{{"a": {json.dumps(one)}, "a": {json.dumps(two)}}}'.encode()


DATA = X.tobytes()
SAFETENSORS = {
  'no JSON': (b'{' + b'x' * 99, 'damaged'),
  'no text': (b'{"\xff\xfe": 1}', 'damaged'),
  'deep': (b'{"a": ' + b'[' * 200_000, 'damaged'),
  'huge numbers': (b'{"a": ' + b'9' * 9999 + b'}', 'damaged'),
  'text behind the header': (json.dumps({'a': entry()}).encode() + b'x', 'damaged'),
  'twice': (twice(entry(), entry()), 'twice'),
  'a key twice': (b'{"a": {"dtype": "F32", "dtype": "F32"}}', 'twice'),
  'no table': ({'a': 3}, 'contradicts itself'),
  'a key more': ({'a': {**entry(), 'more': 1}}, 'contradicts itself'),
  'a key less': ({'a': {'dtype': 'F32', 'shape': [6, 4]}}, 'contradicts itself'),
  'unknown dtype': ({'a': entry('F4')}, 'unknown dtype'),
  'a type that is a list': ({'a': entry(['F32'])}, 'unknown dtype'),
  'another shape': ({'a': entry(shape=(6, 5))}, 'contradicts itself'),
  'negative': ({'a': entry(shape=(-6, -4))}, 'contradicts itself'),
  'float': ({'a': entry(shape=(6.0, 4))}, 'contradicts itself'),
  'bool': ({'a': entry(shape=(24, True))}, 'contradicts itself'),
  'text': ({'a': entry(shape='64')}, 'contradicts itself'),
  'a null': ({'a': {**entry(), 'shape': None}}, 'contradicts itself'),
  'huge and empty': ({'a': entry(shape=(2**62, 0), offsets=(0, 0))}, 'contradicts itself'),
  'many dimensions': ({'a': entry(shape=(6, 4) + (1,) * 99)}, 'contradicts itself'),
  'backwards': ({'a': entry(offsets=(96, 0))}, 'contradicts itself'),
  'negative offsets': ({'a': entry(offsets=(-96, 0))}, 'contradicts itself'),
  'three offsets': ({'a': entry(offsets=(0, 96, 96))}, 'contradicts itself'),
  'behind the end': ({'a': entry(shape=(2**40,), offsets=(0, 2**42))}, 'truncated'),
  'a hole at the start': ({'a': entry(shape=(5, 4), offsets=(16, 96))}, 'gaps'),
  'a hole': (
    {'a': entry(shape=(4,), offsets=(0, 16)), 'b': entry(shape=(4,), offsets=(80, 96))},
    'gaps',
  ),
  'an overlap': (
    {'a': entry(shape=(20,), offsets=(0, 80)), 'b': entry(shape=(8,), offsets=(64, 96))},
    'overlaps',
  ),
  'the same data twice': ({'a': entry(), 'b': entry()}, 'overlaps'),
  'data left over': ({'a': entry(shape=(5, 4), offsets=(0, 80))}, 'too long'),
  'metadata that is not a table': (
    {'__metadata__': [], 'a': entry()},
    'does not map strings to strings',
  ),
  'metadata of numbers': (
    {'__metadata__': {'a': 1}, 'a': entry()},
    'does not map strings to strings',
  ),
  'a line feed in a name': ({'a\nb': entry()}, 'invalid name'),
  'a long name': ({'a' * 9999: entry()}, 'invalid name'),
}


@pytest.mark.parametrize('case', SAFETENSORS)
def test_inconsistent_safetensors_are_refused(case, tmp_path):
  header, message = SAFETENSORS[case]
  write_safetensors(tmp_path / 'x.safetensors', header, DATA)
  refused(tmp_path / 'x.safetensors', message)


def test_safetensors_of_a_wrong_size_are_refused(tmp_path):
  path = tmp_path / 'x.safetensors'
  for length in (2**63, 100_000_001, len(DATA) + 999):
    path.write_bytes(struct.pack('<Q', length) + b'{}' + DATA)
    refused(path, 'declares a header of')
  for data in (DATA[:-1], DATA + b'\0', b''):
    write_safetensors(path, {'a': entry()}, data)
    refused(path, 'truncated or too long')


def test_products_of_many_numbers_take_no_time(tmp_path):
  shape = [2**40] * 1_000_000
  write_safetensors(tmp_path / 'x.safetensors', {'a': entry(shape=shape)}, DATA)
  began = time.process_time()
  refused(tmp_path / 'x.safetensors', 'contradicts itself')
  assert time.process_time() - began < 5


@pytest.mark.parametrize('dtype', [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
def test_safetensors_of_all_float_types_are_read(dtype, tmp_path):
  arrays = {'a': X.astype(dtype), 'scalar': np.array(3, dtype), 'empty': np.zeros((0, 2), dtype)}
  path = tmp_path / 'x.safetensors'
  safetensors.numpy.save_file(arrays, path, metadata={'format': 'pt'})
  file = read_tensors(path)
  assert file.metadata == {'format': 'pt'}
  for name, x in arrays.items():
    array = file.tensors[name].read()
    assert (array.dtype, array.shape, array.tobytes()) == (x.dtype, x.shape, x.tobytes())


# --- from the container to the model --------------------------------------------------------


@pytest.fixture(scope='module')
def tensors():
  rng = np.random.default_rng(0)
  return {
    name: rng.normal(size=leaf.shape).astype(np.float32)
    for name, leaf in released.flatten(build.abstract_params(MODEL, (8, 8))).items()
  }


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_one_non_finite_value_is_refused(value, tensors, tmp_path):
  kernel = tensors['head/kernel'].copy()
  kernel[3, 1] = value
  np.savez(tmp_path / 'x.npz', **{**tensors, 'head/kernel': kernel})
  with pytest.raises(UserError, match='head/kernel has non-finite values'):
    vit_jax.load(tmp_path / 'x.npz')


@pytest.mark.parametrize(('value', 'is_finite'), [(3e38, True), (1e39, False)])
def test_large_values_whose_sum_overflows(value, is_finite, tensors, tmp_path):
  kernel = np.full((16, 3), value)
  np.savez(tmp_path / 'x.npz', **{**tensors, 'head/kernel': kernel})
  if is_finite:
    loaded = vit_jax.load(tmp_path / 'x.npz').params['head']['kernel']
    np.testing.assert_array_equal(loaded, kernel.astype(np.float32))
  else:
    with pytest.raises(UserError, match='non-finite'):
      vit_jax.load(tmp_path / 'x.npz')


def too_deep(tensors):
  deep = {name: x for name, x in tensors.items() if 'encoderblock_' not in name}
  for name, x in tensors.items():
    if 'encoderblock_0/' in name:
      deep[name.replace('block_0', 'block')] = np.zeros((1001, *x.shape), np.float16)
  return deep


ODD_MODELS = {
  'too deep': too_deep,
  'very many units': lambda tensors: (
    tensors
    | {
      'conv_root/kernel': np.zeros((7, 7, 3, 32), np.float32),
      **{f'block1/unit{i}/conv1/kernel': np.zeros(1, np.float32) for i in range(101)},
    }
  ),
  'very many stages': lambda tensors: (
    tensors
    | {
      'conv_root/kernel': np.zeros((7, 7, 3, 32), np.float32),
      **{f'block{i}/unit1/conv1/kernel': np.zeros(1, np.float32) for i in range(9)},
    }
  ),
  'an empty tensor': lambda tensors: tensors | {'head/kernel': np.zeros((16, 0), np.float32)},
  'oblong patches': lambda tensors: (
    tensors | {'embedding/kernel': np.zeros((4, 2**20, 3, 1), np.float16)}
  ),
  'two models in one': lambda tensors: (
    tensors | {'root_block/conv_root/kernel': np.zeros((7, 7, 3, 32), np.float32)}
  ),
}


@pytest.mark.parametrize('case', ODD_MODELS)
def test_tensors_of_unsupported_models_are_refused(case, tensors, tmp_path):
  np.savez(tmp_path / 'x.npz', **ODD_MODELS[case](tensors))
  with pytest.raises(UserError, match='x.npz') as caught:
    vit_jax.load(tmp_path / 'x.npz')
  assert len(str(caught.value).splitlines()) == 1


def test_stacks_of_millions_of_tensors_are_refused(tensors, tmp_path, monkeypatch):
  monkeypatch.setattr(released, 'MAX_TENSORS', 500)
  stacks = {f'Transformer/encoderblock/{i}': np.zeros((300, 1), np.float16) for i in range(2)}
  np.savez(tmp_path / 'x.npz', **tensors, **stacks)
  with pytest.raises(UserError, match='more than 500 tensors'):
    vit_jax.load(tmp_path / 'x.npz')


@pytest.mark.parametrize('model', [MODEL, BiTResNet(32, (1,), num_classes=3)])
def test_too_large_images_are_refused(model):
  with pytest.raises(UserError, match='at most 65536 pixels'):
    build.check_image_size((2**16 + 4, 8), model, 'image_size')


@pytest.mark.parametrize(
  'index',
  [
    '',
    '[]',
    '{"weight_map": {"a": "../x.safetensors"}}',
    '{"weight_map": {"a": "x\\n"}}',
    '{"weight_map": {"a": ["x"]}}',
    '{"weight_map": ' + '[' * 100_000,
    '{"weight_map": {"a": ""}}',
    '{"weight_map": {}}',
  ],
)
def test_a_wrong_index_of_shards_is_refused(index, tmp_path):
  (tmp_path / 'model.safetensors.index.json').write_text(index)
  with pytest.raises(UserError) as caught:
    vit_jax.load(tmp_path)
  assert len(str(caught.value).splitlines()) == 1


def test_a_huge_index_is_not_read(tmp_path):
  with (tmp_path / 'model.safetensors.index.json').open('wb') as file:
    file.truncate(2**40)
  with pytest.raises(UserError, match='more than 100,000,000 bytes'):
    vit_jax.load(tmp_path)


@pytest.mark.parametrize('kind', ['stored', 'compressed', 'safetensors'])
def test_damaged_bytes(kind, tensors, tmp_path):
  """A small fuzzer; `benchmarks/fuzz_loaders.py` is the large one."""
  path = tmp_path / 'x.safetensors'  # its content, not its name, tells the format
  if kind == 'safetensors':
    params = jax.tree.map(np.asarray, released.unflatten(tensors))
    vit_jax.Classifier(MODEL, params, (8, 8)).save(path, 'timm')
  else:
    with path.open('wb') as file:
      (np.savez if kind == 'stored' else np.savez_compressed)(file, **tensors)
  original, rng = path.read_bytes(), np.random.default_rng(0)
  loaded = 0
  for i in range(150):
    data, at = bytearray(original), int(rng.integers(len(original)))
    if i % 3:  # in the directory or header rather than in the data
      near = original.rindex(b'PK\x05\x06') if kind != 'safetensors' else 2000
      at = int(rng.integers(near - 2000, min(near + 20, len(original))))
    if i % 5:
      data[at] ^= 1 << int(rng.integers(8))
    else:
      del data[at:]
    path.write_bytes(data)
    try:
      params = vit_jax.load(path).params
    except UserError as error:
      assert len(str(error).splitlines()) == 1
      continue
    loaded += 1
    for name, x in released.flatten(params).items():
      assert x.shape == tensors[name].shape and np.isfinite(x).all()
      if kind != 'safetensors':  # has no checksum
        np.testing.assert_array_equal(x, tensors[name])
  assert loaded < 75
