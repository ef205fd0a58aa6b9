"""A model with its weights, ready to use: `vit_jax.load(…)`."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image

from vit_jax.checkpoints import released
from vit_jax.config import image_size as pixels
from vit_jax.data import transforms
from vit_jax.data.images import decode_image, to_rgb
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.vit import VisionTransformer
from vit_jax.training.losses import LOSSES

DEFAULT_CROP_FRACTION = 0.875  # shorter side to 256, centre 224
_FILES = ('params.npz', 'config.json', 'labels.txt')


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
  """A Vision Transformer, its parameters, and how images come into it.

  Attributes:
    model: the linen module.
    params: its parameter tree, float32.
    image_size: (height, width) in pixels.
    labels: a name for each class, or None when the file says none.
    crop_fraction: the central part of an image that `preprocess` keeps, in (0, 1].
    loss: 'softmax' (one class an image) or 'sigmoid' (any number), as it was trained.
  """

  model: VisionTransformer
  params: Any
  image_size: tuple[int, int]
  labels: list[str] | None = None
  crop_fraction: float = DEFAULT_CROP_FRACTION
  loss: str = 'softmax'

  def __repr__(self) -> str:
    model, (height, width) = self.model, self.image_size
    return (
        f'Classifier({build.count_parameters(self.params):,} parameters: depth {model.depth}, '
        f'width {model.width}, {model.num_heads} heads, patches of {model.patch_size}; '
        f'images {height}x{width}; {model.num_classes:,} classes)'
    )

  @functools.cached_property
  def _apply(self):
    return jax.jit(lambda params, images: self.model.apply({'params': params}, images))

  def __call__(self, images: jax.typing.ArrayLike) -> jax.Array:
    """(B, H, W, 3) float in [-1, 1] -> (B, num_classes) float32 logits, or features without one.

    Raises:
      ValueError: for another shape or dtype.
    """
    shape, dtype = np.shape(images), getattr(images, 'dtype', np.dtype(float))
    if len(shape) != 4 or shape[1:] != (*self.image_size, 3) or dtype.kind in 'uib':
      raise ValueError(
          f'images are {dtype}{list(shape)}; this model takes floats in [-1, 1] of shape '
          f'(B, {self.image_size[0]}, {self.image_size[1]}, 3), as `preprocess` gives them.'
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
    """
    if isinstance(image, bytes):
      image = decode_image(image, name)
    elif isinstance(image, Image.Image):
      image = np.asarray(to_rgb(image))
    image = transforms.central_crop(image, self.image_size, self.crop_fraction)
    return image.astype(np.float32) / 127.5 - 1.0

  def save(self, path: epath.PathLike) -> None:
    """Writes one .npz file in the released layout, or a folder that has labels and sizes, too."""
    path = epath.Path(path).expanduser()
    if path.suffix == '.npz':
      path.parent.mkdir(parents=True, exist_ok=True)
      part = path.with_name(path.name + '.part')
      released.write_npz(part, self.params)
      part.replace(path)
    else:
      self._save_folder(path)

  def _save_folder(self, folder: epath.Path) -> None:
    check_replaceable(folder)
    part = folder.with_name(folder.name + '.part')
    if part.exists():
      part.rmtree()
    part.mkdir(parents=True)
    released.write_npz(part / 'params.npz', self.params)
    labels = self.labels if self.model.num_classes else None
    model = {name: getattr(self.model, name) for name in build.ARCHITECTURE}
    about = {
        'model': model,
        'image_size': self.image_size,
        'crop_fraction': self.crop_fraction,
        'loss': self.loss,
    }
    (part / 'config.json').write_text(json.dumps(about, indent=2) + '\n')
    if labels is not None:
      lines = [' '.join(label.splitlines()) + '\n' for label in labels]
      (part / 'labels.txt').write_text(''.join(lines))
    if folder.exists():
      folder.rmtree()
    part.rename(folder)


def check_replaceable(folder: epath.Path) -> None:
  """Raises `UserError` unless `folder` is free for a model, or holds nothing but one."""
  if folder.exists() and not folder.is_dir():
    raise UserError(f'{folder} is a file; a model is a folder.')
  unknown = {child.name for child in folder.iterdir()} - set(_FILES) if folder.exists() else ()
  if unknown:
    raise UserError(
        f'{folder} holds files that are no model ({", ".join(sorted(unknown)[:3])}) and would be '
        'replaced; move them away.'
    )


def _find(source: epath.PathLike) -> epath.Path:
  """The npz file that `source` means: itself, or the one of a model/ folder or workdir."""
  path = epath.Path(source).expanduser()
  if path.is_dir():
    for candidate in (path / 'params.npz', path / 'model' / 'params.npz'):
      if candidate.exists():
        return candidate
    raise UserError(f'{path} holds no model: neither params.npz nor model/params.npz is there.')
  if not path.exists():
    raise UserError(
        f'There is no model at {path}; it takes an .npz file or the model/ folder of a run.'
    )
  return path


def _read_about(npz: epath.Path) -> tuple[dict[str, Any], list[str] | None]:
  """What a model/ folder says besides the tensors: config.json and the labels."""
  folder, about, labels = npz.parent, {}, None
  if npz.name != 'params.npz':
    return about, labels
  try:
    if (folder / 'config.json').exists():
      about = json.loads((folder / 'config.json').read_text())
      about = {name: about[name] for name in ('image_size', 'crop_fraction', 'loss')}
      about['image_size'] = pixels(about['image_size'])
      if about['loss'] not in LOSSES or not 0 < about['crop_fraction'] <= 1:
        raise ValueError(about)
    if (folder / 'labels.txt').exists():
      labels = (folder / 'labels.txt').read_text().splitlines()
  except (ValueError, KeyError, TypeError, UserError) as error:
    raise UserError(f'{folder}/config.json or labels.txt is damaged ({error!r}).') from None
  return about, labels


@dataclasses.dataclass(frozen=True)
class _File:
  """What is on disk: tensors, the architecture they have, and what is said about them."""

  name: str
  tensors: dict[str, np.ndarray]
  model: VisionTransformer
  grid: tuple[int, int]
  image_size: tuple[int, int]
  crop_fraction: float
  loss: str
  labels: list[str] | None

  def params_for(
      self, model: VisionTransformer, image_size: tuple[int, int], new_head: bool
  ) -> Any:
    """The tensors as parameters of `model` for images of that size."""
    build.check_image_size(image_size, model.patch_size, 'image_size')
    return released.fit_to_model(
        self.tensors,
        build.abstract_params(model, image_size),
        old_grid=self.grid,
        new_grid=tuple(side // model.patch_size for side in image_size),
        new_head=new_head,
        source=self.name,
    )


def _read(source: epath.PathLike) -> _File:
  npz = _find(source)
  tensors = released.read_npz(npz)
  about, labels = _read_about(npz)
  model = build.model_from_tensors(tensors, str(npz))
  positions = tensors.get('Transformer/posembed_input/pos_embedding')
  if positions is None or positions.ndim != 3:
    raise UserError(f'{npz} has no position embeddings of shape (1, N, D).')
  patches = positions.shape[1] - (model.pool == 'token')
  if 'image_size' in about:
    grid = tuple(side // model.patch_size for side in about['image_size'])
    if grid[0] * grid[1] != patches:
      raise UserError(f'{npz.parent}/config.json: image_size is not that of the {patches} patches.')
  else:
    grid = released.square_grid(patches, str(npz))
  if labels is not None and len(labels) != model.num_classes:
    raise UserError(
        f'{npz.parent}/labels.txt has {len(labels)} names, the head {model.num_classes} classes.'
    )
  return _File(
      name=str(npz),
      tensors=tensors,
      model=model,
      grid=grid,
      image_size=about.get('image_size', tuple(side * model.patch_size for side in grid)),
      crop_fraction=about.get('crop_fraction', DEFAULT_CROP_FRACTION),
      loss=about.get('loss', 'softmax'),
      labels=labels,
  )


def load_params(
    source: epath.PathLike, model: VisionTransformer, image_size: tuple[int, int]
) -> Any:
  """The weights of `source` to start training `model` from, with a new head (Section 3.2).

  Args:
    source: as in `load`.
    model: must be of the same architecture, but for the head.
    image_size: (height, width); position embeddings are resized to it.

  Raises:
    UserError: as `load`, and for another architecture.
  """
  file = _read(source)
  differing = [
      f'{name} is {getattr(file.model, name)} there, {getattr(model, name)} in config.model'
      for name in build.ARCHITECTURE
      if getattr(file.model, name) != getattr(model, name)
      and name not in ('num_classes', 'pre_logits')
  ]
  if differing:
    raise UserError(f'{source} is of another architecture: {"; ".join(differing)}.')
  return file.params_for(model, image_size, new_head=True)


def load(
    source: epath.PathLike,
    image_size: int | Sequence[int] | None = None,
    num_classes: int | None = None,
) -> Classifier:
  """Loads a model; depth, width, heads, patch and head are read off its tensors.

  Args:
    source: an .npz file in the released layout, the `model/` folder of a run, or its workdir.
    image_size: pixels, int or (height, width); position embeddings are resized to it. None
      keeps the size the weights were trained at.
    num_classes: a new, zero-initialised head of that size takes the place of the old one (and
      of `pre_logits`); 0 leaves the head away, so that features come out.

  Returns:
    A `Classifier`; call it on images.

  Raises:
    UserError: for a source that is missing or damaged, that is no Vision Transformer, or whose
      patches do not tile `image_size`.
  """
  file = _read(source)
  size = file.image_size if image_size is None else pixels(image_size)
  if num_classes is not None and not (type(num_classes) is int and num_classes >= 0):
    raise UserError(f'num_classes is {num_classes!r}; it takes a number of classes, or 0.')
  model, labels = file.model, file.labels
  if num_classes is not None:
    pre_logits = 0 if num_classes else model.pre_logits
    model, labels = model.clone(num_classes=num_classes, pre_logits=pre_logits), None
  params = file.params_for(model, size, new_head=num_classes is not None)
  return Classifier(model, jax.device_put(params), size, labels, file.crop_fraction, file.loss)
