"""tf.train.Example without TensorFlow: against TFDS's own messages, fixed bytes, and damage."""

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from vit_jax.data.sources.tf_example import decode, encode

NAMES = ('bytes', 'integers', 'floats', 'empty')
VALUES = {
  'bytes': [b'', bytes(300), 'ü'.encode()],
  'integers': [0, 1, 127, 128, -1, 2**63 - 1, -(2**63)],
  'floats': [0.5, -2.0],
}


def message() -> tf_example_pb2.Example:
  example = tf_example_pb2.Example()
  features = example.features.feature
  features['bytes'].bytes_list.value.extend(VALUES['bytes'])
  features['integers'].int64_list.value.extend(VALUES['integers'])
  features['floats'].float_list.value.extend(VALUES['floats'])
  features['empty'].SetInParent()
  return example


def test_decodes_records_of_tfds():
  assert decode(message().SerializeToString(), NAMES) == VALUES | {'empty': []}
  assert decode(message().SerializeToString(), ['floats']) == {'floats': [0.5, -2.0]}


def test_tfds_decodes_encoded_records():
  features = {name: VALUES[name] for name in ('bytes', 'integers')}
  example = tf_example_pb2.Example.FromString(encode(features | {'empty': ()}))
  decoded = example.features.feature
  assert list(decoded['bytes'].bytes_list.value) == VALUES['bytes']
  assert list(decoded['integers'].int64_list.value) == VALUES['integers']
  assert decoded['empty'].WhichOneof('kind') == 'int64_list'


def test_decoding_restores_what_was_encoded():
  features = {name: VALUES[name] for name in ('bytes', 'integers')} | {'empty': []}
  assert decode(encode(features), NAMES) == features


def test_encoded_bytes_never_change():
  """Prepared data sets carry checksums, so these bytes are part of the file format."""
  features = {
    'label': np.array([3, 1000, -1]),
    'image': [b'\xff\xd8'],
    'real': (),
    'file_name': [b'n/1.JPEG', b''],
  }
  assert encode(features).hex() == (
    '0a58'
    '0a1b0a0966696c655f6e616d65120e0a0c0a086e2f312e4a5045470a00'
    '0a0f0a05696d61676512060a040a02ffd8'
    '0a1a0a056c6162656c12111a0f0a0d03e807ffffffffffffffffff01'
    '0a0c0a047265616c12041a020a00'
  )
  assert encode({}).hex() == '0a00'


def test_damage_is_a_value_error():
  record = message().SerializeToString()
  rng = np.random.default_rng(0)
  for length in range(1, len(record), 7):
    with pytest.raises(ValueError, match='not a complete tf.train.Example'):
      decode(record[:length], NAMES)
  for _ in range(300):
    damaged = bytearray(record)
    damaged[rng.integers(len(record))] = rng.integers(256)
    try:
      decode(bytes(damaged), NAMES)
    except ValueError:
      continue
