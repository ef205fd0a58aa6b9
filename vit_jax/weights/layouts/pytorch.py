"""What the layouts of timm and Transformers share: PyTorch's names and shapes of a layer.

Shapes: D width, K heads. PyTorch stores linear layers as (out, in) and convolutions as (out, in,
height, width). One layer may hold several linen modules: timm keeps query, key and value in one
array (3 D, D). Tables map the name of a layer to its linen modules, separated by spaces.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.encoder_block import QKV_BIASES
from vit_jax.models.variants import VARIANTS
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.formats.lazy_tensor import Tensor
from vit_jax.weights.layouts.released import ATTENTION, POSITIONS, flatten, unflatten
from vit_jax.weights.metadata import UnsupportedError
from vit_jax.weights.qkv_biases import missing_biases

# What training wrappers put before the names of a model, in any nesting: 'teacher.backbone.'.
_EMA = frozenset(('state_dict_ema', 'model_ema', 'ema'))
_WRAPPERS = _EMA | frozenset(
  'state_dict model_state_dict model timm_model module _orig_mod backbone encoder teacher '
  'student visual trunk'.split()
)
# Name of the activation in a config: value of `ModelMetadata.gelu`.
GELUS = {'gelu': 'exact', 'gelu_python': 'exact', 'quick_gelu': 'quick'} | dict.fromkeys(
  'gelu_pytorch_tanh gelu_new gelu_fast gelu_accurate gelu_tanh'.split(), 'tanh'
)
_PROJECTIONS = ('/query', '/key', '/value')
LAYERS_OF_BLOCK = (*_PROJECTIONS, '/out', '/Dense_0', '/Dense_1', '/gate')
_BLOCK = re.compile(r'encoderblock_\d+')


def check_activation(name: str) -> None:
  """Raises `UnsupportedError` for any but a GELU, by the name that a config has for it."""
  if name not in GELUS:
    raise UnsupportedError(f'the activation {name}')


def find_prefixes(names: Iterable[str], marker: str) -> list[str]:
  """The prefixes under which there is a tensor called `marker`, the best one first.

  An average of the weights comes before them, as in timm (`load_state_dict` in
  timm/models/_helpers.py), and a student last.
  """
  prefixes = [name.removesuffix(marker) for name in names if name.endswith(marker)]
  wrappers = {prefix: prefix.split('.')[:-1] for prefix in prefixes if prefix[-1:] in ('', '.')}
  known = [prefix for prefix, parts in wrappers.items() if _WRAPPERS.issuperset(parts)]

  def order(prefix: str) -> tuple[bool, bool, int]:
    parts = wrappers[prefix]
    return 'student' in parts, _EMA.isdisjoint(parts), len(parts)

  return sorted(known, key=order)


def block_layers(prefix: str, table: Mapping[str, str], index: int) -> dict[str, str]:
  """The layers of a Transformer block, whose names start with `prefix` and the index."""
  block = f'Transformer/encoderblock_{index}/'
  return {
    f'{prefix}{index}.{name}': ' '.join(block + module for module in modules.split())
    for name, modules in table.items()
  }


def ratio_of_widths(width: int, hidden: int) -> float:
  """A ratio r with int(width r) = hidden, as configs have it."""
  ratio = hidden / width
  return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def count_blocks(params: Any) -> int:
  """The number of Transformer blocks in a parameter tree."""
  return sum(name.startswith('encoderblock_') for name in params.get('Transformer', ()))


def _published_num_heads(position_embeddings: Tensor | None, source: str) -> int:
  """The number of heads of the published model of the same width; no two have the same width."""
  if position_embeddings is None or not position_embeddings.shape:
    raise UserError(f'{source} is not a Vision Transformer: it has no position embeddings.')
  width = position_embeddings.shape[-1]
  heads = {variant.width: variant.num_heads for variant in VARIANTS.values()}
  if width not in heads:
    raise UserError(
      f'{source} does not store its number of heads, and no published model has its width of '
      f'{width}; pass num_heads.'
    )
  return heads[width]


def to_linen(
  tensors: Mapping[str, Tensor],
  parameters: Mapping[str, str],
  find_modules: Callable[[str], str | None],
  num_heads: int | None,
  layout: str,
  source: str,
) -> dict[str, Tensor]:
  """Translates {name in PyTorch: tensor} to linen's names and shapes.

  Args:
    tensors: {name in PyTorch: tensor}.
    parameters: {name in PyTorch: linen name} of those with the same shape in both.
    find_modules: from the name of a layer to its linen modules; None: an unknown layer.
    num_heads: K; 0 for a ResNet; None: that of the published model of the same width.
    layout, source: name of the layout and of the file, for error messages.

  Raises:
    UserError: for tensors that no supported model has, or shapes that contradict each other.
  """
  if num_heads is None:
    embeddings = (tensors[name] for name in tensors if parameters.get(name) == POSITIONS)
    num_heads = _published_num_heads(next(embeddings, None), source)
  linen: dict[str, Tensor] = {}
  unknown = []
  for name, tensor in tensors.items():
    layer, _, leaf = name.rpartition('.')
    try:
      modules = find_modules(layer) if leaf in ('weight', 'bias') else None
      if modules:
        translated = _layer_to_linen(modules.split(), leaf, tensor, num_heads)
      elif name in parameters:
        translated = {parameters[name]: tensor}
      else:
        unknown.append(name)
        continue
    except (ValueError, IndexError, ZeroDivisionError):
      raise UserError(
        f'{source}: {name} has shape {tensor.shape}, which no {layout} model '
        + (f'of {num_heads} heads has; check num_heads.' if num_heads else 'has.')
      ) from None
    if duplicates := linen.keys() & translated.keys():
      raise UserError(f'{source} has {sorted(duplicates)[0]} twice, under two names.')
    linen |= translated
  if unknown:
    raise UserError(
      f'{source} is an unsupported kind of {layout} model: it has '
      f'{", ".join(unknown[:3])}{", …" if len(unknown) > 3 else "."}'
    )
  return linen


def with_biases(
  linen: Mapping[str, Tensor], source: str, layers: Collection[str] = _PROJECTIONS
) -> dict[str, Tensor]:
  """The tensors with zeros for the biases of layers that no block has.

  Those of QKV_BIASES are left out: of keys, or of queries, keys and values.

  Args:
    linen: {linen name: tensor}.
    source: the name of the file, for error messages.
    layers: the last parts of their names.

  Raises:
    UserError: for a layer that has a bias in some of the blocks.
  """
  completed, lacking = dict(linen), {}
  for name, kernel in linen.items():
    layer = name.removesuffix('/kernel')
    is_of_block = layer != name and _BLOCK.search(layer) and layer.endswith(tuple(layers))
    if is_of_block and f'{layer}/bias' not in linen:
      lacking[layer] = kernel.shape[-1:] if layer.endswith('/out') else kernel.shape[1:]
  kinds = {_BLOCK.sub('*', layer) for layer in lacking}
  for name in linen:
    layer = name.removesuffix('/bias')
    if layer != name and _BLOCK.sub('*', layer) in kinds:
      raise UserError(f'{source} is not complete: it has {name}, but not that of all blocks.')
  projections = {layer.rpartition('/')[2] for layer in lacking} & {*QKV_BIASES['all']}
  left_out = {*QKV_BIASES['all']} - projections in map(set, QKV_BIASES.values())
  for layer, shape in lacking.items():
    if left_out and layer.endswith(_PROJECTIONS):
      continue
    completed[f'{layer}/bias'] = Tensor.from_array(np.zeros(shape, np.float32))
  return completed


def with_qkv_biases(model: VisionTransformer, params: Any) -> Any:
  """A parameter tree with zeros for the biases that `qkv_bias` leaves out of the blocks."""
  tensors = flatten(params)
  return unflatten(tensors | missing_biases(tensors)) if model.block_bias else params


def check_biases(linen: Mapping[str, Tensor], source: str) -> None:
  """Raises `UserError` if the patches or the head have no bias; those of CLIP need none."""
  for layer in () if 'Transformer/pre_norm/scale' in linen else ('embedding', 'head'):
    if f'{layer}/kernel' in linen and f'{layer}/bias' not in linen:
      raise UserError(
        f'{source} is not complete, or of an unsupported kind: it has no {layer}/bias.'
      )


def _layer_to_linen(
  modules: Sequence[str], leaf: str, tensor: Tensor, num_heads: int
) -> dict[str, Tensor]:
  """The linen tensors in one 'weight' or 'bias', which holds the modules one after the other."""
  if modules[0].endswith(_PROJECTIONS):
    return _split_heads(modules, leaf, tensor, num_heads)
  if modules[1:]:
    return _split_rows(modules, leaf, tensor, num_heads)
  (module,), shape = modules, tensor.shape
  if leaf == 'bias':
    return {f'{module}/bias': tensor}
  if len(shape) == 1:
    return {f'{module}/scale': tensor}
  if module.endswith(f'{ATTENTION}/out'):
    width, inner = shape
    heads = (num_heads, inner // num_heads, width)
    return {f'{module}/kernel': tensor.map(heads, lambda x: x.T.reshape(heads))}
  if module == 'head' and shape[2:] == (1, 1):  # BiT's is a convolution
    return {'head/kernel': tensor.map(shape[1::-1], lambda x: x[:, :, 0, 0].T)}
  if len(shape) == 4:
    kernel = tensor.map((shape[2], shape[3], shape[1], shape[0]), lambda x: x.transpose(2, 3, 1, 0))
    return {f'{module}/kernel': kernel}
  return {f'{module}/kernel': tensor.map(shape[::-1], np.transpose)}


def _split_rows(
  modules: Sequence[str], leaf: str, tensor: Tensor, num_heads: int
) -> dict[str, Tensor]:
  """Equal parts of the rows of one layer, for each module."""
  rows = tensor.shape[0] // len(modules)
  if rows * len(modules) != tensor.shape[0]:
    raise ValueError(tensor.shape)
  linen = {}
  for i, module in enumerate(modules):
    part = tensor.rows(i * rows, (i + 1) * rows)
    linen |= _layer_to_linen([module], leaf, part, num_heads)
  return linen


def _split_heads(
  modules: Sequence[str], leaf: str, tensor: Tensor, num_heads: int
) -> dict[str, Tensor]:
  """(len(modules) D, D) or (len(modules) D,) -> for each module (D, K, D/K) or (K, D/K)."""
  rows = tensor.shape[0] // len(modules)
  if rows * len(modules) != tensor.shape[0] or rows % num_heads:
    raise ValueError(tensor.shape)
  heads = (num_heads, rows // num_heads)
  leaf, shape = ('bias', heads) if leaf == 'bias' else ('kernel', (tensor.shape[1], *heads))
  return {
    f'{module}/{leaf}': tensor.rows(i * rows, (i + 1) * rows).map(
      shape, lambda x: x.T.reshape(shape)
    )
    for i, module in enumerate(modules)
  }


def unsupported_encoder(params: Any) -> str | None:
  """What neither timm's nor Transformers' encoder of a model has: 'axial blocks', …, or None."""
  names = flatten(params)
  if any('/row/' in name for name in names):
    return 'axial blocks'
  if 'Transformer' in params and POSITIONS not in names:
    return 'other positions than 1d embeddings in the stem'
  return None


def from_linen(
  params: Any, parameters: Mapping[str, str], layers: Mapping[str, str]
) -> dict[str, np.ndarray]:
  """The inverse of `to_linen` for a parameter tree, with the layers that it has."""
  tensors = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
  state_dict = {name: tensors[linen] for name, linen in parameters.items() if linen in tensors}
  for name, modules in layers.items():
    leaves = [_leaves_from_linen(tensors, module) for module in modules.split()]
    for leaf in leaves[0]:
      joined = np.concatenate([each[leaf] for each in leaves]) if leaves[1:] else leaves[0][leaf]
      state_dict[f'{name}.{leaf}'] = np.ascontiguousarray(joined)
  return state_dict


def _leaves_from_linen(tensors: Mapping[str, np.ndarray], module: str) -> dict[str, np.ndarray]:
  """{'weight', 'bias'} of a linen module, in PyTorch's shapes."""
  leaves = {}
  if f'{module}/scale' in tensors:
    leaves['weight'] = tensors[f'{module}/scale']
  if f'{module}/kernel' in tensors:
    kernel = tensors[f'{module}/kernel']
    if module.endswith(_PROJECTIONS):  # (D, K, D/K)
      kernel = kernel.reshape(kernel.shape[0], -1)
    elif module.endswith('/out'):  # (K, D/K, D)
      kernel = kernel.reshape(-1, kernel.shape[-1])
    leaves['weight'] = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
  if f'{module}/bias' in tensors:
    leaves['bias'] = tensors[f'{module}/bias'].reshape(-1)
  return leaves
