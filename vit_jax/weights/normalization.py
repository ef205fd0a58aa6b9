"""The normalization of pixels that weights were trained with: kept in the model, or folded away."""

from collections.abc import Mapping, Sequence

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.formats.lazy_tensor import Tensor

_KERNELS = ('stem/kernel', 'embedding/kernel')  # that can take a normalization
_STANDARDIZED = {'conv_root/kernel', 'root_block/conv_root/kernel'}


def with_normalization(
  model: VisionTransformer, mean: Sequence[float], std: Sequence[float], channels: int, source: str
) -> VisionTransformer:
  """The model normalizing its pixels.

  Args:
    model: that normalizes none.
    mean, std: for pixels in [0, 1], one for each channel or one for all.
    channels: of its images.
    source: the name of the file, for error messages.

  Raises:
    UserError: for another number of means or deviations than of channels.
  """
  means, stds = (_of_channels(*each, channels, source) for each in (('mean', mean), ('std', std)))
  return model.clone(pixel_mean=means, pixel_std=stds)


def fold(
  tensors: Mapping[str, Tensor], mean: Sequence[float], std: Sequence[float], source: str
) -> dict[str, Tensor]:
  """Folds the normalization of pixels into the first layer, so that it takes pixels in [-1, 1].

  A layer without bias gets one.

  Args:
    tensors: {linen name: tensor}.
    mean, std, source: as in `with_normalization`.

  Raises:
    UserError: for a first layer that cannot take it, and as `with_normalization` does.
  """
  if _STANDARDIZED & tensors.keys():
    raise UserError(
      f'{source} normalizes pixels with mean {tuple(mean)}, which cannot be folded into the '
      'standardized first layer of a ResNet.'
    )
  name = next(name for name in _KERNELS if name in tensors)
  bias_name = name.replace('kernel', 'bias')
  kernel = tensors[name]
  *_, channels, features = kernel.shape
  bias = tensors.get(bias_name) or Tensor.from_array(np.zeros(features, np.float32))
  means = np.asarray(_of_channels('mean', mean, channels, source), np.float32)
  scales = np.asarray(_of_channels('std', std, channels, source), np.float32)

  def fold_kernel(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float32) / (2 * scales[:, None])

  def fold_bias(x: np.ndarray) -> np.ndarray:
    weights = np.asarray(kernel.read(), np.float32)
    shift = np.einsum('hwcd,c->d', weights, (0.5 - means) / scales)
    return np.asarray(x, np.float32) + shift

  return {
    **tensors,
    name: kernel.map(kernel.shape, fold_kernel),
    bias_name: bias.map(bias.shape, fold_bias),
  }


def _of_channels(
  name: str, values: Sequence[float], channels: int, source: str
) -> tuple[float, ...]:
  """One number for each channel."""
  if len(values) not in (1, channels):
    raise UserError(
      f'{source} takes images of {channels} channels, but the {name} of its pixels has '
      f'{len(values)} numbers; pass {name}= with one, or one for each channel.'
    )
  return tuple(np.broadcast_to(np.asarray(values, float), channels).tolist())
