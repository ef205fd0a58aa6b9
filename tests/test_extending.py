"""The additions of docs/extending.md, applied exactly as printed to a copy of the package, work."""

import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vit_jax
from tests.helpers import GOLDEN, ROOT, TINY

PAGE = (ROOT / 'docs' / 'extending.md').read_text()
BLOCKS = re.findall(r'^```(\w+)(?: title="([^"\n]*)")?\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
# timm's names in its golden file: torchvision's.
NAMES = {
  'cls_token': 'class_token',
  'pos_embed': 'encoder.pos_embedding',
  r'patch_embed\.proj': 'conv_proj',
  r'^norm': 'encoder.ln',
  r'^head': 'heads.head',
  r'blocks\.(\d+)\.norm(\d)': r'encoder.layers.encoder_layer_\1.ln_\2',
  r'blocks\.(\d+)\.attn\.qkv\.': r'encoder.layers.encoder_layer_\1.self_attention.in_proj_',
  r'blocks\.(\d+)\.attn\.proj': r'encoder.layers.encoder_layer_\1.self_attention.out_proj',
  r'blocks\.(\d+)\.mlp\.fc1': r'encoder.layers.encoder_layer_\1.mlp.0',
  r'blocks\.(\d+)\.mlp\.fc2': r'encoder.layers.encoder_layer_\1.mlp.3',
}
# The commands and the snippet of the page, in one process that imports the copy.
SCRIPT = """
import json, sys
import numpy as np
from vit_jax import command_line, evaluate, main
import vit_jax

def run(module, *arguments):
  sys.argv = ['command', *arguments]
  try:
    command_line.run(module.main)
  except SystemExit as stopped:
    assert stopped.code == 0, stopped.code

tiny, snippet, images = json.loads(sys.argv[1]), sys.argv[2], np.load('images.npy')
data = 'arrays:pixels.npz'
flags = [f'--config.data.train.source={data}', '--config.data.workers=1', *tiny]
run(main, '--config=configs/quickstart.py', '--workdir=run', *flags)
run(evaluate, '--model=run', f'--data={data}', '--eval=nearest_mean', '--json', '--no-cache')
exec(snippet)
print(vit.report)
np.save('logits.npy', vit_jax.load('vit_b_16')(images))
"""


def apply_diff(text: str, diff: str) -> str:
  """Replaces the old lines of each hunk by its new ones; each is at one place."""
  for hunk in diff.split('@@\n'):
    lines = hunk.splitlines(keepends=True)
    old, new = (''.join(x[1:] for x in lines if x[0] in kinds) for kinds in (' -', ' +'))
    assert text.count(old) == 1, old
    text = text.replace(old, new)
  return text


@pytest.fixture(scope='module')
def extended(tmp_path_factory):
  """A folder with a copy of the package, to which all blocks with a path in it are applied."""
  folder = tmp_path_factory.mktemp('extended')
  shutil.copytree(ROOT / 'vit_jax', folder / 'vit_jax', ignore=shutil.ignore_patterns('*.pyc'))
  (folder / 'configs').symlink_to(ROOT / 'configs')
  for language, title, text in BLOCKS:
    path = folder / title
    if language == 'python' and title.startswith('vit_jax/'):
      assert not path.exists()
      path.write_text(text)
    elif language == 'diff':
      path.write_text(apply_diff(path.read_text(), text))
  return folder


def test_each_addition_is_short():
  for section in PAGE.split('\n## ')[1:]:
    for _, title, text in re.findall(r'```(\w+) title="([^"\n]*)"\n(.*?)```', section, re.DOTALL):
      assert len([line for line in text.splitlines() if line.strip()]) < 30, title


def test_the_additions_work(extended):
  rng = np.random.default_rng(0)
  labels = np.arange(64) % 3
  pixels = np.uint8(labels[:, None, None, None] * 80 + rng.integers(0, 20, (64, 9, 9, 3)))
  arrays = {'train_images': pixels, 'train_labels': labels}
  arrays |= {f'test_{name[6:]}': array[:24] for name, array in arrays.items()}
  np.savez(extended / 'pixels.npz', **arrays)
  tensors = load_file(GOLDEN / 'timm_token.safetensors')
  for old, new in NAMES.items():
    tensors = {re.sub(old, new, name): tensor for name, tensor in tensors.items()}
  save_file(tensors, extended / 'vit_b_16.safetensors')
  timm = vit_jax.load(
    GOLDEN / 'timm_token.safetensors', gelu='exact', mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225), num_heads=3, image_size=(8, 20),
  )  # fmt: skip
  images = rng.uniform(-1, 1, (2, *timm.image_size, 3)).astype(np.float32)
  np.save(extended / 'images.npy', images)
  (snippet,) = (text for _, title, text in BLOCKS if not title)
  result = subprocess.run(
    [sys.executable, '-c', SCRIPT, json.dumps([*TINY, '--config.eval_batch_size=24']),
     snippet.replace('num_heads=12', 'num_heads=3, image_size=(8, 20)')],
    cwd=extended, env=os.environ | {'PYTHONPATH': str(extended)},
    capture_output=True, text=True, timeout=300,
  )  # fmt: skip
  assert result.returncode == 0, result.stderr
  assert 'done: test accuracy' in result.stdout and '24 examples' in result.stdout
  scores = json.loads(next(x for x in result.stdout.splitlines() if x.startswith('{')))
  assert scores['nearest_mean']['accuracy'] > 0.9  # of classes that differ in brightness
  assert 'torchvision layout' in result.stdout and 'states no preprocessing' in result.stdout
  np.testing.assert_allclose(np.load(extended / 'logits.npy'), timm(images), rtol=1e-5, atol=1e-6)


def test_the_head_learns(tiny_run, monkeypatch, tmp_path):
  (code,) = (text for _, title, text in BLOCKS if title == 'regression.py')
  monkeypatch.chdir(tmp_path)
  code = code.replace('runs/quickstart/model', f'{tiny_run}/model')
  for freeze in (True, False):
    names = {}
    exec(code.replace('freeze = False', f'freeze = {freeze}'), names)
    assert float(names['value']) < 0.1 * np.mean(names['targets'] ** 2)  # that of zeros
    before, after = names['backbone'], names['params'][0]
    same = [np.array_equal(*x) for x in zip(*map(jax.tree.leaves, (before, after)), strict=True)]
    assert all(same) if freeze else not any(same)
