"""Zero-shot classification by the text embeddings of class names (CLIP, arXiv 2103.00020).

A text tower, which vit_jax does not have, made the embeddings: see docs/foundation_weights.md.
"""

import dataclasses
import math
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vit_jax.errors import UserError, first_line
from vit_jax.files import user_path
from vit_jax.models.precision import FULL_PRECISION

Array = jax.Array
_MAX_BYTES = 2**31  # of a file
_DEFAULT_SCALE = 100.0  # the largest one of CLIP (Section 2.5)
_ARRAYS = ('embeddings', 'names', 'logit_scale', 'logit_bias')


@dataclasses.dataclass(frozen=True, eq=False)
class ClassEmbeddings:
  """The classes that images are compared with.

  Attributes:
    embeddings: (C, D) float32, of length 1.
    names: of the classes; None if they are unknown.
    scale: that multiplies the cosines, already exponentiated.
    bias: that is added to them, for a sigmoid of each class, as in SigLIP (arXiv 2303.15343); None
      for a softmax over the classes, as in CLIP.
  """

  embeddings: np.ndarray
  names: tuple[str, ...] | None = None
  scale: float = _DEFAULT_SCALE
  bias: float | None = None

  @property
  def loss(self) -> str:
    """A key of LOSSES."""
    return 'softmax' if self.bias is None else 'sigmoid'

  def select(self, indices: tuple[int, ...]) -> 'ClassEmbeddings':
    """These classes alone, in this order."""
    names = None if self.names is None else tuple(self.names[i] for i in indices)
    return dataclasses.replace(self, embeddings=self.embeddings[list(indices)], names=names)

  def logits(self, features: Array) -> Array:
    """Embeddings of images (B, D), of any length -> logits (B, C) float32."""
    features = features.astype(jnp.float32)
    features /= jnp.linalg.norm(features, axis=-1, keepdims=True)
    cosines = jnp.matmul(features, self.embeddings.T, precision=FULL_PRECISION)
    return self.scale * cosines + (self.bias or 0.0)


def read_class_embeddings(path: epath.PathLike) -> ClassEmbeddings:
  """Reads an .npz file of `embeddings` (C, D), whose rows are divided by their length.

  It may also have `names` (C,), of strings, and the numbers `logit_scale` (default 100), which is
  that of the cosines and not its logarithm, and `logit_bias`.

  Raises:
    UserError: for a file that is missing or damaged, or whose arrays are not these.
  """
  file = user_path(path)
  try:
    if file.stat().length > _MAX_BYTES:
      raise ValueError(f'it has more than {_MAX_BYTES:,} bytes')
    with file.open('rb') as opened, np.load(opened, allow_pickle=False) as archive:
      if unknown := set(archive) - set(_ARRAYS):
        raise ValueError(f'it has an array {min(unknown)!r}; those known are {", ".join(_ARRAYS)}')
      return _from_arrays({name: archive[name] for name in archive})
  except FileNotFoundError:
    raise UserError(f'There is no file of class embeddings at {file}.') from None
  except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
    raise UserError(f'{file} has no class embeddings: {first_line(error)}.') from None


def _from_arrays(arrays: dict[str, np.ndarray]) -> ClassEmbeddings:
  """Raises `ValueError` for arrays that are not those of a `ClassEmbeddings`."""
  if 'embeddings' not in arrays:
    raise ValueError("it has no array 'embeddings'")
  embeddings = np.asarray(arrays['embeddings'], np.float32)
  if embeddings.ndim != 2 or not embeddings.size:
    raise ValueError(f'embeddings have the shape {embeddings.shape}, not (classes, features)')
  lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
  if not np.isfinite(lengths).all() or not lengths.all():
    raise ValueError('an embedding is zero or not finite')
  names = None
  if 'names' in arrays:
    names = tuple(str(name) for name in arrays['names'].tolist())
    if len(names) != len(embeddings):
      raise ValueError(f'there are {len(names)} names of {len(embeddings)} embeddings')
    if len(set(names)) < len(names):
      raise ValueError('two classes have the same name')
  scale, bias = float(arrays.get('logit_scale', _DEFAULT_SCALE)), arrays.get('logit_bias')
  bias = None if bias is None else float(bias)
  if not (0 < scale < math.inf and math.isfinite(bias or 0.0)):
    raise ValueError(f'logit_scale is {scale} and logit_bias {bias}; both must be finite numbers')
  return ClassEmbeddings(embeddings / lengths, names, scale, bias)
