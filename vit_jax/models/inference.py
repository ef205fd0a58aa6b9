"""Compiled passes of a model on arrays as they are, with what is fastest on their device."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from vit_jax.compiler import compiler_options
from vit_jax.models import build, features


def logits(model: build.Model, params: Any, images: Any) -> jax.Array:
  """The outputs of the model: images (B, H, W, C) float in [-1, 1] -> (B, num_classes) float32."""
  return _run(_apply, model, params, images)


def pooled_features(model: build.Model, params: Any, images: Any) -> jax.Array:
  """The input of the head, as `features.features`."""
  return _run(features.features, model, params, images)


def _apply(model: build.Model, params: Any, images: jax.Array) -> Any:
  return model.apply({'params': params}, images)


def _run(function: Callable[..., Any], model: build.Model, params: Any, images: Any) -> Any:
  """Calls function(model, params, images), jitted.

  Inside of the caller's own `jax.jit`, and for arrays on several devices, the model keeps its
  attention: `jit` does not partition kernels.
  """
  arrays = [x for x in jax.tree.leaves((params, images)) if isinstance(x, jax.Array)]
  if any(isinstance(x, Tracer) for x in arrays):
    return _jitted(function, None)(model, params, images)
  devices = set().union(*(x.devices() for x in arrays)) or jnp.zeros(()).devices()
  device = next(iter(devices))
  if len(devices) == 1:
    model = build.for_device(model, device)
  return _jitted(function, device.platform)(model, params, images)


@functools.cache
def _jitted(function: Callable[..., Any], platform: str | None) -> Any:
  options = compiler_options(platform) if platform else None
  return jax.jit(function, static_argnames='model', compiler_options=options)
