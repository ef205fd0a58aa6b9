"""Fuzzes `vit_jax.load`: a damaged file ends in one clean sentence or in a correct model.

  python benchmarks/fuzz_loaders.py --inputs=200000 --seed=0 --processes=2

Hypothesis (pip install 'vit_jax[fuzz]') draws how small valid models of every container and
layout are damaged, in two ways:

  bytes: bits, bytes, chunks and numbers changed, removed, repeated or spliced, anywhere. A zip
    holds checksums, so that an npz must then be refused or give the very parameters it held
    (or those of the npz that was spliced into it).
  structure: headers, names, shapes, types and data of single tensors and values of config.json
    changed in a file that is written anew, so that checksums and lengths are right.

An input is clean when `load` raises a `UserError` of one line, or returns a model of finite
float32 parameters as the model's own tree has them, with what NumPy and the safetensors library
read in the same file. Everything else is a failure: another exception, a crash, more than five
seconds, more than 256 MiB asked for (1 GiB with what is only mapped). Failing inputs are kept in
--failures, to be loaded by `vit_jax.load`. One row a container goes to
benchmarks/results/fuzz_loaders_<date>.csv.
"""

import argparse
import concurrent.futures
import csv
import datetime
import faulthandler
import io
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

os.environ['JAX_PLATFORMS'] = 'cpu'

import hypothesis  # noqa: E402
import jax  # noqa: E402
import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402
import safetensors.numpy  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import vit_jax  # noqa: E402
from vit_jax.checkpoints import released, torch_export  # noqa: E402
from vit_jax.checkpoints.tensor_files import read_tensors  # noqa: E402
from vit_jax.errors import UserError  # noqa: E402
from vit_jax.models import build  # noqa: E402
from vit_jax.models.resnet import BiTResNet  # noqa: E402
from vit_jax.models.vit import VisionTransformer  # noqa: E402

MAX_SECONDS = 5
MAX_BYTES = 2**28  # asked for by one load; zips of any size may declare 2**26
MAX_MAPPED = 2**30  # with what is only reserved, by threads too
JOB = 5000  # inputs of one process, so that its caches stay small
CHOICES = 2000  # random bytes that Hypothesis makes an input of; few need as many

Files = dict[str, bytes]  # {name in the folder: content}; a single one stands for itself


# --- valid models ---------------------------------------------------------------------------


def _params(model: build.Model) -> Any:
  rng = np.random.default_rng(0)
  abstract = build.abstract_params(model, (8, 8))
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract)


def _npz(tensors: dict[str, np.ndarray], compressed: bool = False) -> Files:
  buffer = io.BytesIO()
  (np.savez_compressed if compressed else np.savez)(buffer, **tensors)
  return {'x.npz': buffer.getvalue()}


def _saved(model: build.Model, name: str, layout: str | None = None) -> Files:
  labels = ['cat', 'dog', 'größe']
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / name
    vit_jax.Classifier(model, _params(model), (8, 8), labels).save(path, layout)
    paths = path.iterdir() if path.is_dir() else [path]
    return {path.name: path.read_bytes() for path in paths}


def _scanned(model: VisionTransformer) -> dict[str, np.ndarray]:
  """big_vision's names: a stack of blocks, position embeddings apart, bfloat16."""
  tensors = released.flatten(_params(model))
  stacks = {name for name in tensors if '/encoderblock_0/' in name}
  found = {name: x for name, x in tensors.items() if '/encoderblock_' not in name}
  found['pos_embedding'] = found.pop(released.POSITIONS)
  for name in stacks:
    blocks = [tensors[name.replace('block_0/', f'block_{i}/')] for i in range(model.depth)]
    found[name.replace('block_0/', 'block/')] = np.stack(blocks)
  return {f'params/img/{name}': x.astype(ml_dtypes.bfloat16) for name, x in found.items()}


def _shards(files: Files) -> Files:
  """A folder of Transformers whose weights are in two files."""
  tensors = safetensors.numpy.load(files.pop('model.safetensors'))
  names = sorted(tensors)
  parts = {'a.safetensors': names[::2], 'b.safetensors': names[1::2]}
  index = {'metadata': {}, 'weight_map': {n: part for part in parts for n in parts[part]}}
  weights = {
      part: safetensors.numpy.save({name: tensors[name] for name in names})
      for part, names in parts.items()
  }
  return files | weights | {'model.safetensors.index.json': json.dumps(index).encode()}


def _timm_folder(model: VisionTransformer) -> Files:
  """timm's config.json, and LayerScale."""
  tensors = torch_export.to_timm(_params(model))
  for i in range(model.depth):
    for j in (1, 2):
      tensors[f'blocks.{i}.ls{j}.gamma'] = np.linspace(0, 1, model.width, dtype=np.float32)
  config = {
      'architecture': 'vit_tiny',
      'num_classes': 3,
      'model_args': {'img_size': 8, 'num_heads': 2, 'act_layer': 'gelu_tanh'},
      'pretrained_cfg': {
          'input_size': [3, 8, 8], 'crop_pct': 0.9, 'mean': [0.4, 0.5, 0.6], 'std': [0.2] * 3,
          'label_names': ['cat', 'dog', 'cow'],
      },
  }  # fmt: skip
  weights = safetensors.numpy.save(tensors, metadata={'format': 'pt'})
  return {'model.safetensors': weights, 'config.json': json.dumps(config).encode()}


def make_models() -> dict[str, Files]:
  """A small valid model for each container and layout."""
  vit = VisionTransformer(4, 16, 2, 24, 2, num_classes=3, pool='token')
  pre_logits, pooled = vit.clone(pre_logits=8), vit.clone(pool='map')
  hybrid = vit.clone(patch_size=8, depth=1, resnet_width=32, resnet_blocks=(1,))
  bit = BiTResNet(32, (1,), num_classes=3)
  return {
      'released npz': _npz(released.to_published(_params(pre_logits))),
      'compressed npz': _npz(released.to_published(_params(vit)), compressed=True),
      'big_vision npz': _npz(_scanned(pooled)),
      'BiT npz': _npz(released.to_published(_params(bit))),
      'hybrid npz': _npz(released.to_published(_params(hybrid))),
      'npz of our own': _saved(vit, 'x.npz'),
      'folder of our own': _saved(pre_logits, 'model', 'model'),
      'timm safetensors': _saved(vit, 'x.safetensors'),
      'timm folder': _timm_folder(vit),
      'Transformers folder': _saved(vit, 'model', 'huggingface'),
      'Transformers shards': _shards(_saved(vit, 'model', 'huggingface')),
  }


# --- damage to bytes ------------------------------------------------------------------------

EXTREMES = st.sampled_from([
    0, 1, 2, 4, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**47, 2**62,
    2**63 - 1, 2**63, 2**64 - 1,
])  # fmt: skip


def landmarks(data: bytes) -> list[int]:
  """Where headers stand: zip records, npy headers, lengths and punctuation of JSON."""
  found = [match.start() for match in re.finditer(rb'PK[\x01\x03\x05]|\x93NUMPY', data)]
  header = data[:1] != b'P' and int.from_bytes(data[:8], 'little')
  if header and header < len(data):
    found += [0, 4] + [match.start() for match in re.finditer(rb'[:,\[{]', data[: 8 + header])]
  return found or [0]


@st.composite
def damaged_bytes(draw: Callable, data: bytes, marks: list[int], others: list[bytes]) -> bytes:
  """Changes a few places of a file, without a look at what stands there."""
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
    st.sampled_from(['', '/', 'head/kernel', 'a\nb', 'x' * 70_000, '\0', '../../x', '__metadata__',
                     'Transformer/encoderblock_99/LayerNorm_0/scale', 'a.npy', 'pos_embedding',
                     'Transformer/encoderblock/a', 'block9/unit9/gn1/scale', 'conv_root/kernel',
                     released.POSITIONS, 'root_block/conv_root/kernel', 'embedding/kernel',
                     'vit.', 'blocks.0.ls1.gamma', 'blocks.7.ls1.gamma', '\u2028', '\x85']),
    st.text(max_size=8),
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 2, 2**31, 2**63, 2**64, 10**400, -(10**400),
                     10**4299, 1.5, -0.0, 1e308, float('nan'), float('inf'), '', '0', 'gelu', 'abc',
                     'a\nb', 'é' * 40, [], {}, [1], [8, 8], [4, 16], [0, 8], ['a', 'b', 'c'], [[]],
                     {'height': 0, 'width': 0}, {'a': 'b'}, DEEP]),
    st.integers(-5, 70),
    st.floats(),
    st.text(max_size=6),
)  # fmt: skip


def dumps(value: Any) -> bytes:
  """JSON, also of what Python writes and reads though it is none."""
  text = json.dumps(value)
  return text.replace(json.dumps(DEEP), '[' * 100_000 + ']' * 100_000).encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
  """(container, key) of everything inside of a JSON value."""
  if not isinstance(value, (dict, list)):
    return []
  keys = list(value) if isinstance(value, dict) else range(len(value))
  return [(value, key) for key in keys] + [p for key in keys for p in _places(value[key])]


@st.composite
def damaged_value(draw: Callable, text: str | bytes) -> Any:
  """Changes, removes and renames values within a JSON text; not written as text yet."""
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
  """Another array that is written as it should be."""
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
  return st.sampled_from([
      '<f4', '>f4', '<f8', '<f2', '|V2', '|V4', '|V0', '|O', '<i4', '<c8', '|S4', '|S0', '<U1',
      '|b1', '<f16', '<M8[s]', 'f4,f4', '', '|', 'zzz', '<f3', None, 3, (), ('<f4', (2,)),
      [('a', '<f4')], [('a', '|O')], [('a\n', '<f2'), ('', '<f2')], [('a', '<f4', (2, 2))],
      ('<f4', {}), [()], [('a', [('b', '|O')])], ('|O', 2), 'f4' * 3000, {'a': 1},
  ])  # fmt: skip


def _entry(name: str, data: bytes) -> dict[str, Any]:
  """An entry of an npz as parts: {name, version, header, payload}."""
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
  """(entries as parts, whether they are compressed)."""
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    entries = archive.infolist()
    compressed = entries[0].compress_type == zipfile.ZIP_DEFLATED
    return [_entry(entry.filename, archive.read(entry)) for entry in entries], compressed


@st.composite
def damaged_npz(draw: Callable, parsed: tuple[list[dict[str, Any]], bool]) -> bytes:
  """An npz written anew, with headers, names or arrays that are others."""
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
      entry['name'] = draw(st.one_of(ODD_NAMES.map(lambda n: n + '.npy'), ODD_NAMES, st.just(other),
                                     st.just(other.removesuffix('.npy'))))  # fmt: skip
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
  """(header as pairs, data)."""
  size = int.from_bytes(data[:8], 'little')
  return list(json.loads(data[8 : 8 + size]).items()), data[8 + size :]


@st.composite
def damaged_safetensors(draw: Callable, parsed: tuple[list[tuple[str, Any]], bytes]) -> bytes:
  """A safetensors file with another header, of the right length, and the data that go with it."""
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
      facts = dict(parsed[0])[name].get('vit_jax', '{"image_size": 8}')
      entry['vit_jax'] = draw(st.one_of(damaged_value(facts).map(dumps).map(bytes.decode), VALUES))
    elif not isinstance(entry, dict) or not isinstance(entry.get('shape'), list):
      continue
    elif kind in (3, 4):
      entry['shape'] = damaged_shape(draw, entry['shape'])
    elif kind == 5:
      entry['dtype'] = draw(st.sampled_from([
          'F32', 'F16', 'BF16', 'F64', 'I8', 'BOOL', 'F8_E4M3', 'U64', 'C64', '', 'f32', None]))
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
  """Another array at place i, and offsets that are right again."""
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
      entry = {'dtype': dtype or 'F32', 'shape': list(x.shape),
               'data_offsets': [len(data), len(data) + len(raw)]}  # fmt: skip
      data += raw
    pairs.append([name, dict(entry)])
  return pairs, data


# --- inputs and what becomes of them --------------------------------------------------------


@st.composite
def inputs(draw: Callable, files: Files, prepared: dict[str, Any]) -> tuple[Files, bool]:
  """(damaged files, whether the damage knew their structure)."""
  name = draw(st.sampled_from(sorted(files)))
  parsed, marks, others = prepared[name]
  structured = parsed is not None and draw(st.booleans())
  if not structured:
    damaged = draw(damaged_bytes(files[name], marks, others))
  elif name.endswith('.json'):
    damaged = dumps(draw(damaged_value(parsed)))
  else:
    damage = damaged_npz if name.endswith('.npz') else damaged_safetensors
    damaged = draw(damage(parsed))
  return {**files, name: damaged}, structured


def prepare(files: Files, everything: list[bytes]) -> dict[str, Any]:
  """What `inputs` needs of each file: its parts, its landmarks, other files to splice."""
  parsers = {'.npz': parse_npz, '.safetensors': parse_safetensors, '.json': lambda data: data}
  prepared = {}
  for name, data in files.items():
    parse = parsers.get(pathlib.Path(name).suffix, lambda data: None)
    prepared[name] = parse(data), landmarks(data), everything
  return prepared


def reference_tensors(path: pathlib.Path, container: str) -> dict[str, np.ndarray]:
  """A file as the libraries that define its format read it."""
  if container == 'safetensors':
    return safetensors.numpy.load_file(path)
  with np.load(path) as archive:
    return dict(archive)


def check(source: pathlib.Path, paths: list[pathlib.Path], originals: list[Any]) -> str:
  """Loads `source`: 'error' or 'load'; an AssertionError or any other tells of a failure.

  Args:
    source: what is loaded.
    paths: the files of tensors in it.
    originals: one of these are its parameters if it loads; none when they may be others.
  """
  try:
    found = vit_jax.load(source)
  except UserError as error:
    text = str(error)
    assert text.strip() and len(text.splitlines()) == 1, f'not one line: {text!r}'
    assert len(text) < 3000, f'a long sentence: {text[:300]}'
    assert 'allocate' not in text and 'MemoryError' not in text, f'too much memory: {text}'
    return 'error'
  tensors = released.flatten(found.params)
  wanted = released.flatten(build.abstract_params(found.model, found.image_size))
  assert {n: x.shape for n, x in tensors.items()} == {n: x.shape for n, x in wanted.items()}
  for name, x in tensors.items():
    assert x.dtype == np.float32 and np.isfinite(x).all(), f'{name} is {x.dtype} or not finite'
  assert 0 < found.crop_fraction <= 1 and found.loss in ('softmax', 'sigmoid')
  assert found.labels is None or (
      isinstance(found.labels, list) and len(found.labels) == found.model.num_classes
  ), f'labels {found.labels}'
  same = (
      tensors.keys() == one.keys() and all(np.array_equal(x, one[n]) for n, x in tensors.items())
      for one in originals
  )
  assert not originals or any(same), 'other parameters than written'
  for path in paths:
    file = read_tensors(path)
    ours = {name: tensor.read() for name, tensor in file.tensors.items()}
    theirs = reference_tensors(path, file.container)
    assert ours.keys() == theirs.keys(), f'other names than the library of {path.name} reads'
    for name, x in ours.items():
      same = x.shape == theirs[name].shape and x.tobytes() == theirs[name].tobytes()
      assert same, f'{name} is not what the library of {path.name} reads'
  return 'load'


def write_files(folder: pathlib.Path, files: Files) -> pathlib.Path:
  """Writes an input; what is to be loaded: its folder, or its only file."""
  for name, data in files.items():
    (folder / name).write_bytes(data)
  return folder / next(iter(files)) if len(files) == 1 else folder


def limit_memory() -> None:
  """Lets this process have MAX_BYTES and MAX_MAPPED more than it has."""
  pages = [int(count) for count in pathlib.Path('/proc/self/statm').read_text().split()]
  for what, count, more in (
      (resource.RLIMIT_DATA, pages[5], MAX_BYTES), (resource.RLIMIT_AS, pages[0], MAX_MAPPED)
  ):  # fmt: skip
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (count * resource.getpagesize() + more, hard))


def run_job(
    container: str, count: int, seed: int, folder: pathlib.Path, failures: pathlib.Path
) -> None:
  """Loads `count` damaged copies of one model; the result goes to folder/result.json."""
  warnings.simplefilter('ignore')
  models = make_models()
  files = models[container]
  everything = [data for other in models.values() for data in other.values()]
  prepared = prepare(files, everything)
  current = folder / 'input'
  current.mkdir()
  originals = []
  for i, other in enumerate(models.values()):
    (folder / str(i)).mkdir()
    found = vit_jax.load(write_files(folder / str(i), other))
    originals += [released.flatten(found.params)] if any('.npz' in name for name in other) else []
  result = {'inputs': 0, 'error': 0, 'load': 0, 'failures': 0}
  hashes, began = set(), time.perf_counter()

  def one(given: tuple[Files, bool]) -> None:
    damaged, structured = given
    changed = [name for name in damaged if damaged[name] != files[name]]
    digest = hash((container, *damaged.values()))
    if not changed or digest in hashes or damaged[changed[0]] in everything:
      return
    hashes.add(digest)
    source = write_files(current, damaged)
    # A zip has a checksum of every entry, JSON and safetensors have none.
    sure = not structured and changed[0].endswith('.npz')
    paths = [current / name for name in changed if name.endswith(('.npz', '.safetensors'))]
    limit_memory()
    faulthandler.dump_traceback_later(60, exit=True)
    start = time.process_time()
    try:
      outcome = check(source, paths, originals if sure else [])
      assert time.process_time() - start < MAX_SECONDS, f'more than {MAX_SECONDS} seconds'
      result[outcome] += 1
    except Exception:  # noqa: BLE001 - all that is no UserError is a failure
      keep(current, failures, f'{container} {seed} {result["inputs"]}', traceback.format_exc())
      result['failures'] += 1
    faulthandler.cancel_dump_traceback_later()
    result['inputs'] += 1

  settings = hypothesis.settings(database=None, deadline=None)
  fuzz = settings(hypothesis.given(inputs(files, prepared))(one)).hypothesis.fuzz_one_input
  rng = np.random.default_rng(seed)
  while result['inputs'] < count:
    try:
      fuzz(rng.bytes(CHOICES))
    except Exception as error:  # of this program
      error.__notes__ = []  # they are long
      raise
  result |= {'seconds': time.perf_counter() - began, 'hashes': sorted(hashes)}
  (folder / 'result.json').write_text(json.dumps(result))


def keep(current: pathlib.Path, failures: pathlib.Path, name: str, text: str) -> None:
  """Copies a failing input, with what happened."""
  path = failures / name.replace(' ', '_')
  shutil.copytree(current, path, dirs_exist_ok=True)
  (path / 'error.txt').write_text(text)
  print(f'FAILURE {path}: {text.strip().splitlines()[-1][:200]}', flush=True)


def start_job(container: str, count: int, seed: int, failures: pathlib.Path) -> dict[str, Any]:
  """Runs a job in a process of its own, which may crash or hang."""
  shm = '/dev/shm' if os.path.isdir('/dev/shm') else None
  with tempfile.TemporaryDirectory(dir=shm) as folder:
    command = [sys.executable, __file__, '--job', container, f'--inputs={count}', f'--seed={seed}',
               f'--folder={folder}', f'--failures={failures}']  # fmt: skip
    env = {**os.environ, 'PYTHONHASHSEED': '0'}
    with open(f'{folder}/stderr', 'wb') as stderr:
      code = subprocess.run(command, stderr=stderr, env=env).returncode
    path = pathlib.Path(folder)
    if code == 0:
      return json.loads((path / 'result.json').read_text())
    text = (path / 'stderr').read_text(errors='replace')[-20_000:]
    keep(path / 'input', failures, f'{container} {seed} crash', f'{text}\nexit code {code}')
    return {'inputs': 0, 'error': 0, 'load': 0, 'failures': 1, 'seconds': 0.0, 'hashes': []}


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--inputs', type=int, default=200_000, help='of all containers together')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--processes', type=int, default=2)
  parser.add_argument('--containers', help='only those whose name holds this')
  parser.add_argument('--failures', type=pathlib.Path, help='where they are kept',
                      default=pathlib.Path(tempfile.gettempdir(), 'fuzz_failures'))  # fmt: skip
  parser.add_argument('--out', type=pathlib.Path, default='benchmarks/results')
  parser.add_argument('--job', help=argparse.SUPPRESS)
  parser.add_argument('--folder', type=pathlib.Path, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.job:
    return run_job(args.job, args.inputs, args.seed, args.folder, args.failures)
  names = [name for name in make_models() if not args.containers or args.containers in name]
  each = -(-args.inputs // len(names))
  jobs = [
      (name, min(JOB, each - start), args.seed * 1000 + start // JOB, args.failures)
      for start in range(0, each, JOB)
      for name in names
  ]
  with concurrent.futures.ThreadPoolExecutor(args.processes) as pool:
    results = list(zip(jobs, pool.map(lambda job: start_job(*job), jobs), strict=True))
  rows = []
  for name in (*names, 'all'):
    found = [result for job, result in results if name in (job[0], 'all')]
    total = {key: sum(r[key] for r in found) for key in ('inputs', 'error', 'load', 'failures')}
    distinct = {digest for result in found for digest in result['hashes']}
    seconds = sum(result['seconds'] for result in found)
    rows.append({
        'date': datetime.date.today().isoformat(), 'container': name, 'inputs': total['inputs'],
        'distinct': len(distinct), 'clean_errors': total['error'], 'correct_loads': total['load'],
        'failures': total['failures'],
        'inputs_per_process_second': round(total['inputs'] / max(seconds, 1e-9), 1),
        'seed': args.seed,
    })  # fmt: skip
  widths = {key: 2 + max(len(str(row[key])) for row in [*rows, {key: key}]) for key in rows[0]}
  for row in ({key: key for key in rows[0]}, *rows):
    print(''.join(f'{row[key]!s:<{width}}' for key, width in widths.items()))
  path = args.out / f'fuzz_loaders_{datetime.date.today()}.csv'
  new = not path.exists()
  with path.open('a', newline='') as file:
    writer = csv.DictWriter(file, rows[0])
    if new:
      writer.writeheader()
    writer.writerows(rows)
  sys.exit(1 if rows[-1]['failures'] else 0)


if __name__ == '__main__':
  main()
