"""tf.train.Example, the record of TFDS data sets, to bytes and back, without TensorFlow.

An Example is a map from names to a list of bytes, of integers or of floats; what is read and
written here is their wire format, a dozen rules of protocol buffers.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence

Values = list[bytes] | list[int] | list[float]
_MASK = (1 << 64) - 1


def _varint(value: int) -> bytes:
  value &= _MASK  # negative numbers are written as 64 bits
  out = bytearray()
  while value > 0x7F:
    out.append(value & 0x7F | 0x80)
    value >>= 7
  out.append(value)
  return bytes(out)


def _field(number: int, content: bytes) -> bytes:
  return bytes([number << 3 | 2]) + _varint(len(content)) + content


def encode(features: Mapping[str, Sequence[bytes] | Sequence[int]]) -> bytes:
  """The bytes of an Example of lists of bytes and of integers; the same for the same features."""
  entries = b''
  for name, values in sorted(features.items()):
    if len(values) and isinstance(values[0], bytes):
      feature = _field(1, b''.join(_field(1, value) for value in values))
    else:
      feature = _field(3, _field(1, b''.join(map(_varint, map(int, values)))))
    entries += _field(1, _field(1, name.encode()) + _field(2, feature))
  return _field(1, entries)


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
  value = shift = 0
  while True:
    byte = data[at]
    at += 1
    value |= (byte & 0x7F) << shift
    if byte < 0x80:
      return value, at
    shift += 7


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
  """(field number, content) of a message; content is a number or the bytes of a field."""
  at = 0
  while at < len(data):
    key, at = _read_varint(data, at)
    kind = key & 7
    if kind == 0:
      content, at = _read_varint(data, at)
    else:
      size = {1: 8, 5: 4}.get(kind)
      if size is None:
        if kind != 2:
          raise ValueError('it is no tf.train.Example')
        size, at = _read_varint(data, at)
      if at + size > len(data):
        raise ValueError('it is no whole tf.train.Example')
      content, at = data[at : at + size], at + size
    yield key >> 3, content


def _integers(content: int | memoryview) -> Iterator[int]:
  at = 0
  packed = not isinstance(content, int)
  while packed and at < len(content):
    value, at = _read_varint(content, at)
    yield value - (1 << 64) if value >> 63 else value
  if not packed:
    yield content - (1 << 64) if content >> 63 else content


def _values(feature: memoryview) -> Values:
  values: Values = []
  for kind, content in _fields(feature):  # 1 bytes, 2 floats, 3 integers
    for _, value in _fields(content):
      if kind == 1:
        values.append(bytes(value))
      elif kind == 2:
        values += struct.unpack(f'<{len(value) // 4}f', value)
      else:
        values += _integers(value)
  return values


def decode(data: bytes, names: Sequence[str]) -> dict[str, Values]:
  """The features of an Example that are called one of `names`.

  Raises:
    ValueError: for bytes that are no Example.
  """
  found = {}
  try:
    for _, features in _fields(memoryview(data)):
      for _, entry in _fields(features):
        parts = dict(_fields(entry))
        name = bytes(parts.get(1, b'')).decode()
        if name in names:
          found[name] = _values(parts.get(2, memoryview(b'')))
  except (IndexError, TypeError, struct.error):
    raise ValueError('it is no tf.train.Example') from None
  return found
