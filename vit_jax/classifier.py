"""A model with its weights, ready to use: `vit_jax.load(…)`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image

from vit_jax.config import height_width
from vit_jax.data.augmentation import transforms
from vit_jax.data.decoding.images import decode_image, pillow_to_array
from vit_jax.errors import UserError
from vit_jax.files import user_path
from vit_jax.models import build
from vit_jax.models.pixels import scale_pixels
from vit_jax.models.resnet import BiTResNet
from vit_jax.weights import adapt, save
from vit_jax.weights.layouts import hugging_face
from vit_jax.weights.layouts.released import flatten
from vit_jax.weights.load import open_weights
from vit_jax.weights.metadata import DEFAULT_CROP_FRACTION, ModelMetadata

_SAVERS = {
  'npz': save.save_npz,
  'timm': save.save_timm,
  'huggingface': save.save_hugging_face,
  'model': save.save_model_folder,
}
LAYOUTS = (*_SAVERS, 'stablehlo')


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
  """A model, its parameters, and its preprocessing of images.

  Attributes:
    model: the linen module, a `VisionTransformer` or a `BiTResNet`.
    params: its parameter tree, float32.
    image_size: (height, width) in pixels.
    labels: a name for each class, or None when unknown.
    crop_fraction: the central share of an image that `preprocess` keeps, in (0, 1].
    loss: the training loss: 'softmax' (one class for each image) or 'sigmoid' (any number).
    report: what happened to the tensors of the file; None for a model that was not loaded.
  """

  model: build.Model
  params: Any
  image_size: tuple[int, int]
  labels: list[str] | None = None
  crop_fraction: float = DEFAULT_CROP_FRACTION
  loss: str = 'softmax'
  report: adapt.LoadReport | None = None

  def __repr__(self) -> str:
    fields = build.architecture(self.model)
    classes, (height, width) = fields.pop('num_classes'), self.image_size
    size = ', '.join(f'{name} {value}' for name, value in fields.items() if value)
    return (
      f'Classifier({type(self.model).__name__} of {build.count_parameters(self.params):,} '
      f'parameters: {size}; images {height}x{width}; {classes:,} classes)'
    )

  @property
  def channels(self) -> int:
    """The number of channels of an image: 3 (RGB), except for models trained on other images."""
    tensors = flatten(self.params)
    return tensors[build.input_kernel(tensors)].shape[2]

  @functools.cached_property
  def _apply(self):
    return jax.jit(lambda params, images: self.model.apply({'params': params}, images))

  def __call__(self, images: jax.typing.ArrayLike) -> jax.Array:
    """Returns the logits of images, or their features if the model has no head.

    Args:
      images: (B, H, W, channels) float in [-1, 1], else `ValueError`; H and W are `image_size`, a
        ResNet takes any.

    Returns:
      (B, num_classes) float32, or (B, D) features.
    """
    array: Any = images if hasattr(images, 'dtype') else np.asarray(images, np.float32)
    shape, dtype, (height, width) = array.shape, array.dtype, self.image_size
    size = shape[1:3] if isinstance(self.model, BiTResNet) else (height, width)
    if len(shape) != 4 or shape[1:] != (*size, self.channels) or dtype.kind in 'uib':
      raise ValueError(
        f'images are {dtype}{list(shape)}; pass floats in [-1, 1] of shape '
        f'(B, {height}, {width}, {self.channels}), as `preprocess` returns.'
      )
    return self._apply(self.params, array)

  def probabilities(self, images: jax.typing.ArrayLike) -> jax.Array:
    """As calling it, but returns probabilities, (B, num_classes) float32 in [0, 1]."""
    return {'softmax': jax.nn.softmax, 'sigmoid': jax.nn.sigmoid}[self.loss](self(images))

  def preprocess(
    self, image: Image.Image | bytes | np.ndarray, name: str = 'the image'
  ) -> np.ndarray:
    """Decodes, resizes, crops and scales an image as the model expects it.

    Args:
      image: a Pillow image, the bytes of a file, or (H, W, channels) uint8.
      name: of the image, for error messages.

    Returns:
      (*image_size, channels) float32 in [-1, 1].

    Raises:
      UserError: for bytes that are not an image.
      ValueError: for an array of another shape or dtype.
    """
    if isinstance(image, (bytes, bytearray)):
      image = decode_image(bytes(image), name, self.channels)
    elif isinstance(image, Image.Image):
      image = pillow_to_array(image, self.channels)
    shape = np.shape(image)
    if getattr(image, 'dtype', None) != np.uint8 or len(shape) != 3 or shape[2] != self.channels:
      raise ValueError(
        f'{name} is a {type(image).__name__} of shape {shape}; `preprocess` takes the bytes of a '
        f'file, a Pillow image, or uint8 of shape (H, W, {self.channels}).'
      )
    return scale_pixels(transforms.central_crop(image, self.image_size, self.crop_fraction))

  def save(
    self, path: epath.PathLike, layout: str | None = None, *, overwrite: bool = False
  ) -> None:
    """Writes the model, completely or not at all.

    Args:
      path: X.npz (released layout), X.safetensors (timm), X.stablehlo (a portable program with
        its weights), or a folder (of Transformers; of vit_jax for models that Transformers does
        not support).
      layout: 'npz', 'timm', 'stablehlo', 'huggingface' or 'model' (a vit_jax folder, for any
        model: params.npz, config.json, labels.txt); None: by the name of the path.
      overwrite: replace a file, or a folder that holds only a model.

    Raises:
      UserError: for a path that cannot be written or exists, a folder that holds other files, or
        a model that the layout does not support.
    """
    if layout is None:
      layout = save.layout_of(path)
      if layout == 'huggingface' and hugging_face.unsupported_feature(self.params):
        layout = 'model'
    path = user_path(path)
    if layout not in LAYOUTS:
      raise UserError(f'layout is {layout!r}; choose one of {", ".join(LAYOUTS)}.')
    save.check_target(path, layout, overwrite)
    if layout == 'stablehlo':
      return save.write_file(path, lambda temporary: temporary.write_bytes(self.to_stablehlo()))
    numerics = getattr(self.model, 'numerics', build.RELEASED_NUMERICS)  # a ResNet has none
    metadata = ModelMetadata(
      self.image_size,
      self.crop_fraction,
      self.loss,
      list(self.labels) if self.labels is not None and self.model.num_classes else None,
      gelu='tanh' if numerics.approximate_gelu else 'exact',
      layer_norm_epsilon=numerics.layer_norm_epsilon,
    )
    _SAVERS[layout](self.model, jax.device_get(self.params), metadata, path)

  def to_stablehlo(self) -> bytes:
    """Exports the model as a program: (b, H, W, channels) float32 -> (b, num_classes) float32.

    `jax.export.deserialize(data).call(images)` runs it on CPU, TPU or CUDA, for any batch size b,
    without this package.

    Raises:
      UserError: for 2 GiB of weights or more, which the format (flatbuffers) cannot store.
    """
    if 4 * build.count_parameters(self.params) >= 2**31 - 2**24:
      raise UserError('A .stablehlo file cannot store 2 GiB of weights or more; write an .npz.')
    batch = jax.export.symbolic_shape('b')[0]
    images = jax.ShapeDtypeStruct((batch, *self.image_size, self.channels), np.float32)
    params = jax.device_get(self.params)
    program = jax.jit(lambda images: self.model.apply({'params': params}, images))
    exported = jax.export.export(program, platforms=('cpu', 'tpu', 'cuda'))(images)
    return bytes(exported.serialize())


def load(
  source: epath.PathLike,
  image_size: int | Sequence[int] | None = None,
  num_classes: int | None = None,
  *,
  keep_pre_logits: bool = False,
  position_resize: str = 'corners',
  num_heads: int | None = None,
  gelu: str | None = None,
  shardings: Callable[[Any], Any] | None = None,
) -> Classifier:
  """Loads a model; its tensors determine depth, width, heads, patch size and head.

  Args:
    source: a published name ('augreg/…'), an .npz file in any released layout, a .safetensors
      file or state dict of timm or Transformers, a folder of Transformers, or the workdir, the
      model/ folder or an Orbax checkpoint of a run.
    image_size: pixels, int or (height, width), to which position embeddings are resized; None:
      the size that the weights were trained at.
    num_classes: replaces the head (and `pre_logits`) by a zero-initialized one of that size;
      0 removes the head, so that the model returns features.
    keep_pre_logits: keep that layer under a new head.
    position_resize: 'corners', as in the released code, or 'half_pixel'.
    num_heads: only for PyTorch files of an unpublished width that do not store it.
    gelu: 'tanh' or 'exact', for files that do not store it; the default for timm's is 'tanh',
      with which the released weights were trained.
    shardings: from the abstract parameter tree to a tree of shardings, for a model that is
      sharded over devices; each device gets only its shard.

  Raises:
    UserError: for a source that is missing, damaged or not a supported model, or whose patches
      do not tile `image_size`.
  """
  for name, value, least in (('num_classes', num_classes, 0), ('num_heads', num_heads, 1)):
    if value is not None and not (type(value) is int and least <= value <= build.MAX_CLASSES):
      raise UserError(f'{name} is {value!r}; it must be from {least} to {build.MAX_CLASSES:,}.')
  size = None if image_size is None else height_width(image_size)
  weights = open_weights(source, size, num_heads, gelu)
  heads = getattr(weights.model, 'num_heads', None)
  if num_heads is not None and heads not in (None, num_heads):
    raise UserError(f'{weights.name} has {heads} heads, but num_heads is {num_heads}.')
  model, size = weights.model, size or weights.image_size
  labels = weights.metadata.labels if model.num_classes else None
  if num_classes is not None:
    model, labels = model.clone(num_classes=num_classes), None
    if num_classes and getattr(model, 'pre_logits', 0) and not keep_pre_logits:
      model = model.clone(pre_logits=0)
  channels = weights.tensors[build.input_kernel(weights.tensors)].shape[2]
  new_head, image_shape = num_classes is not None, (*size, channels)
  tensors, report = adapt.adapt_weights(weights, model, image_shape, new_head, position_resize)
  sharding_tree = shardings and shardings(build.abstract_params(model, size, channels))
  params = adapt.read_params(tensors, weights.name, sharding_tree)
  metadata = weights.metadata
  return Classifier(model, params, size, labels, metadata.crop_fraction, metadata.loss, report)
