"""TorchScript archives, as OpenAI published CLIP; live, with the `torch` extra."""

import collections
import shutil
import zipfile

import numpy as np
import pytest

import vit_jax
from tests.torch_models import import_or_skip, randomize
from vit_jax.errors import UserError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope='module')
def torch():
  return import_or_skip('torch')


def build_clip(torch):
  """A small CLIP with the modules and names of clip/model.py."""
  nn = torch.nn

  class QuickGELU(nn.Module):
    def forward(self, x):
      return x * torch.sigmoid(1.702 * x)

  class Block(nn.Module):
    def __init__(self, width, heads):
      super().__init__()
      self.attn = nn.MultiheadAttention(width, heads)
      self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
      layers = {'c_fc': nn.Linear(width, 2 * width), 'gelu': QuickGELU()}
      layers['c_proj'] = nn.Linear(2 * width, width)
      self.mlp = nn.Sequential(collections.OrderedDict(layers))

    def forward(self, x):
      y = self.ln_1(x)
      x = x + self.attn(y, y, y, need_weights=False)[0]
      return x + self.mlp(self.ln_2(x))

  class Transformer(nn.Module):
    def __init__(self, width, heads, layers):
      super().__init__()
      self.resblocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])

    def forward(self, x):
      return self.resblocks(x.permute(1, 0, 2)).permute(1, 0, 2)

  class ImageTower(nn.Module):
    def __init__(self):
      super().__init__()
      self.conv1 = nn.Conv2d(3, 64, 4, 4, bias=False)
      self.class_embedding = nn.Parameter(torch.zeros(64))
      self.positional_embedding = nn.Parameter(torch.zeros(17, 64))
      self.ln_pre, self.ln_post = nn.LayerNorm(64), nn.LayerNorm(64)
      self.transformer = Transformer(64, 1, 2)
      self.proj = nn.Parameter(torch.zeros(64, 5))

    def forward(self, x):
      x = self.conv1(x).flatten(2).permute(0, 2, 1)
      x = torch.cat([self.class_embedding + 0 * x[:, :1], x], dim=1)
      x = self.transformer(self.ln_pre(x + self.positional_embedding))
      return self.ln_post(x[:, 0]) @ self.proj

  class CLIP(nn.Module):
    def __init__(self):
      super().__init__()
      self.visual, self.transformer = ImageTower(), Transformer(8, 1, 1)
      self.token_embedding, self.ln_final = nn.Embedding(9, 8), nn.LayerNorm(8)
      self.positional_embedding = nn.Parameter(torch.zeros(7, 8))
      self.text_projection = nn.Parameter(torch.zeros(8, 5))
      for name, value in {'input_resolution': 16, 'context_length': 7, 'vocab_size': 9}.items():
        self.register_buffer(name, torch.tensor(value))

    def forward(self, image, text):
      x = self.transformer(self.token_embedding(text) + self.positional_embedding)
      text = self.ln_final(x)[:, 0] @ self.text_projection
      sizes = self.input_resolution + self.context_length + self.vocab_size
      return self.visual(image) @ text.t() + 0 * sizes

  module = randomize(CLIP())
  for each in module.modules():  # representable in float16
    if isinstance(each, (nn.Linear, nn.Conv2d)):
      each.weight.data = each.weight.data.half().float()
  return module


@pytest.mark.filterwarnings('ignore')  # newer versions deprecate TorchScript
def test_an_archive_of_openai(torch, tmp_path):
  module = build_clip(torch)
  images = np.random.default_rng(1).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
  pixels = ((images + 1) / 2 - np.float32(MEAN)) / np.float32(STD)
  pixels = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    expected = module.visual(pixels).numpy()
    archive = torch.jit.trace(module, (pixels, torch.zeros((2, 7), dtype=torch.long)))
  for name, parameter in archive.named_parameters():  # as `convert_weights` in clip/model.py
    if 'weight' in name and parameter.ndim > 1 and 'in_proj' not in name:
      parameter.data = parameter.data.half()
  torch.jit.save(archive, tmp_path / 'ViT-B-32.pt')
  vit = vit_jax.load(tmp_path / 'ViT-B-32.pt')
  assert (vit.model.numerics.gelu, vit.model.num_classes) == ('quick', 5)
  assert vit.preprocessing.summary() == 'crop bicubic'
  np.testing.assert_allclose(vit(images), expected, rtol=1e-4, atol=1e-4)
  assert 'float16 weights were converted to float32' in str(vit.report)
  folder = tmp_path / 'as_state_dict'
  folder.mkdir()
  torch.save(archive.state_dict(), folder / 'x.pt')  # as its users convert it
  assert vit_jax.load(folder / 'x.pt').model == vit.model


@pytest.mark.filterwarnings('ignore')
def test_an_archive_whose_code_runs_when_it_is_loaded_is_refused(torch, tmp_path):
  torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / 'good.pt')
  shutil.copy(tmp_path / 'good.pt', tmp_path / 'bad.pt')
  with zipfile.ZipFile(tmp_path / 'bad.pt', 'a') as archive:
    archive.writestr('good/code/evil.py', 'def __setstate__(self, state):\n  pass\n')
  with pytest.raises(UserError, match='with code that runs when it is loaded.*model.state_dict'):
    vit_jax.load(tmp_path / 'bad.pt')
  with pytest.raises(UserError, match='is not a Vision Transformer'):
    vit_jax.load(tmp_path / 'good.pt')


def test_a_damaged_archive_is_one_sentence(torch, tmp_path):
  with zipfile.ZipFile(tmp_path / 'x.pt', 'w') as archive:
    archive.writestr('x/data.pkl', b'nothing')
    archive.writestr('x/constants.pkl', b'nothing')
  with pytest.raises(UserError, match='is not a state dict of tensors') as caught:
    vit_jax.load(tmp_path / 'x.pt')
  assert '\n' not in str(caught.value)
