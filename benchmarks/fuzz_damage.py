"""How `fuzz_loaders.py` damages files: Hypothesis strategies over bytes and over structure."""

import io
import json
import re
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from vit_jax.weights.layouts import released

# --- damage to bytes ------------------------------------------------------------------------

EXTREMES = st.sampled_from(
  [
    0,
    1,
    2,
    4,
    2**7,
    2**8 - 1,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**47,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
  ]
)


def landmarks(data: bytes) -> list[int]:
  """Finds the offsets of headers: zip records, npy headers, lengths and punctuation of JSON."""
  offsets = [match.start() for match in re.finditer(rb'PK[\x01\x03\x05]|\x93NUMPY', data)]
  header = data[:1] != b'P' and int.from_bytes(data[:8], 'little')
  if header and header < len(data):
    offsets += [0, 4] + [match.start() for match in re.finditer(rb'[:,\[{]', data[: 8 + header])]
  return offsets or [0]


@st.composite
def damaged_bytes(draw: Callable, data: bytes, marks: list[int], others: list[bytes]) -> bytes:
  """Changes a few places of a file, regardless of its content."""
  size = len(data)
  anywhere = st.integers(0, size - 1)
  at_mark = st.builds(lambda mark, more: mark + more, st.sampled_from(marks), st.integers(0, 48))
  position = st.one_of(anywhere, at_mark).map(lambda i: min(i, size - 1))
  data = bytearray(data)
  for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4]))):
    kind, i = draw(st.integers(0, 8)), draw(position)
    if kind == 0:
      data[i : i + 1] = bytes([data[i] ^ 1 << draw(st.integers(0, 7))] if i < len(data) else [])
    elif kind == 1:
      data[i : i + 1] = bytes([draw(st.integers(0, 255))])
    elif kind == 2:
      del data[i:]
    elif kind == 3:
      data[i:i] = draw(st.binary(min_size=1, max_size=40))
    elif kind == 4:
      del data[i : i + draw(st.integers(1, 2000))]
    elif kind == 5:
      data[i:i] = data[i : i + draw(st.integers(1, 2000))]
    elif kind == 6:
      i, j = sorted((i, draw(position)))
      data = data[j:] + data[i:j] + data[:i] if draw(st.booleans()) else data[:i] + data[j:]
    elif kind == 7:
      width = draw(st.sampled_from([2, 4, 8]))
      extreme = draw(st.one_of(EXTREMES, st.just(size), st.just(size - 8)))
      data[i : i + width] = (extreme % 2 ** (8 * width)).to_bytes(width, 'little')
    else:
      other = draw(st.sampled_from(others))
      j = draw(st.integers(0, len(other)))
      data[i:] = other[j:]
    if not data:
      break
  return bytes(data)


# --- damage to structure --------------------------------------------------------------------

DEEP = '\0deep\0'  # stands for a hundred thousand brackets
ODD_NAMES = st.one_of(
  st.sampled_from(
    [
      '',
      '/',
      'head/kernel',
      'a\nb',
      'x' * 70_000,
      '\0',
      '../../x',
      '__metadata__',
      'Transformer/encoderblock_99/LayerNorm_0/scale',
      'a.npy',
      'pos_embedding',
      'Transformer/encoderblock/a',
      'block9/unit9/gn1/scale',
      'conv_root/kernel',
      released.POSITIONS,
      'root_block/conv_root/kernel',
      'embedding/kernel',
      'vit.',
      'blocks.0.ls1.gamma',
      'blocks.7.ls1.gamma',
      '\u2028',
      '\x85',
    ]
  ),
  st.text(max_size=8),
)
VALUES = st.one_of(
  st.sampled_from(
    [
      None,
      True,
      False,
      0,
      -1,
      1,
      2,
      2**31,
      2**63,
      2**64,
      10**400,
      -(10**400),
      10**4299,
      1.5,
      -0.0,
      1e308,
      float('nan'),
      float('inf'),
      '',
      '0',
      'gelu',
      'abc',
      'a\nb',
      'é' * 40,
      [],
      {},
      [1],
      [8, 8],
      [4, 16],
      [0, 8],
      ['a', 'b', 'c'],
      [[]],
      {'height': 0, 'width': 0},
      {'a': 'b'},
      DEEP,
    ]
  ),
  st.integers(-5, 70),
  st.floats(),
  st.text(max_size=6),
)


def dumps(value: Any) -> bytes:
  """Serializes JSON, including the invalid JSON that Python writes and reads."""
  text = json.dumps(value)
  return text.replace(json.dumps(DEEP), '[' * 100_000 + ']' * 100_000).encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
  """Lists (container, key) of everything inside a JSON value."""
  if not isinstance(value, (dict, list)):
    return []
  keys = list(value) if isinstance(value, dict) else range(len(value))
  return [(value, key) for key in keys] + [p for key in keys for p in _places(value[key])]


@st.composite
def damaged_value(draw: Callable, text: str | bytes) -> Any:
  """Changes, removes and renames values in a JSON text; returns the parsed value."""
  value = json.loads(text)
  for _ in range(draw(st.integers(1, 3))):
    places = _places(value)
    if not places:
      break
    inside, key = draw(st.sampled_from(places))
    kind = draw(st.integers(0, 5))
    if kind == 0:
      del inside[key]
    elif kind == 1 and isinstance(inside, dict):
      inside[draw(st.one_of(ODD_NAMES, st.just(key + key)))] = inside.pop(key)
    elif kind == 2:
      other, other_key = draw(st.sampled_from(places))
      inside[key] = json.loads(json.dumps(other[other_key]))
    else:
      inside[key] = draw(VALUES)
  return value


DIMS = st.one_of(st.integers(-3, 70), st.sampled_from([2**31, 2**40, 2**62, 2**63, 10**30]))


def damaged_shape(draw: Callable, shape: tuple[int, ...]) -> list[Any]:
  kind, shape = draw(st.integers(0, 5)), list(shape)
  i = draw(st.integers(0, max(len(shape) - 1, 0)))
  if kind == 0 and shape:
    shape[i] = draw(st.one_of(DIMS, VALUES))
  elif kind == 1:
    shape.insert(i, draw(DIMS))
  elif kind == 2:
    del shape[i : i + 1]
  elif kind == 3:
    shape = shape[::-1]
  elif kind == 4:
    shape = draw(st.lists(DIMS, max_size=5)) + [0]
  else:
    shape = [1] * draw(st.sampled_from([1, 30, 70])) + shape
  return shape


def damaged_array(draw: Callable, x: np.ndarray) -> np.ndarray:
  """Returns another array, which is then written correctly."""
  kind = draw(st.integers(0, 7))
  if kind == 0:
    return x.T
  if kind == 1 and x.size:
    x = np.array(x, np.float32)
    x.flat[draw(st.integers(0, x.size - 1))] = draw(
      st.sampled_from([np.nan, np.inf, -np.inf, 3e38, 1e-40])
    )
    return x
  if kind == 2:
    types = ['<f2', '<f8', '>f4', '>f8', '<i4', '|u1', '?', '<c8', '<f16', ml_dtypes.bfloat16]
    return np.asarray(x, np.float32).astype(draw(st.sampled_from(types)))
  if kind == 3:
    return np.full(x.shape, 3e38, np.float32)
  if kind == 4:
    return x[: draw(st.integers(0, 3))] if x.ndim else x
  if kind == 5:
    return np.repeat(x, draw(st.integers(0, 3)), axis=-1) if x.ndim else x
  if kind == 6:
    return np.zeros((*x.shape[:-1], 0), np.float32)
  return x.reshape(-1)


def _types() -> st.SearchStrategy[Any]:
  return st.sampled_from(
    [
      '<f4',
      '>f4',
      '<f8',
      '<f2',
      '|V2',
      '|V4',
      '|V0',
      '|O',
      '<i4',
      '<c8',
      '|S4',
      '|S0',
      '<U1',
      '|b1',
      '<f16',
      '<M8[s]',
      'f4,f4',
      '',
      '|',
      'zzz',
      '<f3',
      None,
      3,
      (),
      ('<f4', (2,)),
      [('a', '<f4')],
      [('a', '|O')],
      [('a\n', '<f2'), ('', '<f2')],
      [('a', '<f4', (2, 2))],
      ('<f4', {}),
      [()],
      [('a', [('b', '|O')])],
      ('|O', 2),
      'f4' * 3000,
      {'a': 1},
    ]
  )


def _entry(name: str, data: bytes) -> dict[str, Any]:
  """Parses an entry of an npz into {name, version, header, payload, …}."""
  file = io.BytesIO(data)
  version = np.lib.format.read_magic(file)
  shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
  header = {'descr': dtype.str, 'fortran_order': fortran, 'shape': shape}
  payload = file.read()
  dtype = np.dtype(ml_dtypes.bfloat16) if dtype == np.dtype('V2') else dtype
  array = np.frombuffer(payload, dtype).reshape(shape)
  return dict(name=name, version=version, header=header, payload=payload, array=array, repeat=1)


def _set_array(entry: dict[str, Any], x: np.ndarray) -> None:
  fortran = x.flags.f_contiguous and not x.flags.c_contiguous
  descr = '|V2' if x.dtype == ml_dtypes.bfloat16 else x.dtype.str
  entry['header'] = {'descr': descr, 'fortran_order': fortran, 'shape': x.shape}
  entry['payload'] = x.tobytes('F' if fortran else 'C')


def parse_npz(data: bytes) -> tuple[list[dict[str, Any]], bool]:
  """Returns (parsed entries, whether they are compressed)."""
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    entries = archive.infolist()
    compressed = entries[0].compress_type == zipfile.ZIP_DEFLATED
    return [_entry(entry.filename, archive.read(entry)) for entry in entries], compressed


@st.composite
def damaged_npz(draw: Callable, parsed: tuple[list[dict[str, Any]], bool]) -> bytes:
  """Writes an npz with other headers, names or arrays."""
  entries, compressed = [dict(entry) for entry in parsed[0]], parsed[1]
  for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
    entry = draw(st.sampled_from(entries))
    kind, header = draw(st.integers(0, 12)), dict(entry['header'])
    entry['header'] = header
    if kind == 0:
      header['shape'] = tuple(damaged_shape(draw, entry['array'].shape))
    elif kind == 1:
      header['descr'] = draw(_types())
    elif kind == 2:
      header['fortran_order'] = draw(st.one_of(st.just(True), VALUES))
    elif kind == 3:
      key = draw(st.sampled_from([*header, 'more']))
      header[key] = draw(VALUES)
    elif kind == 4:
      header.pop(draw(st.sampled_from(['descr', 'fortran_order', 'shape'])), None)
    elif kind == 5:
      text = repr(header).encode()
      entry['raw'] = draw(damaged_bytes(text, [0, 10, 40], [text, b'(' * 99, b"'''" * 9]))
    elif kind == 6:
      entry['version'] = (draw(st.sampled_from([1, 2, 3, 0, 255])), draw(st.sampled_from([0, 1])))
    elif kind == 7:
      other = draw(st.sampled_from(entries))['name']
      entry['name'] = draw(
        st.one_of(
          ODD_NAMES.map(lambda n: n + '.npy'),
          ODD_NAMES,
          st.just(other),
          st.just(other.removesuffix('.npy')),
        )
      )
    elif kind == 8:
      change = draw(st.integers(-8, 8))
      payload = entry['payload']
      entry['payload'] = payload[:change] if change < 0 else payload + b'\1' * change
    elif kind == 9:
      entry['repeat'] = draw(st.sampled_from([0, 0, 2]))
    elif kind == 10:
      compressed = not compressed
    else:
      _set_array(entry, damaged_array(draw, entry['array']))
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    for entry in entries:
      for _ in range(entry['repeat']):
        method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
        archive.writestr(entry['name'][:60_000].split('\0')[0] or '?', _npy(entry), method)
  return buffer.getvalue()


def _npy(entry: dict[str, Any]) -> bytes:
  text = entry.get('raw') or repr(entry['header']).replace(repr(DEEP), '(' * 300).encode()
  text += b' ' * (-(len(text) + 11) % 64) + b'\n'
  width = 2 if entry['version'] == (1, 0) else 4
  length = (len(text) % 2 ** (8 * width)).to_bytes(width, 'little')
  return b'\x93NUMPY' + bytes(entry['version']) + length + text + entry['payload']


def parse_safetensors(data: bytes) -> tuple[list[tuple[str, Any]], bytes]:
  """Returns (header as (name, entry) pairs, data)."""
  size = int.from_bytes(data[:8], 'little')
  return list(json.loads(data[8 : 8 + size]).items()), data[8 + size :]


@st.composite
def damaged_safetensors(draw: Callable, parsed: tuple[list[tuple[str, Any]], bytes]) -> bytes:
  """Writes a safetensors file with another header, of the right length, and matching data."""
  pairs, data = [[name, json.loads(json.dumps(entry))] for name, entry in parsed[0]], parsed[1]
  for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
    i = draw(st.integers(0, len(pairs) - 1))
    name, entry = pairs[i]
    kind = draw(st.integers(0, 11))
    if kind == 0:
      pairs[i][0] = draw(st.one_of(ODD_NAMES, st.sampled_from(pairs).map(lambda pair: pair[0])))
    elif kind == 1:
      more = draw(st.one_of(ODD_NAMES, st.just(name))), draw(st.one_of(VALUES, st.just(entry)))
      pairs.append(list(more))
    elif kind == 2:
      pairs[i][1] = draw(damaged_value(json.dumps(entry)))
    elif kind == 3 and name == '__metadata__' and isinstance(entry, dict):
      metadata = dict(parsed[0])[name].get('vit_jax', '{"image_size": 8}')
      text = damaged_value(metadata).map(dumps).map(bytes.decode)
      entry['vit_jax'] = draw(st.one_of(text, VALUES))
    elif not isinstance(entry, dict) or not isinstance(entry.get('shape'), list):
      continue
    elif kind in (3, 4):
      entry['shape'] = damaged_shape(draw, entry['shape'])
    elif kind == 5:
      entry['dtype'] = draw(
        st.sampled_from(
          ['F32', 'F16', 'BF16', 'F64', 'I8', 'BOOL', 'F8_E4M3', 'U64', 'C64', '', 'f32', None]
        )
      )
    elif kind == 6:
      entry['data_offsets'] = draw(st.lists(st.one_of(DIMS, st.integers(0, len(data))), max_size=3))
    elif kind == 7:
      other = draw(st.sampled_from(pairs))[1]
      entry['data_offsets'] = other.get('data_offsets') if isinstance(other, dict) else other
    elif kind == 8:
      data = data[: -draw(st.integers(1, 99))] if draw(st.booleans()) else data + b'\0' * 8
    else:
      pairs, data = _with_array(draw, parsed, i)
  text = '{' + ','.join(f'{json.dumps(n)}:{dumps(e).decode()}' for n, e in pairs) + '}'
  header = text.encode() + b' ' * (-len(text) % 8)
  return len(header).to_bytes(8, 'little') + header + data


def _with_array(draw: Callable, parsed: Any, i: int) -> tuple[list[list[Any]], bytes]:
  """Replaces array i and corrects all offsets."""
  names = {'<f4': 'F32', '<f2': 'F16', '<f8': 'F64', '<i4': 'I32', '|u1': 'U8', '|b1': 'BOOL'}
  pairs, data = [], b''
  for j, (name, entry) in enumerate(parsed[0]):
    if name != '__metadata__':
      begin, end = entry['data_offsets']
      x = np.frombuffer(parsed[1][begin:end], np.float32).reshape(entry['shape'])
      x = damaged_array(draw, x) if i == j else x
      dtype = 'BF16' if x.dtype == ml_dtypes.bfloat16 else names.get(x.dtype.str)
      x = x if dtype else x.astype(np.float32)
      raw = np.ascontiguousarray(x).tobytes()
      entry = {
        'dtype': dtype or 'F32',
        'shape': list(x.shape),
        'data_offsets': [len(data), len(data) + len(raw)],
      }
      data += raw
    pairs.append([name, dict(entry)])
  return pairs, data
