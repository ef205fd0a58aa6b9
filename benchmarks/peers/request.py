"""What peers are asked to build, by which process: the first request of serve.py."""

import argparse
import pathlib
import sys
from typing import Any

from vit_jax.config import Config
from vit_jax.errors import UserError
from vit_jax.hardware import num_cores
from vit_jax.models import build
from vit_jax.models.resnet import hybrid_stride
from vit_jax.models.vit import VisionTransformer

SERVE = pathlib.Path(__file__).with_name('serve.py')
PEERS = ('timm', 'timm_compile', 'transformers', 'original')


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds --peers and how they are run."""
  add = parser.add_argument
  add('--peers', default='', help=f'comma-separated: {", ".join(PEERS)}')
  add('--peer_python', default=sys.executable, help='Python that has PyTorch and its peers')
  add('--peer_path', action='append', default=[], help='prepended to sys.path of PyTorch peers')
  add('--peer_preload', default='', metavar='MODULE', help='that PyTorch peers import first')
  add('--peer_tf32', action='store_true', help="PyTorch's float32 products in TF32 on a GPU")
  add('--peer_checkout', type=pathlib.Path, help='of google-research/vision_transformer')


def check_flags(args: argparse.Namespace) -> None:
  """Raises `UserError` for `--peers=original` without its code."""
  if 'original' in args.peers:
    if not args.peer_checkout or not (args.peer_checkout / 'vit_jax' / 'models_vit.py').exists():
      raise UserError(
        '--peers=original needs --peer_checkout, a folder with vit_jax/models_vit.py.'
      )


def commands(
  args: argparse.Namespace, config: Config, model: build.Model
) -> dict[str, tuple[list[str], dict[str, Any]]]:
  """{name: (command, first request)} of the peers.

  Raises:
    UserError: for a model or a step that the peers do not have.
  """
  result = {}
  for name in args.peers:
    is_torch = name != 'original'
    request = {
      'peer': name,
      'model': _describe(config, model),
      'paths': args.peer_path if is_torch else [str(args.peer_checkout.resolve())],
      'preload': args.peer_preload if is_torch else '',
      'threads': num_cores(),
      'tf32': args.peer_tf32,
    }
    result[name] = ([args.peer_python if is_torch else sys.executable, str(SERVE)], request)
  return result


def _describe(config: Config, model: build.Model) -> dict[str, Any]:
  """Sizes, rates, optimizer and batch as JSON has them."""
  usual = VisionTransformer(1, 1, 1, 1, 1, 1)
  fields = ('pool', 'pre_logits', 'position_embedding', 'position_entry', 'axial', 'head_bias_init')
  if not isinstance(model, VisionTransformer) or any(
    getattr(model, name) != getattr(usual, name) for name in fields
  ):
    raise UserError('--peers have Vision Transformers with a class token and the usual positions.')
  step = config.step
  unusual = (step.sam_rho, step.mixup_alpha, step.cutmix_alpha, step.label_smoothing)
  if any(unusual) or step.ema_decay or config.optimizer.name != 'adamw' or step.loss != 'softmax':
    raise UserError(
      '--peers take plain AdamW steps with softmax; leave the loss and its like alone.'
    )
  rates = ('dropout_rate', 'attention_dropout_rate', 'stochastic_depth_rate')
  optimizer = ('b1', 'b2', 'epsilon', 'weight_decay', 'clip_norm')
  return {
    **build.architecture(model),
    **{name: getattr(model, name) for name in rates},
    **{name: getattr(config.optimizer, name) for name in optimizer},
    'stride': hybrid_stride(model.resnet_blocks) if model.resnet_width else 1,
    'learning_rate': config.schedule.learning_rate,
    'image_size': config.data.height_width,
    'batch_size': config.batch_size,
    'dtype': build.dtype_name(model),
  }
