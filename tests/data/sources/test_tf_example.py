"""tf.train.Example without TensorFlow: against TFDS's own messages, and damaged."""

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


def test_what_others_write_is_read():
  assert decode(message().SerializeToString(), NAMES) == VALUES | {'empty': []}
  assert decode(message().SerializeToString(), ['floats']) == {'floats': [0.5, -2.0]}


def test_others_read_what_is_written():
  features = {name: VALUES[name] for name in ('bytes', 'integers')}
  example = tf_example_pb2.Example.FromString(encode(features | {'empty': ()}))
  found = example.features.feature
  assert list(found['bytes'].bytes_list.value) == VALUES['bytes']
  assert list(found['integers'].int64_list.value) == VALUES['integers']
  assert found['empty'].WhichOneof('kind') == 'int64_list'


def test_damage_is_a_value_error():
  data = message().SerializeToString()
  rng = np.random.default_rng(0)
  for cut in range(1, len(data), 7):
    with pytest.raises(ValueError):
      decode(data[:cut], NAMES)
  for _ in range(300):
    garbled = bytearray(data)
    garbled[rng.integers(len(data))] = rng.integers(256)
    try:
      decode(bytes(garbled), NAMES)
    except ValueError:
      continue
