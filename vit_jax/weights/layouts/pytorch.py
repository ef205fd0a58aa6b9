"""What the layouts of timm and Transformers share: PyTorch's names and shapes of a layer.

Shapes: D width, K heads. PyTorch stores linear layers as (out, in) and convolutions as (out, in,
height, width). One layer may hold several linen modules: timm keeps query, key and value in one
array (3 D, D).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.variants import VARIANTS
from vit_jax.weights.formats.lazy_tensor import Tensor
from vit_jax.weights.layouts.released import ATTENTION

PREFIXES = ('', 'module.', 'model.')  # of DistributedDataParallel, of training wrappers
GELUS = {  # name of the activation in a config: value of `ModelMetadata.gelu`
  'gelu': 'exact',
  'gelu_python': 'exact',
  'gelu_pytorch_tanh': 'tanh',
  'gelu_new': 'tanh',
  'gelu_fast': 'tanh',
  'gelu_accurate': 'tanh',
  'gelu_tanh': 'tanh',
}
_PROJECTIONS = ('/query', '/key', '/value')
_WIDTH_TO_HEADS = {variant.width: variant.num_heads for variant in VARIANTS.values()}


def published_num_heads(position_embeddings: Tensor | None, source: str) -> int:
  """The number of heads of the published model of the same width; no two have the same width.

  Args:
    position_embeddings: (1, N, D).
    source: the name of the file, for error messages.

  Raises:
    UserError: when there are no position embeddings, or no published model is that wide.
  """
  if position_embeddings is None or not position_embeddings.shape:
    raise UserError(f'{source} is not a Vision Transformer: it has no position embeddings.')
  width = position_embeddings.shape[-1]
  if width not in _WIDTH_TO_HEADS:
    raise UserError(
      f'{source} does not store its number of heads, and no published model has its width of '
      f'{width}; pass num_heads.'
    )
  return _WIDTH_TO_HEADS[width]


def split_prefix(
  tensors: Mapping[str, Tensor], prefix: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
  """The tensors whose names start with `prefix`, without it, and the names of all others."""
  inside = {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
  return inside, tuple(name for name in tensors if not name.startswith(prefix))


def translate(
  tensors: Mapping[str, Tensor],
  translate_one: Callable[[str, Tensor, int], dict[str, Tensor] | None],
  num_heads: int,
  layout: str,
  source: str,
) -> dict[str, Tensor]:
  """Tensors under the names and in the shapes of linen.

  Args:
    tensors: {name in PyTorch: tensor}.
    translate_one: from a name, its tensor and K to the linen tensors in it; None for a name
      that the layout does not have.
    num_heads: K; 0 for a ResNet.
    layout, source: name of the layout and of the file, for error messages.

  Raises:
    UserError: for tensors that no supported model has, or shapes that contradict each other.
  """
  linen: dict[str, Tensor] = {}
  unknown = []
  for name, tensor in tensors.items():
    try:
      translated = translate_one(name, tensor, num_heads)
    except (ValueError, IndexError, ZeroDivisionError):
      raise UserError(
        f'{source}: {name} has shape {tensor.shape}, which no {layout} model '
        + (f'of {num_heads} heads has; check num_heads.' if num_heads else 'has.')
      ) from None
    if translated is None:
      unknown.append(name)
    elif duplicates := linen.keys() & translated.keys():
      raise UserError(f'{source} has {sorted(duplicates)[0]} twice, under two names.')
    else:
      linen |= translated
  if unknown:
    raise UserError(
      f'{source} is an unsupported kind of {layout} model: it has '
      f'{", ".join(unknown[:3])}{", …" if len(unknown) > 3 else "."}'
    )
  return linen


def layer_to_linen(
  modules: Sequence[str], leaf: str, tensor: Tensor, num_heads: int
) -> dict[str, Tensor]:
  """The linen tensors in one weight or bias of PyTorch.

  Args:
    modules: the linen modules that the layer holds, one after the other in its rows.
    leaf: 'weight' or 'bias'.
    tensor: the weight or bias.
    num_heads: K; 0 for a ResNet.

  Raises:
    ValueError, IndexError, ZeroDivisionError: for a shape that such a layer cannot have.
  """
  if modules[0].endswith(_PROJECTIONS):
    return _split_heads(modules, leaf, tensor, num_heads)
  (module,), shape = modules, tensor.shape
  if leaf == 'bias':
    return {f'{module}/bias': tensor}
  if len(shape) == 1:
    return {f'{module}/scale': tensor}
  if module.endswith(f'{ATTENTION}/out'):
    width, inner = shape
    heads = (num_heads, inner // num_heads, width)
    return {f'{module}/kernel': tensor.map(heads, lambda x: x.T.reshape(heads))}
  if len(shape) == 4:
    kernel = tensor.map((shape[2], shape[3], shape[1], shape[0]), lambda x: x.transpose(2, 3, 1, 0))
    return {f'{module}/kernel': kernel}
  return {f'{module}/kernel': tensor.map(shape[::-1], np.transpose)}


def _split_heads(
  modules: Sequence[str], leaf: str, tensor: Tensor, num_heads: int
) -> dict[str, Tensor]:
  """(len(modules) D, D) or (len(modules) D,) -> for each module (D, K, D/K) or (K, D/K)."""
  rows = tensor.shape[0] // len(modules)
  if rows * len(modules) != tensor.shape[0] or rows % num_heads:
    raise ValueError(tensor.shape)
  heads = (num_heads, rows // num_heads)
  linen = {}
  for i, module in enumerate(modules):
    block = tensor.rows(i * rows, (i + 1) * rows)
    if leaf == 'bias':
      linen[f'{module}/bias'] = block.map(heads, lambda x: x.reshape(heads))
    else:
      shape = (tensor.shape[1], *heads)
      linen[f'{module}/kernel'] = block.map(shape, lambda x, s=shape: x.T.reshape(s))
  return linen


def layer_from_linen(
  tensors: Mapping[str, np.ndarray], name: str, modules: Sequence[str]
) -> dict[str, np.ndarray]:
  """The inverse of `layer_to_linen`: {'<name>.weight', '<name>.bias'}, those that exist."""
  layers = [_leaves_from_linen(tensors, module) for module in modules]
  return {
    f'{name}.{leaf}': np.ascontiguousarray(
      layers[0][leaf] if len(layers) == 1 else np.concatenate([layer[leaf] for layer in layers])
    )
    for leaf in layers[0]
  }


def _leaves_from_linen(tensors: Mapping[str, np.ndarray], module: str) -> dict[str, np.ndarray]:
  """{'weight', 'bias'} of a linen module, in PyTorch's shapes."""
  leaves = {}
  if f'{module}/scale' in tensors:
    leaves['weight'] = tensors[f'{module}/scale']
  if f'{module}/kernel' in tensors:
    kernel = tensors[f'{module}/kernel']
    if module.endswith(_PROJECTIONS):  # (D, K, D/K)
      kernel = kernel.reshape(kernel.shape[0], -1).T
    elif module.endswith('/out'):  # (K, D/K, D)
      kernel = kernel.reshape(-1, kernel.shape[-1]).T
    elif kernel.ndim == 4:
      kernel = kernel.transpose(3, 2, 0, 1)
    else:
      kernel = kernel.T
    leaves['weight'] = kernel
  if f'{module}/bias' in tensors:
    leaves['bias'] = tensors[f'{module}/bias'].reshape(-1)
  return leaves


def block_count(names: Iterable[str]) -> int:
  """The number of Transformer blocks among linen parameters."""
  return len({m[1] for n in names if (m := re.match(r'Transformer/encoderblock_(\d+)/', n))})


def unit_names(names: Iterable[str]) -> list[str]:
  """The ResNet units among linen parameters: ['block1/unit1', …]."""
  return sorted({m[0] for name in names if (m := re.match(r'block\d+/unit\d+', name))})


def fold_normalization(
  tensors: Mapping[str, Tensor], mean: Sequence[float], std: Sequence[float], source: str
) -> dict[str, Tensor]:
  """Folds the normalization of pixels into the first layer, so that it takes pixels in [-1, 1].

  Args:
    tensors: {linen name: tensor}.
    mean, std: for pixels in [0, 1], one for each channel.
    source: the name of the file, for error messages.

  Raises:
    UserError: for a ResNet, whose first layer standardizes its weights.
  """
  if 'conv_root/kernel' in tensors or 'root_block/conv_root/kernel' in tensors:
    raise UserError(
      f'{source} normalizes pixels with mean {tuple(mean)}, which cannot be folded into the '
      'standardized first layer of a ResNet.'
    )
  if not {'embedding/kernel', 'embedding/bias'} <= tensors.keys():
    return dict(tensors)  # no supported model, as reading the architecture will report
  kernel, bias = tensors['embedding/kernel'], tensors['embedding/bias']
  means, scales = np.asarray(mean, np.float32), np.asarray(std, np.float32)

  def fold_bias(x: np.ndarray) -> np.ndarray:
    weights = np.asarray(kernel.read(), np.float32)
    shift = np.einsum('hwcd,c->d', weights, (0.5 - means) / scales)
    return np.asarray(x, np.float32) + shift

  return {
    **tensors,
    'embedding/kernel': kernel.map(
      kernel.shape, lambda x: np.asarray(x, np.float32) / (2 * scales[:, None])
    ),
    'embedding/bias': bias.map(bias.shape, fold_bias),
  }
