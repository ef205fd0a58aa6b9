"""tf.train.Example, the record of TFDS data sets, encoded and decoded without TensorFlow.

An Example maps names to a list of bytes, of integers or of floats. Decoding uses protobuf. Encoding
does not: what protobuf writes may differ from version to version, but a data set that is prepared
again must have the same bytes and checksums.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

_SCHEMA = """
BytesList: repeated bytes value
FloatList: repeated float value
Int64List: repeated int64 value
Feature: BytesList bytes_list, FloatList float_list, Int64List int64_list
Entry: string key, Feature value
Features: repeated Entry feature
Example: Features features
"""  # fields are numbered from 1; protobuf encodes a map as its entries


def _make_message_class() -> type[Any]:
  """Builds the class of Example messages from the schema, as protoc would."""
  field_types = descriptor_pb2.FieldDescriptorProto
  file = descriptor_pb2.FileDescriptorProto(name='tf_example.proto', syntax='proto3')
  for line in _SCHEMA.split('\n')[1:-1]:
    message, _, fields = line.partition(': ')
    descriptor = file.message_type.add(name=message)
    for number, declaration in enumerate(fields.split(', '), start=1):
      *repeated, type_name, name = declaration.split()
      field = descriptor.field.add(name=name, number=number)
      field.label = field_types.LABEL_REPEATED if repeated else field_types.LABEL_OPTIONAL
      if type_name.islower():
        field.type = field_types.Type.Value(f'TYPE_{type_name.upper()}')
      else:
        field.type_name = type_name
  pool = descriptor_pool.DescriptorPool()
  pool.AddSerializedFile(file.SerializeToString())
  return message_factory.GetMessageClass(pool.FindMessageTypeByName('Example'))


_Message = _make_message_class()


def decode(record: bytes, names: Sequence[str]) -> dict[str, list[Any]]:
  """Decodes the features called `names` that an Example has: lists of bytes, int or float.

  Raises:
    ValueError: for bytes that are not an Example.
  """
  try:
    entries = _Message.FromString(record).features.feature
  except DecodeError:
    raise ValueError('it is not a complete tf.train.Example') from None
  features = {}
  for entry in entries:
    if entry.key in names:
      lists = (entry.value.bytes_list, entry.value.float_list, entry.value.int64_list)
      features[entry.key] = [value for values in lists for value in values.value]
  return features


def _varint(value: int) -> bytes:
  """Encodes an integer in groups of 7 bits; negative ones as 64-bit two's complement."""
  value &= (1 << 64) - 1
  encoded = bytearray()
  while value > 0x7F:
    encoded.append(value & 0x7F | 0x80)
    value >>= 7
  encoded.append(value)
  return bytes(encoded)


def _field(number: int, content: bytes) -> bytes:
  """Encodes a field of variable length: key (number, wire type 2), length, content."""
  return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _feature(values: Sequence[Any]) -> bytes:
  if len(values) and isinstance(values[0], bytes):
    return _field(1, b''.join(_field(1, value) for value in values))
  return _field(3, _field(1, b''.join(_varint(int(value)) for value in values)))


def encode(features: Mapping[str, Sequence[bytes] | Sequence[int]]) -> bytes:
  """Encodes lists of bytes and of integers as an Example; equal features give equal bytes."""
  entries = b''.join(
    _field(1, _field(1, name.encode()) + _field(2, _feature(values)))
    for name, values in sorted(features.items())
  )
  return _field(1, entries)
