"""A model with its weights and the preprocessing of its images: `Classifier`."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vit_jax import classifier_card
from vit_jax.config import Preprocessing, height_width
from vit_jax.data.augmentation.preprocessing import preprocess
from vit_jax.data.decoding.image_input import ImageInput, is_single, read_pixels
from vit_jax.errors import UserError
from vit_jax.files import user_path
from vit_jax.models import build, features, inference
from vit_jax.models.attention.detr import DETR
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.pixels import scale_pixels
from vit_jax.models.resnet import BiTResNet
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights import adapt, save
from vit_jax.weights.layouts import hugging_face_classes
from vit_jax.weights.layouts.released import flatten
from vit_jax.weights.metadata import ModelMetadata, read_labels
from vit_jax.weights.stablehlo import export

_SAVERS = {
  'npz': save.save_npz,
  'timm': save.save_timm,
  'huggingface': save.save_hugging_face,
  'model': save.save_model_folder,
}
_USUAL = (('position_embedding', '1d'), ('position_entry', 'stem'))  # not worth showing
LAYOUTS = (*_SAVERS, 'stablehlo')
Tokens = jax.Array | tuple[jax.Array, jax.Array]  # of the patches; or they and the prefix tokens


_last_tokens = jax.jit(features.last_tokens, static_argnames='model')
_block_outputs = jax.jit(features.block_outputs, static_argnames=('model', 'layers', 'norm'))


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
  """A model, its parameters, and its preprocessing of images.

  It is a pytree whose leaves are the parameters: pass it through `jax.jit`, differentiate with
  respect to it, map over it. It can be pickled.

  Attributes:
    model: the linen module, a `VisionTransformer`, `MlpMixer`, `BiTResNet` or `DETR`.
    params: its parameter tree, float32.
    image_size: (height, width) in pixels.
    labels: a name for each class, or None when unknown.
    preprocessing: how `preprocess` resizes and crops an image.
    loss: the training loss: 'softmax' (one class for each image) or 'sigmoid' (any number).
    position_resize: how the family of the model resizes position embeddings.
    license: terms of the weights that their owner wants to be named; None: not known.
    report: what happened to the tensors of the file; None for a model that was not loaded.
  """

  model: build.Model
  params: Any
  image_size: tuple[int, int]
  labels: list[str] | None = None
  preprocessing: Preprocessing = Preprocessing()
  loss: str = 'softmax'
  position_resize: str = 'corners'
  license: str | None = None
  report: adapt.LoadReport | None = None

  def tree_flatten(self) -> tuple[tuple[Any], tuple[Any, ...]]:
    """(the parameters), and what is static, for JAX; without the report."""
    labels = None if self.labels is None else tuple(self.labels)
    rest = self.preprocessing, self.loss, self.position_resize, self.license
    return (self.params,), (self.model, self.image_size, labels, *rest)

  @classmethod
  def tree_unflatten(cls, static: tuple[Any, ...], children: tuple[Any]) -> 'Classifier':
    """The inverse of `tree_flatten`."""
    model, image_size, labels, *rest = static
    labels = None if labels is None else list(labels)
    return cls(model, children[0], image_size, labels, *rest)

  def _architecture(self) -> list[tuple[str, Any]]:
    """The names and values of what is worth showing, without the number of classes."""
    items = build.architecture(self.model).items()
    return [item for item in items if item[1] and item not in _USUAL and item[0] != 'num_classes']

  def __repr__(self) -> str:
    classes, (height, width) = self.model.num_classes, self.image_size
    size = ', '.join(f'{name} {value}' for name, value in self._architecture())
    return (
      f'Classifier({type(self.model).__name__} of {build.count_parameters(self.params):,} '
      f'parameters: {size}; images {height}x{width}; {classes:,} classes)'
    )

  def _repr_html_(self) -> str:
    """What notebooks show: the architecture, the preprocessing, the classes, what was loaded."""
    height, width = self.image_size
    rows = [
      *((name.replace('_', ' '), value) for name, value in self._architecture()),
      ('computes in', build.dtype_name(self.model)),
      ('images', f'{height} × {width} pixels, {self.channels} channels'),
      ('preprocessing', self.preprocessing.summary()),
      ('classes', f'{self.model.num_classes:,}' if self.model.num_classes else 'no head'),
    ]
    kind, parameters = type(self.model).__name__, build.count_parameters(self.params)
    return classifier_card.render(kind, parameters, rows, self.labels, self.report)

  @property
  def channels(self) -> int:
    """The number of channels of an image: 3 (RGB), except for models trained on other images."""
    tensors = flatten(self.params)
    return tensors[build.input_kernel(tensors)].shape[2]

  # --- images ---------------------------------------------------------------------------------

  def preprocess(self, images: ImageInput | Iterable[ImageInput]) -> np.ndarray:
    """Decodes, resizes, crops and scales one or more images as the model expects it.

    Args:
      images: one image or several. An image is a path, the bytes of a file, a Pillow image, or an
        array or tensor of shape (H, W, C), (H, W) or (C, H, W), uint8 or float in [0, 1]. The
        EXIF orientation of files and Pillow images is obeyed.

    Returns:
      (*image_size, channels) float32 in [-1, 1]; (B, *image_size, channels) for several images.

    Raises:
      UserError: for a file or bytes that are not an image.
      ValueError: for an array of another shape, dtype or range.
    """
    if isinstance(images, Iterable) and not is_single(images):
      several = [self.preprocess(image) for image in images]
      shape = (len(several), *self.image_size, self.channels)
      return np.asarray(several, np.float32).reshape(shape)
    pixels = read_pixels(images, self.channels)
    return scale_pixels(preprocess(pixels, self.image_size, self.preprocessing))

  def check_images(self, images: jax.typing.ArrayLike) -> Any:
    """Returns them as an array; raises `ValueError` unless the model takes them."""
    array: Any = images if hasattr(images, 'dtype') else np.asarray(images, np.float32)
    shape, dtype, (height, width) = array.shape, array.dtype, self.image_size
    size = shape[1:3] if isinstance(self.model, BiTResNet | DETR) else (height, width)
    if len(shape) != 4 or shape[1:] != (*size, self.channels) or dtype.kind in 'uib':
      raise ValueError(
        f'images are {dtype}{list(shape)}; pass floats in [-1, 1] of shape '
        f'(B, {height}, {width}, {self.channels}), as `preprocess` returns.'
      )
    return array

  # --- outputs --------------------------------------------------------------------------------

  def __call__(self, images: jax.typing.ArrayLike) -> jax.Array:
    """Returns the logits of images, or their features if the model has no head.

    Args:
      images: (B, H, W, channels) float in [-1, 1], else `ValueError`; H and W are `image_size`, a
        ResNet or DETR takes any.

    Returns:
      (B, num_classes) float32, or (B, D) features.
    """
    return inference.logits(self.model, self.params, self.check_images(images))

  def probabilities(self, images: jax.typing.ArrayLike) -> jax.Array:
    """As calling it, but returns probabilities, (B, num_classes) float32 in [0, 1]."""
    return {'softmax': jax.nn.softmax, 'sigmoid': jax.nn.sigmoid}[self.loss](self(images))

  def predict(
    self, images: ImageInput | Iterable[ImageInput], top_k: int = 5, batch_size: int = 32
  ) -> list[list[tuple[str, float]]]:
    """Classifies images, a batch at a time.

    Args:
      images: one image or several, as for `preprocess`.
      top_k: classes to return for each; all of them if there are fewer.
      batch_size: images at a time; changes no result.

    Returns:
      For each image [(label, probability), …], the most probable class first. Without labels,
      class 7 is called 'class 7'.

    Raises:
      UserError, ValueError: as `preprocess`; for a model without a head.
    """
    if top_k < 1 or not 1 <= batch_size <= 2**16:
      raise ValueError(f'top_k is {top_k} and batch_size {batch_size}; both must be positive.')
    if not self.model.num_classes:
      raise UserError('The model has no head, so it predicts no classes; load one that has.')
    several: Any = [images] if is_single(images) else images
    queue = iter(several)
    predictions = []
    while batch := list(itertools.islice(queue, batch_size)):
      pixels = self.preprocess(batch)
      # Padded, so that all batches are one compilation; a single, smaller one is its own.
      padding = batch_size - len(batch) if predictions else 0
      pixels = np.pad(pixels, ((0, padding), (0, 0), (0, 0), (0, 0)))
      rows = np.asarray(self.probabilities(pixels))[: len(batch)]
      predictions += [[top[1:] for top in self.top_classes(row, top_k)] for row in rows]
    return predictions

  def top_classes(self, probabilities: np.ndarray, k: int) -> list[tuple[int, str, float]]:
    """[(index, label, probability), …] of the `k` most probable classes of one image, (C,)."""
    order = np.argsort(-probabilities, kind='stable')[:k]
    return [(int(i), self.label(int(i)), float(probabilities[i])) for i in order]

  def label(self, index: int) -> str:
    """The name of a class; 'class 7' if it has none."""
    return self.labels[index] if self.labels else f'class {index}'

  def features(self, images: jax.typing.ArrayLike) -> jax.Array:
    """The input of the head, (B, D) float32, after `pre_logits` where the model has it.

    Args:
      images: as for calling it.
    """
    return inference.pooled_features(self.model, self.params, self.check_images(images))

  def tokens(self, images: jax.typing.ArrayLike, *, return_prefix_tokens: bool = False) -> Tokens:
    """The tokens of the patches after the last LayerNorm, row by row.

    Args:
      images: as for calling it.
      return_prefix_tokens: return the class token apart, too.

    Returns:
      (B, N, D); or that and (B, 1, D), where the second axis has 0 entries without a class token.

    Raises:
      ValueError: for a ResNet or DETR, which has no patches.
    """
    model, array = self._token_model(), self.check_images(images)
    return self._split(_last_tokens(model, self.params, array), return_prefix_tokens)

  def intermediates(
    self,
    images: jax.typing.ArrayLike,
    layers: Sequence[int],
    *,
    norm: bool = False,
    return_prefix_tokens: bool = False,
  ) -> dict[int, Tokens]:
    """The tokens of the patches after some of the blocks.

    Args:
      images: as for calling it.
      layers: numbers of blocks: 0 is the first, -1 the last.
      norm: apply the last LayerNorm to each.
      return_prefix_tokens: as in `tokens`.

    Returns:
      {layer: (B, N, D)}, with the keys as in `layers`.

    Raises:
      ValueError: for a block that the model does not have, or for a ResNet or DETR.
    """
    model, array = self._token_model(), self.check_images(images)
    for layer in layers:
      if not -model.depth <= layer < model.depth:
        raise ValueError(f'There is no layer {layer}; the model has {model.depth} blocks.')
    outputs = _block_outputs(model, self.params, array, tuple(layers), norm)
    return {layer: self._split(outputs[layer], return_prefix_tokens) for layer in layers}

  def _token_model(self) -> VisionTransformer | MlpMixer:
    if not isinstance(self.model, VisionTransformer | MlpMixer):
      name = 'DETR' if isinstance(self.model, DETR) else 'ResNet'
      raise ValueError(f'The model is a {name}, which has no tokens of patches; use `features`.')
    return self.model

  def _split(self, tokens: jax.Array, return_prefix_tokens: bool) -> Tokens:
    count = features.num_prefix_tokens(self._token_model())
    patches = tokens[:, count:].astype(jnp.float32)
    return (patches, tokens[:, :count].astype(jnp.float32)) if return_prefix_tokens else patches

  # --- changes --------------------------------------------------------------------------------

  def with_head(self, num_classes: int, labels: Sequence[str] | None = None) -> 'Classifier':
    """The model with a new, zero-initialized head, without `pre_logits` (Section 3.2).

    Args:
      num_classes: of the head; 0: none, so that calling the model returns its features.
      labels: a name for each class.

    Raises:
      UserError: for another number of labels, or a number of classes that no head has.
    """
    model, size = adapt.with_new_head(self.model, num_classes), self.image_size
    names = None if labels is None else read_labels(labels, num_classes)
    params = adapt.adapt_params(self.params, model, size, size, True, 'corners')
    return dataclasses.replace(self, model=model, params=params, labels=names, report=None)

  def at_size(self, image_size: int | Sequence[int], position_resize: str = 'auto') -> 'Classifier':
    """The model for images of another size, with resized position embeddings (Section 3.2).

    Args:
      image_size: pixels, int or (height, width).
      position_resize: as in `vit_jax.load`.

    Raises:
      UserError: for a size that the patches do not tile.
    """
    size = height_width(image_size)
    method = self.position_resize if position_resize == 'auto' else position_resize
    params = adapt.adapt_params(self.params, self.model, self.image_size, size, False, method)
    return dataclasses.replace(self, params=params, image_size=size, report=None)

  # --- files ----------------------------------------------------------------------------------

  @property
  def metadata(self) -> ModelMetadata:
    """What is stored beside the tensors."""
    numerics = getattr(self.model, 'numerics', build.RELEASED_NUMERICS)  # a ResNet has none
    return ModelMetadata(
      self.image_size,
      self.preprocessing,
      self.loss,
      list(self.labels) if self.labels is not None and self.model.num_classes else None,
      gelu=numerics.gelu,
      layer_norm_epsilon=numerics.layer_norm_epsilon,
      mean=getattr(self.model, 'pixel_mean', ()) or None,
      std=getattr(self.model, 'pixel_std', ()) or None,
      dtype=build.dtype_name(self.model),
      position_resize=self.position_resize,
      license=self.license,
    )

  def save(
    self, path: epath.PathLike, layout: str | None = None, *, overwrite: bool = False
  ) -> None:
    """Writes the model, completely or not at all.

    Args:
      path: X.npz (released layout), X.safetensors (timm), X.stablehlo (a portable program with
        its weights), or a folder (of Transformers; of vit_jax for models that Transformers does
        not support).
      layout: 'npz', 'timm', 'stablehlo', 'huggingface' or 'model' (a vit_jax folder, for any
        model: params.npz, config.json, labels.txt); None: by the name of the path. 'timm' with
        another path than X.safetensors writes a folder, for timm's `local-dir:`.
      overwrite: replace a file, or a folder that holds only a model.

    Raises:
      UserError: for a path that cannot be written or exists, a folder that holds other files, or
        a model that the layout does not support.
    """
    if layout is None:
      layout = save.layout_of(path)
      if layout == 'huggingface' and hugging_face_classes.unsupported_feature(
        self.model, self.image_size
      ):
        layout = 'model'
    path = user_path(path)
    if layout not in LAYOUTS:
      raise UserError(f'layout is {layout!r}; choose one of {", ".join(LAYOUTS)}.')
    save.check_target(path, layout, overwrite)
    if layout == 'stablehlo':
      return save.write_file(path, lambda temporary: temporary.write_bytes(self.to_stablehlo()))
    _SAVERS[layout](self.model, jax.device_get(self.params), self.metadata, path)

  def to_stablehlo(self) -> bytes:
    """The model as a portable program; see `weights.stablehlo.export`."""
    return export(self.model, self.params, self.metadata, self.channels)
