"""timm (eager, or by torch.compile) and Transformers, doing the work of our step; see serve.py."""

import contextlib
import functools
import time

import torch


def timm_model(config):
  from timm.models.vision_transformer import VisionTransformer

  fields = {}
  patch_size = config['patch_size']
  if config['resnet_width']:
    from timm.layers import StdConv2dSame
    from timm.models.resnetv2 import ResNetV2
    from timm.models.vision_transformer_hybrid import HybridEmbed

    if config['resnet_width'] != 64 or not config['resnet_blocks']:
      raise ValueError('only hybrids with a stem of 64 features and with stages are compared')
    backbone = ResNetV2(
      layers=config['resnet_blocks'],
      num_classes=0,
      global_pool='',
      preact=False,
      stem_type='same',
      conv_layer=functools.partial(StdConv2dSame, eps=1e-8),
    )
    fields['embed_layer'] = functools.partial(HybridEmbed, backbone=backbone)
    patch_size //= config['stride']
  return VisionTransformer(
    img_size=tuple(config['image_size']),
    patch_size=patch_size,
    embed_dim=config['width'],
    depth=config['depth'],
    num_heads=config['num_heads'],
    mlp_ratio=config['mlp_dim'] / config['width'],
    num_classes=config['num_classes'],
    act_layer='gelu_tanh',
    pos_drop_rate=config['dropout_rate'],
    proj_drop_rate=config['dropout_rate'],
    attn_drop_rate=config['attention_dropout_rate'],
    drop_path_rate=config['stochastic_depth_rate'],
    **fields,
  )


class TransformersModel(torch.nn.Module):
  """Returns the logits alone."""

  def __init__(self, config):
    from transformers import AutoModelForImageClassification, ViTConfig

    super().__init__()
    if config['resnet_width'] or config['stochastic_depth_rate']:
      raise ValueError('Transformers has no hybrids and no stochastic depth')
    vit = ViTConfig(
      image_size=tuple(config['image_size']),
      patch_size=config['patch_size'],
      hidden_size=config['width'],
      num_hidden_layers=config['depth'],
      num_attention_heads=config['num_heads'],
      intermediate_size=config['mlp_dim'],
      num_labels=config['num_classes'],
      hidden_act='gelu_pytorch_tanh',
      layer_norm_eps=1e-6,
      hidden_dropout_prob=config['dropout_rate'],
      attention_probs_dropout_prob=config['attention_dropout_rate'],
    )
    self.vit = AutoModelForImageClassification.from_config(vit, attn_implementation='sdpa')

  def forward(self, x):
    return self.vit(pixel_values=x).logits


MODELS = {'timm': timm_model, 'timm_compile': timm_model, 'transformers': TransformersModel}


class Workload:
  """A forward pass of images (B, 3, H, W) uint8 to float32 logits, and an AdamW step.

  In bfloat16 parameters stay float32, and both run under autocast.
  """

  def __init__(self, request):
    config = request['model']
    torch.manual_seed(0)
    torch.set_num_threads(request['threads'])
    torch.set_float32_matmul_precision('high' if request['tf32'] else 'highest')
    torch.backends.cudnn.allow_tf32 = request['tf32']
    self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    self.dtype = getattr(torch, config['dtype'])
    self.clip_norm = config['clip_norm']
    self.model = MODELS[request['peer']](config).to(self.device)
    self.optimizer = make_optimizer(self.model, config)
    shape = (config['batch_size'], 3, *config['image_size'])
    self.images = torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device)
    self.labels = torch.randint(0, config['num_classes'], shape[:1], device=self.device)
    is_compiled = request['peer'].endswith('_compile')
    self.logits = torch.compile(self._logits) if is_compiled else self._logits
    self.loss = torch.compile(self._loss) if is_compiled else self._loss
    self.description = {
      'versions': versions(request['peer'].split('_')[0]),
      'device': torch.cuda.get_device_name() if self.device == 'cuda' else 'cpu',
      'parameters': sum(p.numel() for p in self.model.parameters()),
      'optimizer': f'adamw, clipped to {self.clip_norm:g}' if self.clip_norm else 'adamw',
    }

  def _logits(self, images):
    return self.model(images.float() / 127.5 - 1).float()

  def _loss(self, images, labels):
    return torch.nn.functional.cross_entropy(self._logits(images), labels)

  def autocast(self):
    if self.dtype == torch.float32:
      return contextlib.nullcontext()
    return torch.autocast(self.device, self.dtype)

  def forward(self):
    with torch.inference_mode(), self.autocast():
      return self.logits(self.images)

  def step(self):
    with self.autocast():
      loss = self.loss(self.images, self.labels)
    loss.backward()
    if self.clip_norm:
      torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
    self.optimizer.step()
    self.optimizer.zero_grad(set_to_none=True)
    return loss

  def run(self, kind, calls):
    """Times the calls of a pass, 'forward' or 'step'."""
    call = {'forward': self.forward, 'step': self.step}[kind]
    self.model.train(kind == 'step')
    result = None
    start = time.perf_counter()
    for _ in range(calls):
      result = call()
    self.synchronize()
    answer = {'seconds': time.perf_counter() - start}
    if kind == 'step':
      answer['loss'] = float(result.detach())
    del result
    if self.device == 'cuda':
      torch.cuda.empty_cache()  # leaves the memory to the others whose turn is next
    return answer

  def synchronize(self):
    if self.device == 'cuda':
      torch.cuda.synchronize()


def make_optimizer(model, config):
  """AdamW in its fused implementation; kernels alone are decayed, as here."""
  kernels, others = [], []
  for name, parameter in model.named_parameters():
    is_embedding = name.endswith(('cls_token', 'pos_embed', 'position_embeddings'))
    (kernels if parameter.ndim > 1 and not is_embedding else others).append(parameter)
  groups = [
    {'params': kernels, 'weight_decay': config['weight_decay']},
    {'params': others, 'weight_decay': 0.0},
  ]
  betas = (config['b1'], config['b2'])
  return torch.optim.AdamW(
    groups, lr=config['learning_rate'], betas=betas, eps=config['epsilon'], fused=True
  )


def versions(library):
  import importlib.metadata

  return {name: importlib.metadata.version(name) for name in ('torch', library)}


def build(request):
  return Workload(request)
