"""Ten steps of fine-tuning are those of PyTorch, from tiny models of Transformers and back."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden.make_transformers_families import build_module
from tests.helpers import make_program
from tests.torch_models import import_or_skip
from vit_jax.classifier import Classifier
from vit_jax.config import load_config
from vit_jax.weights.adapt import load_params
from vit_jax.weights.layouts.released import flatten

torch = import_or_skip('torch')
transformers = import_or_skip('transformers')
SIZE, CLASSES, BATCH, STEPS = 28, 3, 8, 10
DECAY, LAYER_DECAY, RANK, ALPHA, CLIP = 0.1, 0.7, 3, 6.0, 2.0
RATES = {'sgd': 0.02, 'adamw': 1e-3}

ADAMW = ('--config.optimizer.name=adamw', f'--config.optimizer.weight_decay={DECAY}')
TRAINED = {  # what is trained, and how: flags
  'sgd': (),
  'adamw': (*ADAMW, f'--config.optimizer.clip_norm={CLIP}'),
  'head': ('--config.optimizer.backbone_lr_multiplier=0',),
  'layer decay': (*ADAMW, f'--config.optimizer.layer_decay={LAYER_DECAY}'),
  'LoRA': (*ADAMW, f'--config.lora.rank={RANK}', f'--config.lora.alpha={ALPHA}'),
}
DINOV2, CLIP_HEAD = 'DINOv2 with registers and a head', 'CLIP with a head'
SIGLIP, VIT = 'SigLIP with a head', 'ViTForImageClassification'


class WithHead(torch.nn.Module):
  """A tower of Transformers without a class for images, and a head on its pooled output."""

  def __init__(self, tower):
    super().__init__()
    self.tower = tower
    self.classifier = torch.nn.Linear(tower.config.hidden_size, CLASSES)

  def forward(self, pixels):
    return self.classifier(self.tower(pixels).pooler_output)


class WithAdapter(torch.nn.Module):
  """y = layer(x) + alpha / rank x A B, as in the LoRA paper, with A of ours and B of zeros."""

  def __init__(self, layer, first):
    super().__init__()
    self.layer = layer
    self.lora_a = torch.nn.Parameter(torch.from_numpy(np.array(first)))
    self.lora_b = torch.nn.Parameter(torch.zeros(RANK, layer.out_features))

  def forward(self, x):
    return self.layer(x) + ALPHA / RANK * (x @ self.lora_a @ self.lora_b)


def logits_of(module, pixels):
  output = module(pixels)
  return getattr(output, 'logits', output)


def pixels_of(images, model):
  """(B, H, W, 3) uint8 as a processor of Transformers makes them, (B, 3, H, W)."""
  mean, std = model.pixel_mean or (0.5,) * 3, model.pixel_std or (0.5,) * 3
  normalized = (np.float32(images) / 255 - np.float32(mean)) / np.float32(std)
  return torch.from_numpy(normalized.transpose(0, 3, 1, 2).copy())


def add_adapters(module, params):
  """Adapters at queries and values, everything else but the head frozen."""
  first = {name: x for name, x in flatten(params).items() if name.endswith('lora_a')}
  for name, parameter in module.named_parameters():
    parameter.requires_grad = 'classifier' in name
  for name, layer in list(module.named_modules()):
    if match := re.search(r'layers?\.(\d+)\..*\b(query|q_proj|value|v_proj)$', name):
      projection = 'query' if match[2].startswith('q') else 'value'
      path = f'Transformer/encoderblock_{match[1]}/MultiHeadDotProductAttention_0/{projection}'
      parent, _, last = name.rpartition('.')
      setattr(module.get_submodule(parent), last, WithAdapter(layer, first.pop(f'{path}/lora_a')))
  assert not first


def layer_of(name):
  """As `get_layer_id_for_vit` of facebookresearch/mae (util/lr_decay.py); there are two blocks."""
  if match := re.search(r'\blayers?\.(\d+)\.', name):
    return int(match[1]) + 1
  return 0 if 'embeddings' in name or 'pre_layrnorm' in name else 3


def make_optimizer(module, how):
  """Weight decay of matrices, not of positions, tokens, biases and norms: as in timm and MAE."""
  parameters = [(name, x) for name, x in module.named_parameters() if x.requires_grad]
  if how in ('sgd', 'head'):
    return torch.optim.SGD([x for _, x in parameters], lr=RATES['sgd'], momentum=0.9)
  groups = []
  for name, x in parameters:
    is_matrix = name.endswith(('weight', 'lora_a', 'lora_b')) and x.ndim > 1
    decay = DECAY if is_matrix and 'position' not in name else 0.0
    scale = LAYER_DECAY ** (3 - layer_of(name)) if how == 'layer decay' else 1.0
    groups.append({'params': [x], 'weight_decay': decay, 'lr': RATES['adamw'] * scale})
  return torch.optim.AdamW(groups)


def train_pytorch(module, how, images, labels, model):
  """The losses of the steps."""
  if how == 'head':
    for name, parameter in module.named_parameters():
      parameter.requires_grad = 'classifier' in name
  optimizer, losses = make_optimizer(module, how), []
  for x, y in zip(images, labels, strict=True):
    logits = logits_of(module, pixels_of(x, model))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y).long())
    optimizer.zero_grad()
    loss.backward()
    if how == 'adamw':
      torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP)
    optimizer.step()
    losses.append(loss.item())
  return losses


def load(folder, how):
  flags = [
    f'--config.data.image_size={SIZE}',
    f'--config.batch_size={BATCH}',
    f'--config.eval_batch_size={BATCH}',
    f'--config.total_steps={STEPS}',
    '--config.epochs=0',
    '--config.schedule.decay=constant',
    f'--config.schedule.learning_rate={RATES["sgd" if how in ("sgd", "head") else "adamw"]}',
    '--config.optimizer.momentum_dtype=float32',
    '--config.optimizer.clip_norm=0',
    *TRAINED[how],
  ]
  return load_config(f'configs/finetune.py:{folder},digits', flags).resolve_steps(0)


@pytest.mark.parametrize(
  ('family', 'how'),
  [
    (VIT, 'sgd'),
    (DINOV2, 'adamw'),
    (SIGLIP, 'head'),
    (CLIP_HEAD, 'layer decay'),
    ('DINOv3', 'LoRA'),
    ('DINOv3', 'adamw'),
  ],
)
def test_ten_steps_are_those_of_pytorch(family, how, tmp_path):
  module = build_module(family)
  module.save_pretrained(tmp_path / 'start')
  has_head = 'DINOv3' not in family
  module = module if has_head else WithHead(module)
  program = make_program(load(tmp_path / 'start', how), CLASSES, devices=jax.devices()[:1])
  params, _ = load_params(
    tmp_path / 'start', program.model, (SIZE, SIZE, 3), init_head='keep' if has_head else 'new'
  )
  head = module.classifier
  if not has_head:
    arrays = {'kernel': head.weight.detach().numpy().T, 'bias': head.bias.detach().numpy()}
    params['head'] = jax.tree.map(jnp.array, arrays)
  state = program.init(params)
  if how == 'LoRA':
    add_adapters(module, jax.device_get(state.params))
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (STEPS, BATCH, SIZE, SIZE, 3), np.uint8)
  labels = rng.integers(0, CLASSES, (STEPS, BATCH), np.int32)
  losses, key = [], program.random_key()
  for x, y in zip(images, labels, strict=True):
    state, metrics = program.train_step(state, {'image': x, 'label': y}, key)
    losses.append(float(metrics['train/loss']))
  expected = train_pytorch(module, how, images, labels, program.model)
  np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
  assert max(losses) - min(losses) > 0.01  # the steps change something

  vit = Classifier(program.model, program.eval_params(state), (SIZE, SIZE))
  vit = vit if has_head else dataclasses.replace(vit, model=vit.model.clone(num_classes=0))
  vit.save(tmp_path / 'end', 'huggingface')
  tower = module if has_head else module.tower
  written = type(tower).from_pretrained(tmp_path / 'end').eval()
  pixels = pixels_of(images[0], vit.model)
  with torch.no_grad():
    of_pytorch, output = logits_of(module, pixels), written(pixels)
    logits = output.logits if has_head else head(output.pooler_output)
  np.testing.assert_allclose(logits.numpy(), of_pytorch.numpy(), rtol=1e-5, atol=1e-5)
