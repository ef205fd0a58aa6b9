"""The typed config: every field with its type, default, documentation and range, once.

A config file gives an `ml_collections.ConfigDict` of the same fields (`default_config`), which
becomes a `Config` at the edge. Below `train_and_evaluate` a function takes its own section of it
or plain values.
"""

import dataclasses
import math
import typing
from collections.abc import Sequence
from typing import Literal

from vit_jax.config.evals import EvalConfig, Evals, make_evals
from vit_jax.config.fields import (
  FRACTION,
  NOT_NEGATIVE,
  POSITIVE,
  RATE,
  Range,
  Section,
  between,
  field,
  interval,
  section,
  walk_fields,
)
from vit_jax.config.optimization import LoraConfig, OptimizerConfig, ScheduleConfig
from vit_jax.errors import UserError

Transformer = Literal['Ti', 'S', 'B', 'L', 'H', 'g', 'G', 'So400m', 'DINOv2-g', 'S+', 'H+', '7B']
ResNet = Literal[
  'R50x1', 'R50x2', 'R50x3', 'R101x1', 'R101x3', 'R152x1', 'R152x2', 'R152x4', 'R200x3'
]
Mixer = Literal['Mixer-S', 'Mixer-B', 'Mixer-L', 'Mixer-H']
Detr = Literal['DETR-R50', 'DETR-R101']
Loss = Literal['softmax', 'sigmoid']
MaskedTarget = Literal['mean_color', 'downsized', 'pixels']
PositionResize = Literal[
  'auto',
  'corners',
  'half_pixel',
  'bicubic',
  'bicubic_offset',
  'bicubic_antialias',
  'bilinear_antialias',
]
InitHead = Literal['new', 'keep', 'auto']
OnBadExample = Literal['error', 'skip']
ResizeRule = Literal['crop', 'squash', 'border']
Interpolation = Literal['bilinear', 'bicubic', 'area', 'lanczos', 'nearest']
Rounding = Literal['tensorflow', 'transformers', 'torchvision']


def height_width(size: int | Sequence[int]) -> tuple[int, int]:
  """An image size in pixels, an int or (height, width), as (height, width).

  Raises:
    UserError: for anything else.
  """
  pair = (size, size) if isinstance(size, int) else size
  is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
  if not is_pair or not all(type(side) is int and side > 0 for side in pair):
    raise UserError(f'The image size is {size!r}; it must be pixels, as 224 or (224, 160).')
  return pair[0], pair[1]


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section, path='model'):
  """The architecture, and how it is executed."""

  variant: Literal[Transformer, ResNet, Mixer, Detr] = field(
    'B', 'size: a row of vit_jax/models/variants.py'
  )
  patch_size: int = field(16, 'side of a patch in pixels', POSITIVE)
  width: int = field(0, "embedding dimension; 0: the variant's", NOT_NEGATIVE)
  depth: int = field(0, "blocks; 0: the variant's", NOT_NEGATIVE)
  mlp_dim: int = field(0, "hidden dimension of the MLPs; 0: the variant's", NOT_NEGATIVE)
  token_mlp_dim: int = field(
    0, "a Mixer's: hidden dimension of its token-mixing MLPs; 0: the variant's", NOT_NEGATIVE
  )
  num_heads: int = field(0, "attention heads; 0: the variant's, 8 of a ResNet", NOT_NEGATIVE)
  pool: Literal['token', 'gap', 'map', 'token_gap', 'distilled'] = field(
    'token',
    'class token, global average pooling, attention pooling, class token and average (DINOv2), or '
    'class and distillation token (DeiT)',
  )
  pre_logits: int = field(0, 'width of the tanh layer before the head; 0: no layer', NOT_NEGATIVE)
  dropout_rate: float = field(0.0, 'dropout of activations', RATE)
  attention_dropout_rate: float = field(0.0, 'dropout of attention weights', RATE)
  stochastic_depth_rate: float = field(
    0.0, 'drop rate of the last block; grows linearly with depth', RATE
  )
  head_bias_init: float = field(0.0, "initial value of the head's bias")
  gelu: Literal['tanh', 'exact', 'quick'] = field(
    'tanh',
    'tanh approximation (released JAX weights), exact (most PyTorch weights) or quick (CLIP)',
  )
  layer_norm_epsilon: float = field(1e-6, 'epsilon of every LayerNorm', POSITIVE)
  norm: Literal['layer', 'rms'] = field(
    'layer', 'LayerNorm, or RMSNorm (arXiv 1910.07467; AIMv2) wherever there would be one'
  )
  resnet_width: int = field(
    0, "features of a hybrid's ResNet stem (64 as published); 0: patches of pixels", NOT_NEGATIVE
  )
  resnet_blocks: tuple[int, ...] = field((), 'units of each ResNet stage; (): only the stem')
  resnet_spatial: Literal['conv', 'local', 'axial'] = field(
    'conv',
    'BiT: 3x3 convolutions, local attention (arXiv 1906.05909) or axial attention (arXiv '
    '2003.07853)',
  )
  resnet_window: int = field(
    0,
    'pixels of the window of local and axial attention; 0: 7 of local, 111 of axial (whole lines '
    'of images up to 224 pixels)',
    Range('0 or odd and below 1024', lambda x: x == 0 or (0 < x < 1024 and x % 2 == 1)),
  )
  non_local_stages: tuple[int, ...] = field(
    (), 'BiT: stages with a non-local block (arXiv 1711.07971), from 1'
  )
  non_local_subsample: bool = field(
    False, 'keys and values of non-local blocks are maxima of 2x2 pixels'
  )
  position_embedding: Literal['1d', '2d', 'relative', 'none'] = field(
    '1d',
    'for each token (as released), each row and column of patches, each offset of two patches, or '
    'none',
  )
  position_entry: Literal['stem', 'layers', 'layers_shared'] = field(
    'stem',
    'added to the first tokens, or to the input of every block: its own, or one for all; relative: '
    'stem has one in each block, layers_shared one for all',
  )
  axial: bool = field(False, 'attention along rows, then columns; needs pool gap or map')
  class_token: bool = field(False, 'a class token with pool gap or map, too')
  registers: int = field(
    0,
    'further tokens without positions (arXiv 2309.16588)',
    Range('from 0 to 1024', lambda x: 0 <= x <= 1024),
  )
  rotary: Literal['none', 'dinov3', 'eva02', 'perception_encoder'] = field(
    'none', 'rotary positions of queries and keys, by the rule of a family'
  )
  rotary_grid: tuple[int, ...] = field(
    (), 'rows and columns of patches of pretraining, to which eva02 scales others; (): it does not'
  )
  patch_bias: bool = field(True, 'the patch embedding has a bias; False: CLIP')
  pixel_mean: tuple[float, ...] = field(
    (), 'of pixels in [0, 1], for each channel, by which images are normalized; (): 0.5'
  )
  pixel_std: tuple[float, ...] = field(
    (), 'their standard deviation', Range('positive', lambda x: all(y > 0 for y in x))
  )
  patch_norm: bool = field(False, 'patch embeddings are normalized before positions (AIMv2)')
  block_bias: bool = field(True, 'dense layers of the blocks have biases; False: AIMv2')
  qkv_bias: Literal['all', 'query_value', 'none'] = field(
    'all', 'queries, keys and values have biases; query_value: DINOv3, EVA-02; none: DINOv3 7B'
  )
  pre_norm: bool = field(False, 'a LayerNorm before the blocks (CLIP)')
  mlp: Literal['gelu', 'swiglu', 'swiglu_norm'] = field(
    'gelu', 'a plain MLP, a gated one (arXiv 2002.05202), or that with a LayerNorm (EVA-02)'
  )
  layer_scale: float = field(
    0.0, 'initial factor of each branch (arXiv 2103.17239); 0: no factors', NOT_NEGATIVE
  )
  final_norm: Literal['encoder', 'pooled', 'none'] = field(
    'encoder', 'LayerNorm of all tokens after the blocks, of the pooled features, or none'
  )
  pool_num_heads: int = field(
    0, 'heads of pool map; 0: those of the blocks (Perception Encoder has 8)', NOT_NEGATIVE
  )
  pool_mlp_dim: int = field(0, 'hidden units of the MLP of pool map; 0: mlp_dim', NOT_NEGATIVE)
  pool_mlp: bool = field(True, 'pool map has a LayerNorm and an MLP; False: attention only (AIMv2)')
  remat: Literal['none', 'dots', 'full'] = field(
    'none',
    'the backward pass recomputes nothing, all but dense layers and flash attention, or all',
    execution=True,
  )
  scan_blocks: bool = field(
    False, 'compile one block for all: compiles faster, runs slower', execution=True
  )
  attention: Literal['auto', 'einsum', 'xla', 'cudnn', 'fused'] = field(
    'auto',
    "einsum; xla: jax.nn's; cudnn: flash attention on NVIDIA GPUs; fused: a kernel for TPUs; auto: "
    'fused on TPUs, cudnn on NVIDIA GPUs from A100 on, else einsum. xla and cudnn have no dropout',
    execution=True,
  )
  dtype: Literal['auto', 'float32', 'bfloat16'] = field(
    'auto',
    'of matrix products, float32 ones in full precision; auto: bfloat16 on accelerators',
    execution=True,
  )


@dataclasses.dataclass(frozen=True)
class AugmentConfig(Section, path='data.augment'):
  """Random changes to a training image, in the order in which they are applied."""

  crop: Literal['inception', 'resize', 'random', 'central', 'squash'] = field(
    'inception',
    'random area and aspect ratio (arXiv 1409.4842), the whole image, or a part at whole pixels; '
    'squash: a random part after squashing the whole image',
  )
  area: tuple[float, float] = field(
    (0.05, 1.0), 'inception: share of the image', interval(1, 'shares')
  )
  resize_small: int = field(
    0, 'random, central, squash: pixels of the shorter side; 0: just enough', between(0, 2**16)
  )
  pad: int = field(0, 'random, central: gray pixels on each side', between(0, 2**12))
  antialias: bool = field(False, 'average when shrinking; the released models were trained without')
  reduced_decoding: bool = field(
    True, 'decode JPEGs at 1/2, 1/4 or 1/8 of their size where enough pixels remain'
  )
  shift: float = field(0.0, 'largest translation, as a share of the image', FRACTION)
  scale: float = field(0.0, 'largest relative change of size', RATE)
  rotate: float = field(0.0, 'largest rotation, in degrees', between(0, 360))
  flip: bool = field(True, 'mirror left and right with probability 1/2')
  randaugment: Literal['none', 'augreg', 'timm', 'timm_increasing'] = field(
    'none', 'a published variant of RandAugment (arXiv 1909.13719); augreg is for 224 px'
  )
  randaugment_layers: int = field(2, 'operations for each image', between(0, 100))
  randaugment_magnitude: float = field(10.0, '0 to 10; AugReg: up to 20', between(0, 2**10))
  randaugment_std: float = field(0.0, 'timm: deviation of the magnitude', between(0, 2**10))
  jitter: tuple[float, float, float, float] = field(
    (0.0, 0.0, 0.0, 0.0),
    'largest relative changes of brightness, contrast, saturation, and of the hue (up to 0.5)',
    Range(
      'four changes, none negative, that of the hue at most 0.5',
      lambda x: min(x) >= 0 and x[3] <= 0.5,
    ),
  )
  erase_probability: float = field(0.0, 'of erasing a rectangle (arXiv 1708.04896)', FRACTION)
  erase_area: tuple[float, float] = field(
    (0.02, 0.33), 'share of the image that the rectangle covers', interval(1, 'shares')
  )
  erase_ratio: tuple[float, float] = field(
    (0.3, 3.3), 'aspect ratio of the rectangle, height by width', interval(math.inf, 'ratios')
  )
  erase_noise: bool = field(True, 'fill the rectangle with random pixels rather than gray')

  def check_channels(self, channels: int) -> None:
    """Raises `UserError` if images with that many channels cannot be augmented like this."""
    for name, needs_colors in (
      ('randaugment', self.randaugment != 'none'),
      ('jitter', any(self.jitter[2:])),
    ):
      if needs_colors and channels != 3:
        self.refuse(name, f'it changes colors, but data.channels is {channels}, not 3 (RGB)')


@dataclasses.dataclass(frozen=True)
class TrainDataConfig(Section, path='data.train'):
  """The training examples."""

  source: str = field(
    'digits',
    'digits, folder:/path, table:/path/labels.csv, array_record:/path, tfds:name, hf:name, '
    'webdataset:/path, vtab:task, synthetic:jft, or a mixture such as 3*folder:/a + 1*hf:b',
  )
  split: str = field('train', "a name, 'train[:98%]', 'train[:800]+validation[:200]'")


@dataclasses.dataclass(frozen=True)
class Preprocessing(Section, path='data.test'):
  """How an image becomes the input of a model in tests and predictions.

  The image is resized by `resize` to `image_size / crop_fraction`, then cropped at its center to
  `image_size`. `rounding` names the library whose arithmetic of sizes and offsets is followed:

  tensorflow: sides to the nearest integer, offsets down (big_vision, vision_transformer).
  transformers: both down (Transformers' image processors).
  torchvision: sides down, offsets to the nearest even (torchvision, timm).
  """

  resize: ResizeRule = field(
    'crop',
    'crop: cover the size, keeping the aspect ratio; squash: to the size; border: fit into it',
  )
  crop_fraction: float = field(0.875, 'central share of the image that is kept', between(0.05, 1))
  interpolation: Interpolation = field('bilinear', 'how pixels are interpolated')
  antialias: bool = field(True, 'average when shrinking; area and nearest are as they are')
  rounding: Rounding = field('tensorflow', 'the library whose rounding of sizes is followed')
  fill: tuple[int, ...] = field(
    (),
    'border: level of the added pixels, one for each channel; (): 128',
    Range('levels from 0 to 255', lambda x: all(0 <= level <= 255 for level in x)),
  )

  def __post_init__(self):
    super().__post_init__()
    if self.interpolation == 'lanczos' and not self.antialias:
      self.refuse('antialias', 'interpolation=lanczos is always antialiased')

  def summary(self) -> str:
    """'crop 0.875 bilinear', 'squash bilinear without antialiasing', … on one line."""
    fraction = '' if self.crop_fraction == 1 else f' {self.crop_fraction:.4g}'
    has_effect = self.interpolation in ('bilinear', 'bicubic')
    aliasing = '' if self.antialias or not has_effect else ' without antialiasing'
    return f'{self.resize}{fraction} {self.interpolation}{aliasing}'


@dataclasses.dataclass(frozen=True)
class TestDataConfig(Preprocessing, path='data.test'):
  """The test examples, and how their images are preprocessed."""

  source: str = field('', "as data.train.source; '': the same source")
  split: str = field('test', 'as data.train.split')

  @property
  def preprocessing(self) -> Preprocessing:
    """The fields of `Preprocessing` alone."""
    names = (each.name for each in dataclasses.fields(Preprocessing))
    return Preprocessing(**{name: getattr(self, name) for name in names})


_IMAGE_SIZE = Range('positive', lambda x: min(x if isinstance(x, tuple) else (x,)) > 0)
_WORKERS = Range('-1 (one per core), 0 or positive', lambda x: x >= -1)


@dataclasses.dataclass(frozen=True)
class DataConfig(Section, path='data'):
  """Where examples come from, and how they become batches."""

  image_size: int | tuple[int, int] = field(224, 'pixels, or (height, width)', _IMAGE_SIZE)
  num_classes: int = field(
    0, 'classes that the data must have; 0: any', NOT_NEGATIVE, execution=True
  )
  channels: int = field(
    3, 'channels of an image: 1 (gray), 3 (RGB), 4 (RGBA); any number for arrays', POSITIVE
  )
  workers: int = field(
    -1, 'reading processes; 0: threads; -1: one per core, at most 128', _WORKERS, execution=True
  )
  threads: int = field(
    0, 'threads without workers; 0: one per core, at most 3', NOT_NEGATIVE, execution=True
  )
  on_bad_example: OnBadExample = field(
    'error',
    'error ends the run; skip replaces the example in training and leaves it out of tests',
    execution=True,
  )
  max_bad_fraction: float = field(
    0.01, 'with skip: a larger share of bad examples ends the run', FRACTION, execution=True
  )
  class_balanced: bool = field(
    False, 'draw all classes equally often in training, however many images they have'
  )
  skip_batches: tuple[tuple[int, int], ...] = field(
    (),
    '((first, stop), …): batches first to stop - 1 of the data order, from 0, are left out of '
    'training; the steps keep their numbers',
    Range(
      'pairs (first, stop), 0 <= first < stop', lambda x: all(0 <= pair[0] < pair[1] for pair in x)
    ),
    execution=True,
  )
  train: TrainDataConfig = section(TrainDataConfig)
  test: TestDataConfig = section(TestDataConfig)
  augment: AugmentConfig = section(AugmentConfig)

  def __post_init__(self):
    super().__post_init__()
    self.augment.check_channels(self.channels)

  @property
  def test_source(self) -> str:
    """The source of the test examples."""
    return self.test.source or self.train.source

  @property
  def height_width(self) -> tuple[int, int]:
    """The image size as (height, width), in pixels."""
    return height_width(self.image_size)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels) of an image in a batch."""
    return (*self.height_width, self.channels)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Section, path='checkpoint'):
  """The checkpoints of a run."""

  every: int = field(
    1000, 'steps between checkpoints; 0: ten in a run', NOT_NEGATIVE, execution=True
  )
  every_minutes: float = field(
    0.0,
    'minutes since the last one after which the next log saves another; 0: by steps alone',
    NOT_NEGATIVE,
    execution=True,
  )
  keep: int = field(3, 'latest ones to keep, besides the best one', POSITIVE, execution=True)
  keep_every: int = field(
    0,
    'each multiple of these steps is saved and kept forever; 0: none',
    NOT_NEGATIVE,
    execution=True,
  )


_STEPS = Range(
  '() or (first, last), 0 < first <= last', lambda x: not x or (len(x) == 2 and 0 < x[0] <= x[1])
)


@dataclasses.dataclass(frozen=True)
class ProfileConfig(Section, path='profile'):
  """A profile of a few steps, which `jax.profiler` writes into workdir/profile/."""

  steps: tuple[int, ...] = field(
    (), 'the first and the last step of the profile; (): no profile', _STEPS, execution=True
  )


@dataclasses.dataclass(frozen=True)
class RollbackConfig(Section, path='rollback'):
  """What happens when a run diverges."""

  limit: int = field(
    0,
    'how often a run may go back to its last checkpoint and skip the batches since then, when a '
    'loss or norm is not finite or after_skipped is reached; 0: it ends',
    NOT_NEGATIVE,
    execution=True,
  )
  after_skipped: int = field(
    0,
    'updates in a row, skipped by optimizer.skip_factor, after which it has diverged; 0: any',
    NOT_NEGATIVE,
    execution=True,
  )


_AXIS = Range('positive, or -1 (the devices that remain)', lambda x: x == -1 or x > 0)


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section, path='mesh'):
  """Devices along each axis of the mesh."""

  data: int = field(-1, 'replicas of the model; -1: the devices that remain', _AXIS, execution=True)
  fsdp: int = field(1, 'shards of parameters and optimizer state', _AXIS, execution=True)
  tensor: int = field(1, 'shards of heads and MLPs', _AXIS, execution=True)
  num_slices: int = field(1, 'TPU slices, which the data axis spans', POSITIVE, execution=True)


@dataclasses.dataclass(frozen=True)
class StepConfig(Section):
  """What the steps of a run compute, besides model, optimizer and schedule."""

  seed: int = field(
    0, 'seeds initialization, data order, augmentation and dropout', between(0, 2**32 - 1)
  )
  total_steps: int = field(10_000, 'optimizer updates; 0: set by epochs', NOT_NEGATIVE)
  batch_size: int = field(512, 'examples in each step, over all devices and processes', POSITIVE)
  accumulation_steps: int = field(1, 'micro-batches in each step', POSITIVE, execution=True)
  objective: Literal['supervised', 'masked_patches'] = field(
    'supervised', 'the labels, or the colors of corrupted patches (Appendix B.1.2), without labels'
  )
  masked_target: MaskedTarget = field(
    'mean_color',
    'masked_patches: the 3-bit mean color of a patch, the 3-bit colors of the patch downsized to '
    '4 x 4, or its pixels',
  )
  loss: Loss = field('softmax', 'softmax, or sigmoid (multi-label)')
  label_smoothing: float = field(0.0, 'share of the target that is spread over all classes', RATE)
  mixup_alpha: float = field(
    0.0, 'Beta parameter of Mixup; 0: off; with CutMix each is drawn evenly', NOT_NEGATIVE
  )
  cutmix_alpha: float = field(0.0, 'Beta parameter of CutMix; 0: off', NOT_NEGATIVE)
  ema_decay: float = field(0.0, 'decay of the parameter average that is evaluated; 0: off', RATE)
  ema_warmup: bool = field(
    False, 'at step t, from 1, that decay is at most (1 + t) / (10 + t), as of TensorFlow'
  )
  sam_rho: float = field(
    0.0,
    'radius of the perturbation of SAM (arXiv 2010.01412), two gradients a step; 0: off',
    NOT_NEGATIVE,
  )
  sam_rho_min: float = field(
    0.0, 'radius at the lowest learning rate, which it follows; 0: always sam_rho', NOT_NEGATIVE
  )
  gsam_alpha: float = field(
    0.0, 'weight of the surrogate gap of GSAM (arXiv 2203.08065); 0: SAM', NOT_NEGATIVE
  )

  def __post_init__(self):
    super().__post_init__()
    if self.batch_size % self.accumulation_steps:
      self.refuse('batch_size', f'accumulation_steps={self.accumulation_steps} must divide it')
    if self.ema_warmup and not self.ema_decay:
      self.refuse(
        'ema_warmup', 'ema_decay is 0 (no average); set ema_decay, or this field to False'
      )
    for name in ('sam_rho_min', 'gsam_alpha'):
      if getattr(self, name) and not self.sam_rho:
        self.refuse(name, 'sam_rho is 0 (no SAM); set sam_rho, or this field to 0')
    if self.sam_rho_min > self.sam_rho:
      self.refuse('sam_rho_min', f'it must be at most sam_rho={self.sam_rho}')

  @property
  def gradients_per_step(self) -> int:
    """Forward and backward passes over the batch of a step: 2 with SAM, else 1."""
    return 2 if self.sam_rho else 1


_NO_LABELS, _NO_CLASSES = 'uses no labels', 'has no classification head'
# Fields of supervised training alone: why objective=masked_patches does not have them.
_SUPERVISED_ONLY = {
  'loss': 'has the loss of masked_target',
  'label_smoothing': _NO_LABELS,
  'mixup_alpha': _NO_LABELS,
  'cutmix_alpha': _NO_LABELS,
  'init_from': 'starts from random weights',
  'lora.rank': 'starts from random weights',
  'model.pre_logits': _NO_CLASSES,
  'model.head_bias_init': _NO_CLASSES,
}


@dataclasses.dataclass(frozen=True)
class Config(StepConfig):
  """The run: its length, its batches, its loss, its initial weights."""

  epochs: float = field(0.0, 'passes over the training data; 0: set by total_steps', NOT_NEGATIVE)
  eval_batch_size: int = field(
    0, 'examples in each test batch; 0: batch_size', NOT_NEGATIVE, execution=True
  )
  log_every: int = field(50, 'steps between logs', POSITIVE, execution=True)
  eval_every: int = field(
    1000, 'steps between evaluations; 0: ten in a run', NOT_NEGATIVE, execution=True
  )
  init_from: str = field(
    '', 'weights to start from: a published name, a file, or the folder of a run'
  )
  init_head: InitHead = field(
    'new',
    'the head of init_from is replaced by zeros, kept (the classes must be the same), or kept '
    'where it names the classes of the data',
  )
  resume_from: str = field(
    '', 'WORKDIR or WORKDIR@STEP of another run, whose whole state a new workdir starts from'
  )
  position_resize: PositionResize = field(
    'auto',
    "how init_from's position embeddings are resized; auto: as its family does; corners: as "
    'released',
  )
  tracker: str = field(
    '',
    "gets the metrics, too: '' for none, wandb, or package.module:function, which process 0 calls "
    'as function(step, metrics)',
    execution=True,
  )
  hang_timeout: float = field(
    1800.0,
    'seconds in which a step, evaluation batch, save or compilation must finish; 0: any',
    NOT_NEGATIVE,
    execution=True,
  )
  grace_period: float = field(
    300.0, 'seconds from SIGTERM to the end of the run, saved or not', POSITIVE, execution=True
  )
  max_restarts: int = field(
    20,
    'restarts in a row that may fail before the next checkpoint; one more exits with 5; 0: any',
    NOT_NEGATIVE,
    execution=True,
  )
  model: ModelConfig = section(ModelConfig)
  data: DataConfig = section(DataConfig)
  optimizer: OptimizerConfig = section(OptimizerConfig)
  lora: LoraConfig = section(LoraConfig)
  schedule: ScheduleConfig = section(ScheduleConfig)
  checkpoint: CheckpointConfig = section(CheckpointConfig)
  profile: ProfileConfig = section(ProfileConfig)
  rollback: RollbackConfig = section(RollbackConfig)
  mesh: MeshConfig = section(MeshConfig)
  evals: Evals = section(make_evals)

  def __post_init__(self):
    super().__post_init__()
    if (self.total_steps > 0) == (self.epochs > 0):
      raise UserError(
        f'config.total_steps is {self.total_steps} and config.epochs {self.epochs}; one of '
        'them must be positive, the other 0.'
      )
    if self.lora.rank and not (self.init_from or self.resume_from):
      self.lora.refuse(
        'rank', 'there is nothing to adapt; set config.init_from, or this field to 0'
      )
    if self.lora.rank and not self.optimizer.backbone_lr_multiplier:
      self.lora.refuse(
        'rank', 'optimizer.backbone_lr_multiplier=0 freezes its adapters; set that to 1'
      )
    if self.objective == 'masked_patches':
      self._check_masked_patches()

  def _check_masked_patches(self) -> None:
    """Raises `UserError` for what has no meaning where nothing is classified."""
    for name, holder, each in walk_fields(self):
      if name in _SUPERVISED_ONLY and getattr(holder, each.name) != each.default:
        reason = _SUPERVISED_ONLY[name]
        holder.refuse(each.name, f'objective=masked_patches {reason}; set it to {each.default!r}')
      if name.startswith('evals.') and getattr(holder, each.name) in ('classification', 'real'):
        rule = f'objective=masked_patches {_NO_CLASSES}; use knn, linear_probe or fewshot'
        holder.refuse(each.name, rule)
    if self.model.pool in ('map', 'distilled'):
      self.model.refuse('pool', 'objective=masked_patches does not train it; use token or gap')
    if self.model.variant not in choices(Transformer):
      self.model.refuse('variant', 'objective=masked_patches needs a Vision Transformer')

  @property
  def eval_configs(self) -> dict[str, EvalConfig]:
    """The evaluations by their names, with `every` and `batch_size` set."""
    configs = {}
    for each in dataclasses.fields(self.evals):
      config: EvalConfig = getattr(self.evals, each.name)
      configs[each.name] = dataclasses.replace(
        config,
        every=config.every or self.eval_every,
        batch_size=config.batch_size or self.eval_batch_size,
        source=config.source or self.data.test_source,
        split=config.split or self.data.test.split,
        train_source=config.train_source or config.source or self.data.train.source,
      )
    return configs

  @property
  def batch_sizes(self) -> tuple[int, ...]:
    """The different sizes of batches that are divided among devices at once."""
    evals = (config.batch_size for config in self.eval_configs.values())
    sizes = {self.batch_size // self.accumulation_steps, self.eval_batch_size, *evals}
    return tuple(sorted(sizes - {0}))

  @property
  def step(self) -> StepConfig:
    """The fields of `StepConfig` alone."""
    names = (each.name for each in dataclasses.fields(StepConfig))
    return StepConfig(**{name: getattr(self, name) for name in names})

  def resolve_steps(self, num_examples: int) -> 'Config':
    """The config with whole numbers of steps in place of epochs, shares and zeros.

    Args:
      num_examples: in the training data; read only where the length is given in epochs.

    Raises:
      UserError: when the warmup does not end before the run does.
    """
    total = self.total_steps
    if not total:
      total = max(round(self.epochs * num_examples / self.batch_size), 1)
    tenth = max(total // 10, 1)
    return dataclasses.replace(
      self,
      total_steps=total,
      epochs=0.0,
      eval_every=self.eval_every or tenth,
      eval_batch_size=self.eval_batch_size or self.batch_size,
      schedule=self.schedule.resolve_steps(total),
      checkpoint=dataclasses.replace(self.checkpoint, every=self.checkpoint.every or tenth),
    )


def choices(alias: object) -> tuple[str, ...]:
  """The strings of a Literal such as `Loss`."""
  return typing.get_args(alias)
