"""Exports a model with its weights as a StableHLO program, which needs no vit_jax to run."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np

from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.dot_product_attention import einsum_attention
from vit_jax.weights.metadata import ModelMetadata


def export(model: build.Model, params: Any, metadata: ModelMetadata, channels: int) -> bytes:
  """Exports a program: (b, H, W, channels) float32 in [-1, 1] -> (b, num_classes) float32.

  `jax.export.deserialize(data)` restores it; its `call(images)` runs on CPU, TPU or CUDA, for any
  batch size b. Its name, `fun_name`, is the description of the model as JSON: architecture, image
  size and preprocessing, as in a config.json of vit_jax.

  Raises:
    UserError: for 2 GiB of weights or more, which the format (flatbuffers) cannot store.
  """
  if 4 * build.count_parameters(params) >= 2**31 - 2**24:
    raise UserError('A .stablehlo file cannot store 2 GiB of weights or more; write an .npz.')
  assert metadata.image_size is not None  # a Classifier has one
  if hasattr(model, 'attention'):
    model = model.clone(attention=einsum_attention)  # on all platforms
  (batch,), params = jax.export.symbolic_shape('b'), jax.device_get(params)
  images = jax.ShapeDtypeStruct((batch, *metadata.image_size, channels), np.float32)
  program = jax.jit(lambda images: model.apply({'params': params}, images))
  exported = jax.export.export(program, platforms=('cpu', 'tpu', 'cuda'))(images)
  name = json.dumps(metadata.to_json(build.architecture(model)))
  return bytes(dataclasses.replace(exported, fun_name=name).serialize())
