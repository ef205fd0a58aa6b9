"""A model with its weights, ready to use: `vit_jax.load(…)`."""

import dataclasses
import functools
import os
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
from vit_jax.models import build
from vit_jax.models.pixels import scale_pixels
from vit_jax.models.resnet import BiTResNet
from vit_jax.weights import adapt, save
from vit_jax.weights.initialize import adapt_checkpoint
from vit_jax.weights.layouts.released import flatten
from vit_jax.weights.layouts.torch_export import unlike_hugging_face
from vit_jax.weights.load import open_checkpoint
from vit_jax.weights.metadata import DEFAULT_CROP_FRACTION, ModelMetadata

_LAYOUTS = {
  'npz': save.save_npz,
  'timm': save.save_timm,
  'huggingface': save.save_hugging_face,
  'model': save.save_model_folder,
}
_FOREIGN = {
  '.bin',
  '.ckpt',
  '.gguf',
  '.gz',
  '.h5',
  '.json',
  '.onnx',
  '.pb',
  '.pkl',
  '.pt',
  '.pth',
  '.tflite',
  '.zip',
}
_MAX_CLASSES = 2**24
_LAYOUT_OF_SUFFIX = {'.npz': 'npz', '.safetensors': 'timm', '.stablehlo': 'stablehlo'}


def layout_of(path: epath.PathLike) -> str:
  """The layout that the name of a target means, as `Classifier.save` takes it.

  Raises:
    UserError: for a name that is empty or means a kind of file that is not written.
  """
  name = os.fspath(path)
  suffixes = [suffix.lower() for suffix in epath.Path(name).suffixes]
  if not name or _FOREIGN & set(suffixes[-1:]) or set(suffixes[:-1]) & _LAYOUT_OF_SUFFIX.keys():
    raise UserError(
      f'{name!r} is no name of a target; there are X.npz, X.safetensors (which PyTorch reads), '
      'X.stablehlo, and folders.'
    )
  return _LAYOUT_OF_SUFFIX.get(suffixes[-1] if suffixes else '', 'huggingface')


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
  """A model, its parameters, and how images come into it.

  Attributes:
    model: the linen module, a `VisionTransformer` or a `BiTResNet`.
    params: its parameter tree, float32.
    image_size: (height, width) in pixels.
    labels: a name for each class, or None when the file says none.
    crop_fraction: the central part of an image that `preprocess` keeps, in (0, 1].
    loss: 'softmax' (one class an image) or 'sigmoid' (any number), as it was trained.
    report: what became of the tensors of the file; None for a model that was not loaded.
  """

  model: build.Model
  params: Any
  image_size: tuple[int, int]
  labels: list[str] | None = None
  crop_fraction: float = DEFAULT_CROP_FRACTION
  loss: str = 'softmax'
  report: adapt.Report | None = None

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
    """Of the images: 3 (RGB) but for models trained on others."""
    tensors = flatten(self.params)
    return tensors[build.input_kernel(tensors)].shape[2]

  @functools.cached_property
  def _apply(self):
    return jax.jit(lambda params, images: self.model.apply({'params': params}, images))

  def __call__(self, images: jax.typing.ArrayLike) -> jax.Array:
    """(B, H, W, 3) float in [-1, 1] -> (B, num_classes) float32 logits, or features without one.

    H and W are `image_size`; a ResNet takes any.

    Raises:
      ValueError: for another shape or dtype.
    """
    images = images if hasattr(images, 'dtype') else np.asarray(images, np.float32)
    shape, dtype = images.shape, images.dtype
    any_size = isinstance(self.model, BiTResNet) and len(shape) == 4
    size = shape[1:3] if any_size else self.image_size
    if len(shape) != 4 or shape[1:] != (*size, self.channels) or dtype.kind in 'uib':
      raise ValueError(
        f'images are {dtype}{list(shape)}; this model takes floats in [-1, 1] of shape '
        f'(B, {self.image_size[0]}, {self.image_size[1]}, {self.channels}), as `preprocess` '
        'gives them.'
      )
    return self._apply(self.params, images)

  def probabilities(self, images: jax.typing.ArrayLike) -> jax.Array:
    """(B, H, W, 3) float in [-1, 1] -> (B, num_classes) float32 in [0, 1]."""
    return {'softmax': jax.nn.softmax, 'sigmoid': jax.nn.sigmoid}[self.loss](self(images))

  def preprocess(
    self, image: Image.Image | bytes | np.ndarray, name: str = 'the image'
  ) -> np.ndarray:
    """A Pillow image, the bytes of a file, or (H, W, 3) uint8 -> (*image_size, 3) in [-1, 1].

    Raises:
      UserError: when the bytes are no image; the message calls it `name`.
      ValueError: for an array of another shape or dtype.
    """
    if isinstance(image, (bytes, bytearray)):
      image = decode_image(bytes(image), name, self.channels)
    elif isinstance(image, Image.Image):
      image = pillow_to_array(image, self.channels)
    shape = np.shape(image)
    if getattr(image, 'dtype', None) != np.uint8 or len(shape) != 3 or shape[2] != self.channels:
      raise ValueError(
        f'{name} is a {type(image).__name__} of shape {shape}; `preprocess` takes '
        f'bytes of a file, a Pillow image, or uint8 of shape (H, W, {self.channels}).'
      )
    image = transforms.central_crop(image, self.image_size, self.crop_fraction)
    return scale_pixels(image)

  def save(self, path: epath.PathLike, layout: str | None = None) -> None:
    """Writes the model, whole or not at all.

    Args:
      path: X.npz (published layout), X.safetensors (timm), X.stablehlo (a portable program with
        its weights), or a folder (of Transformers; of our own, where those cannot hold the model).
      layout: 'npz', 'timm', 'stablehlo', 'huggingface' or 'model' (a folder of our own, for any
        model: params.npz, config.json, labels.txt), when the path does not say it.

    Raises:
      UserError: for a path that cannot be written, a folder that holds other files, or a model
        that the layout cannot hold.
    """
    if layout is None:
      layout = layout_of(path)
      if layout == 'huggingface' and unlike_hugging_face(self.params):
        layout = 'model'
    path = epath.Path(path).expanduser()
    if layout == 'stablehlo':
      save.write_file(path, lambda part: part.write_bytes(self.to_stablehlo()))
    elif layout in _LAYOUTS:
      has_labels = self.labels is not None and self.model.num_classes
      labels = list(self.labels) if has_labels else None
      about = ModelMetadata(self.image_size, self.crop_fraction, self.loss, labels)
      if not isinstance(self.model, BiTResNet):
        numerics = self.model.numerics
        about = dataclasses.replace(
          about,
          gelu='tanh' if numerics.approximate_gelu else 'exact',
          layer_norm_epsilon=numerics.layer_norm_epsilon,
        )
      _LAYOUTS[layout](save.Saved(self.model, jax.device_get(self.params), about), path)
    else:
      raise UserError(f'layout is {layout!r}; choose one of {", ".join((*_LAYOUTS, "stablehlo"))}.')

  def to_stablehlo(self) -> bytes:
    """The model as a portable program: (b, H, W, 3) float32 -> (b, num_classes) float32.

    `jax.export.deserialize(data).call(images)` runs it on CPU, TPU or CUDA, for any b, without
    this package.

    Raises:
      UserError: for weights of 2 GiB or more, which the format (flatbuffers) cannot hold.
    """
    if 4 * build.count_parameters(self.params) >= 2**31 - 2**24:
      raise UserError('A .stablehlo file holds less than 2 GiB of weights; write an .npz.')
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
  """Loads a model; depth, width, heads, patch and head are read off its tensors.

  Args:
    source: a released name ('augreg/…'), an .npz file in any published layout, a .safetensors
      file or state dict of timm or Transformers, a folder of Transformers, or the workdir, the
      model/ folder or an Orbax checkpoint of a run.
    image_size: pixels, int or (height, width); position embeddings are resized to it. None
      keeps the size the weights were trained at.
    num_classes: a new, zero-initialised head of that size takes the place of the old one (and
      of `pre_logits`); 0 leaves the head away, so that features come out.
    keep_pre_logits: keep that layer under a new head.
    position_resize: 'corners', as the released code resizes, or 'half_pixel'.
    num_heads: only for files of PyTorch that do not tell it, of an unpublished width.
    gelu: 'tanh' or 'exact', where the files do not tell it: timm's are taken for 'tanh', with
      which the released weights were trained.
    shardings: from the abstract parameter tree to a tree of shardings, for a model that is
      split over devices; a device gets no more than its part.

  Returns:
    A `Classifier`; call it on images. Its `report` tells what became of the tensors.

  Raises:
    UserError: for a source that is missing or damaged, that is no model known here, or whose
      patches do not tile `image_size`.
  """
  for name, value, least in (('num_classes', num_classes, 0), ('num_heads', num_heads, 1)):
    if value is not None and not (type(value) is int and least <= value <= _MAX_CLASSES):
      raise UserError(f'{name} is {value!r}; it takes a number from {least} to {_MAX_CLASSES:,}.')
  size = None if image_size is None else height_width(image_size)
  found = open_checkpoint(source, size, num_heads, gelu)
  heads = getattr(found.model, 'num_heads', None)
  if num_heads is not None and heads not in (None, num_heads):
    raise UserError(f'{found.name} has {heads} heads, where num_heads says {num_heads}.')
  model, size = found.model, size or found.image_size
  labels = found.about.labels if model.num_classes else None
  if num_classes is not None:
    model, labels = model.clone(num_classes=num_classes), None
    if num_classes and getattr(model, 'pre_logits', 0) and not keep_pre_logits:
      model = model.clone(pre_logits=0)
  channels = found.tensors[build.input_kernel(found.tensors)].shape[2]
  new_head = num_classes is not None
  tensors, report = adapt_checkpoint(
    found, model, (*size, channels), new_head=new_head, position_resize=position_resize
  )
  placed = shardings and shardings(build.abstract_params(model, size, channels))
  params = adapt.read_params(tensors, found.name, placed)
  about = found.about
  return Classifier(model, params, size, labels, about.crop_fraction, about.loss, report)
