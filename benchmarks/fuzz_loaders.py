"""Fuzzes `vit_jax.load`: a damaged file ends in one clean sentence or in a correct model.

  python benchmarks/fuzz_loaders.py --inputs=200000 --seed=0 --processes=2

Hypothesis (pip install 'vit_jax[fuzz]') draws how small valid models of every container and
layout are damaged, in two ways:

  bytes: bits, bytes, chunks and numbers changed, removed, repeated or spliced, anywhere. A zip
    holds checksums, so that an npz must then be refused or give the very parameters it held
    (or those of the npz that was spliced into it).
  structure: headers, names, shapes, types and data of single tensors and values of config.json
    changed in a file that is written anew, so that checksums and lengths are right.

An input is clean when `load` raises a `UserError` of one line, or returns a model of finite
float32 parameters as the model's own tree has them, with what NumPy and the safetensors library
read in the same file. Everything else is a failure: another exception, a crash, more than five
seconds, more than 256 MiB asked for (1 GiB with what is only mapped). Failing inputs are kept in
--failures, to be loaded by `vit_jax.load`. One row a container goes to
benchmarks/results/fuzz_loaders_<date>.csv.
"""

import argparse
import concurrent.futures
import csv
import dataclasses
import datetime
import faulthandler
import io
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

os.environ['JAX_PLATFORMS'] = 'cpu'

import hypothesis  # noqa: E402
import jax  # noqa: E402
import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402
import safetensors.numpy  # noqa: E402
from fuzz_damage import (  # noqa: E402
  damaged_bytes,
  damaged_npz,
  damaged_safetensors,
  damaged_value,
  dumps,
  landmarks,
  parse_npz,
  parse_safetensors,
)
from hypothesis import strategies as st  # noqa: E402

import vit_jax  # noqa: E402
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.resnet import BiTResNet
from vit_jax.models.rotary import ROTARIES
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.formats.lazy_tensor import METADATA_KEY
from vit_jax.weights.formats.tensor_file import read_tensors
from vit_jax.weights.layouts import released, timm

MAX_SECONDS = 5
MAX_BYTES = 2**28  # asked for by one load; zips of any size may declare 2**26
MAX_MAPPED = 2**30  # with what is only reserved, by threads too
JOB = 5000  # inputs of one process, so that its caches stay small
# Tensors without which a file is that of another model: a head, biases of attention.
OPTIONAL = re.compile(r'mask_token$|[qkv]_(proj\.)?bias$|^(head|classifier|visual_projection)')
CHOICES = 2000  # random bytes that Hypothesis makes an input of; few need as many

Files = dict[str, bytes]  # {name in the folder: content}; a single one stands for itself


# --- valid models ---------------------------------------------------------------------------


def _params(model: build.Model) -> Any:
  rng = np.random.default_rng(0)
  abstract = build.abstract_params(model, (8, 8))
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract)


def _npz(tensors: dict[str, np.ndarray], compressed: bool = False) -> Files:
  buffer = io.BytesIO()
  (np.savez_compressed if compressed else np.savez)(buffer, **tensors)
  return {'x.npz': buffer.getvalue()}


def _saved(model: build.Model, name: str, layout: str | None = None) -> Files:
  labels = ['cat', 'dog', 'größe']
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / name
    vit_jax.Classifier(model, _params(model), (8, 8), labels).save(path, layout)
    paths = path.iterdir() if path.is_dir() else [path]
    return {path.name: path.read_bytes() for path in paths}


def _scanned(model: VisionTransformer) -> dict[str, np.ndarray]:
  """big_vision's names: a stack of blocks, position embeddings apart, bfloat16."""
  tensors = released.flatten(_params(model))
  stacks = {name for name in tensors if '/encoderblock_0/' in name}
  scanned = {name: x for name, x in tensors.items() if '/encoderblock_' not in name}
  scanned['pos_embedding'] = scanned.pop(released.POSITIONS)
  for name in stacks:
    blocks = [tensors[name.replace('block_0/', f'block_{i}/')] for i in range(model.depth)]
    scanned[name.replace('block_0/', 'block/')] = np.stack(blocks)
  return {f'params/img/{name}': x.astype(ml_dtypes.bfloat16) for name, x in scanned.items()}


def _shards(files: Files) -> Files:
  """A folder of Transformers whose weights are in two files."""
  tensors = safetensors.numpy.load(files.pop('model.safetensors'))
  names = sorted(tensors)
  shards = {'a.safetensors': names[::2], 'b.safetensors': names[1::2]}
  index = {'metadata': {}, 'weight_map': {n: shard for shard in shards for n in shards[shard]}}
  weights = {
    shard: safetensors.numpy.save({name: tensors[name] for name in names})
    for shard, names in shards.items()
  }
  return files | weights | {'model.safetensors.index.json': json.dumps(index).encode()}


def _timm_folder(model: VisionTransformer) -> Files:
  """timm's config.json, and LayerScale."""
  tensors = timm.from_linen(model, _params(model))
  for i in range(model.depth):
    for j in (1, 2):
      tensors[f'blocks.{i}.ls{j}.gamma'] = np.linspace(0, 1, model.width, dtype=np.float32)
  config = {
    'architecture': 'vit_tiny',
    'num_classes': 3,
    'model_args': {'img_size': 8, 'num_heads': 2, 'act_layer': 'gelu_tanh'},
    'pretrained_cfg': {
      'input_size': [3, 8, 8],
      'crop_pct': 0.9,
      'mean': [0.4, 0.5, 0.6],
      'std': [0.2] * 3,
      'label_names': ['cat', 'dog', 'cow'],
    },
  }
  weights = safetensors.numpy.save(tensors, metadata={'format': 'pt'})
  return {'model.safetensors': weights, 'config.json': json.dumps(config).encode()}


def _clip() -> Files:
  """The image tower of CLIP under the names of its authors, without a config."""
  model = VisionTransformer(4, 64, 1, 64, 1, num_classes=3, pre_norm=True, patch_bias=False)
  names = {
    'patch_embed.proj': 'conv1',
    'cls_token': 'class_embedding',
    'pos_embed': 'positional_embedding',
    'norm_pre': 'ln_pre',
    'blocks.': 'transformer.resblocks.',
    '.norm': '.ln_',
    '.qkv.': '.in_proj_',
    'attn.proj': 'attn.out_proj',
    'fc1': 'c_fc',
    'fc2': 'c_proj',
    'head.weight': 'proj',
  }
  tensors = {}
  for name, array in timm.from_linen(model, _params(model)).items():
    for old, new in names.items():
      name = name.replace(old, new)
    name = 'ln_post' + name.removeprefix('norm') if name.startswith('norm.') else name
    tensors[f'visual.{name}'] = array.T.copy() if name == 'proj' else array
  tensors.pop('visual.head.bias')
  return {'x.safetensors': safetensors.numpy.save(tensors)}


def _foreign(files: Files) -> Files:
  """A folder as the other library writes it, without our own metadata."""
  config = json.loads(files['config.json'])
  del config[METADATA_KEY]
  return files | {'config.json': json.dumps(config).encode()}


def make_models() -> dict[str, Files]:
  """A small valid model for each container and layout."""
  vit = VisionTransformer(4, 16, 2, 24, 2, num_classes=3, pool='token')
  pre_logits, pooled = vit.clone(pre_logits=8), vit.clone(pool='map')
  hybrid = vit.clone(patch_size=8, depth=1, resnet_width=32, resnet_blocks=(1,))
  dinov3 = vit.clone(
    registers=2, rotary=ROTARIES['dinov3'], position_embedding='none', layer_scale=0.1, mlp='swiglu'
  )
  eva02 = vit.clone(
    pool='gap',
    class_token=True,
    final_norm='pooled',
    rotary=dataclasses.replace(ROTARIES['eva02'], reference_grid=(2, 2)),
    mlp='swiglu_norm',
  )
  dinov2 = vit.clone(layer_scale=0.1, num_classes=0, mlp_dim=32)
  clip = dinov3.clone(
    registers=0,
    rotary=None,
    position_embedding='1d',
    layer_scale=0.0,
    mlp='gelu',
    pre_norm=True,
    patch_bias=False,
    head_bias=False,
  )
  transformers = {
    'DINOv2 in Transformers': dinov2.clone(pool='token_gap', num_classes=3),
    'DINOv2 with registers in Transformers': dinov2.clone(registers=2),
    'DINOv3 in Transformers': dinov3.clone(num_classes=0),
    'SigLIP in Transformers': vit.clone(pool='map', num_classes=0),
    'CLIP in Transformers': clip,
    'DeiT in Transformers': vit.clone(pool='distilled'),
  }
  timm_models = {
    'DINOv3 in timm': dinov3,
    'EVA-02 in timm': eva02,
    'DeiT in timm': vit.clone(pool='distilled'),
    'CLIP in timm': clip.clone(head_bias=True),
  }
  bit = BiTResNet(32, (1,), num_classes=3)
  return {
    'released npz': _npz(released.from_linen(_params(pre_logits))),
    'compressed npz': _npz(released.from_linen(_params(vit)), compressed=True),
    'big_vision npz': _npz(_scanned(pooled)),
    'BiT npz': _npz(released.from_linen(_params(bit))),
    'hybrid npz': _npz(released.from_linen(_params(hybrid))),
    'npz of our own': _saved(vit, 'x.npz'),
    'folder of our own': _saved(pre_logits, 'model', 'model'),
    'timm safetensors': _saved(vit, 'x.safetensors'),
    'timm folder': _timm_folder(vit),
    'timm folder of our own': _saved(pooled, 'model', 'timm'),
    **{name: _foreign(_saved(x, 'model', 'timm')) for name, x in timm_models.items()},
    'CLIP safetensors': _clip(),
    'Transformers folder': _saved(vit, 'model', 'huggingface'),
    **{name: _foreign(_saved(x, 'model', 'huggingface')) for name, x in transformers.items()},
    'Transformers shards': _shards(_saved(vit, 'model', 'huggingface')),
  }


# --- inputs and what becomes of them --------------------------------------------------------


@st.composite
def inputs(draw: Callable, files: Files, prepared: dict[str, Any]) -> tuple[Files, bool]:
  """(damaged files, whether the damage knew their structure)."""
  name = draw(st.sampled_from(sorted(files)))
  parsed, marks, others = prepared[name]
  structured = parsed is not None and draw(st.booleans())
  if not structured:
    damaged = draw(damaged_bytes(files[name], marks, others))
  elif name.endswith('.json'):
    damaged = dumps(draw(damaged_value(parsed)))
  else:
    damage = damaged_npz if name.endswith('.npz') else damaged_safetensors
    damaged = draw(damage(parsed))
  return {**files, name: damaged}, structured


def prepare(files: Files, everything: list[bytes]) -> dict[str, Any]:
  """What `inputs` needs of each file: its parts, its landmarks, other files to splice."""
  parsers = {'.npz': parse_npz, '.safetensors': parse_safetensors, '.json': lambda data: data}
  prepared = {}
  for name, data in files.items():
    parse = parsers.get(pathlib.Path(name).suffix, lambda data: None)
    prepared[name] = parse(data), landmarks(data), everything
  return prepared


def reference_tensors(path: pathlib.Path, container: str) -> dict[str, np.ndarray]:
  """A file as the libraries that define its format read it."""
  if container == 'safetensors':
    return safetensors.numpy.load_file(path)
  with np.load(path) as archive:
    return dict(archive)


def check(
  source: pathlib.Path, paths: list[pathlib.Path], originals: list[Any], names: set[str]
) -> str:
  """Loads `source`: 'error' or 'load'; an AssertionError or any other tells of a failure.

  Args:
    source: what is loaded.
    paths: the files of tensors in it.
    originals: one of these are its parameters if it loads; none when they may be others.
    names: of the tensors in valid files of safetensors; none for another format.
  """
  try:
    vit = vit_jax.load(source)
  except UserError as error:
    text = str(error)
    assert text.strip() and len(text.splitlines()) == 1, f'not one line: {text!r}'
    assert len(text) < 3000, f'a long sentence: {text[:300]}'
    assert 'allocate' not in text and 'MemoryError' not in text, f'too much memory: {text}'
    return 'error'
  tensors = released.flatten(vit.params)
  wanted = released.flatten(build.abstract_params(vit.model, vit.image_size))
  assert {n: x.shape for n, x in tensors.items()} == {n: x.shape for n, x in wanted.items()}
  for name, x in tensors.items():
    assert x.dtype == np.float32 and np.isfinite(x).all(), f'{name} is {x.dtype} or not finite'
  assert 0 < vit.preprocessing.crop_fraction <= 1 and vit.loss in ('softmax', 'sigmoid')
  assert vit.labels is None or (
    isinstance(vit.labels, list) and len(vit.labels) == vit.model.num_classes
  ), f'labels {vit.labels}'
  same = (
    tensors.keys() == one.keys() and all(np.array_equal(x, one[n]) for n, x in tensors.items())
    for one in originals
  )
  assert not originals or any(same), 'other parameters than written'
  if names:
    folder = source if source.is_dir() else source.parent
    found = {n for path in folder.glob('*.safetensors') for n in read_tensors(path).tensors}
    for name in found - names:
      assert name.endswith(vit.report.ignored), f'{name} is left over and not named'
    for name in names - found:
      assert OPTIONAL.search(name), f'{name} is missing, and nobody says so'
  for path in paths:
    file = read_tensors(path)
    ours = {name: tensor.read() for name, tensor in file.tensors.items()}
    theirs = reference_tensors(path, file.container)
    assert ours.keys() == theirs.keys(), f'other names than the library of {path.name} reads'
    for name, x in ours.items():
      same = x.shape == theirs[name].shape and x.tobytes() == theirs[name].tobytes()
      assert same, f'{name} is not what the library of {path.name} reads'
  return 'load'


def write_files(folder: pathlib.Path, files: Files) -> pathlib.Path:
  """Writes an input; what is to be loaded: its folder, or its only file."""
  for name, data in files.items():
    (folder / name).write_bytes(data)
  return folder / next(iter(files)) if len(files) == 1 else folder


def limit_memory() -> None:
  """Lets this process have MAX_BYTES and MAX_MAPPED more than it has."""
  pages = [int(count) for count in pathlib.Path('/proc/self/statm').read_text().split()]
  for limit, count, more in (
    (resource.RLIMIT_DATA, pages[5], MAX_BYTES),
    (resource.RLIMIT_AS, pages[0], MAX_MAPPED),
  ):
    _, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (count * resource.getpagesize() + more, hard))


def run_job(
  container: str, count: int, seed: int, folder: pathlib.Path, failures: pathlib.Path
) -> None:
  """Loads `count` damaged copies of one model; the result goes to folder/result.json."""
  warnings.simplefilter('ignore')
  models = make_models()
  files = models[container]
  weights = [data for name, data in files.items() if name.endswith('.safetensors')]
  names = {name for data in weights for name in safetensors.numpy.load(data)}
  everything = [data for other in models.values() for data in other.values()]
  prepared = prepare(files, everything)
  current = folder / 'input'
  current.mkdir()
  originals = []
  for i, other in enumerate(models.values()):
    (folder / str(i)).mkdir()
    vit = vit_jax.load(write_files(folder / str(i), other))
    originals += [released.flatten(vit.params)] if any('.npz' in name for name in other) else []
  result = {'inputs': 0, 'error': 0, 'load': 0, 'failures': 0}
  hashes, began = set(), time.perf_counter()

  def try_input(damaged_input: tuple[Files, bool]) -> None:
    damaged, structured = damaged_input
    changed = [name for name in damaged if damaged[name] != files[name]]
    digest = hash((container, *damaged.values()))
    if not changed or digest in hashes or damaged[changed[0]] in everything:
      return
    hashes.add(digest)
    source = write_files(current, damaged)
    # A zip has a checksum of every entry, JSON and safetensors have none.
    sure = not structured and changed[0].endswith('.npz')
    paths = [current / name for name in changed if name.endswith(('.npz', '.safetensors'))]
    limit_memory()
    faulthandler.dump_traceback_later(60, exit=True)
    start = time.process_time()
    try:
      outcome = check(source, paths, originals if sure else [], names)
      assert time.process_time() - start < MAX_SECONDS, f'more than {MAX_SECONDS} seconds'
      result[outcome] += 1
    except Exception:  # noqa: BLE001 - anything but a UserError is a failure
      keep(current, failures, f'{container} {seed} {result["inputs"]}', traceback.format_exc())
      result['failures'] += 1
    faulthandler.cancel_dump_traceback_later()
    result['inputs'] += 1

  settings = hypothesis.settings(database=None, deadline=None)
  fuzz = settings(hypothesis.given(inputs(files, prepared))(try_input)).hypothesis.fuzz_one_input
  rng = np.random.default_rng(seed)
  while result['inputs'] < count:
    try:
      fuzz(rng.bytes(CHOICES))
    except Exception as error:  # of this program
      error.__notes__ = []  # they are long
      raise
  result |= {'seconds': time.perf_counter() - began, 'hashes': sorted(hashes)}
  (folder / 'result.json').write_text(json.dumps(result))


def keep(current: pathlib.Path, failures: pathlib.Path, name: str, text: str) -> None:
  """Copies a failing input, with what happened."""
  path = failures / name.replace(' ', '_')
  shutil.copytree(current, path, dirs_exist_ok=True)
  (path / 'error.txt').write_text(text)
  print(f'FAILURE {path}: {text.strip().splitlines()[-1][:200]}', flush=True)


def start_job(container: str, count: int, seed: int, failures: pathlib.Path) -> dict[str, Any]:
  """Runs a job in a process of its own, which may crash or hang."""
  shm = '/dev/shm' if os.path.isdir('/dev/shm') else None
  with tempfile.TemporaryDirectory(dir=shm) as folder:
    command = [
      sys.executable,
      __file__,
      '--job',
      container,
      f'--inputs={count}',
      f'--seed={seed}',
      f'--folder={folder}',
      f'--failures={failures}',
    ]
    env = {**os.environ, 'PYTHONHASHSEED': '0'}
    with open(f'{folder}/stderr', 'wb') as stderr:
      code = subprocess.run(command, stderr=stderr, env=env).returncode
    path = pathlib.Path(folder)
    if code == 0:
      return json.loads((path / 'result.json').read_text())
    text = (path / 'stderr').read_text(errors='replace')[-20_000:]
    keep(path / 'input', failures, f'{container} {seed} crash', f'{text}\nexit code {code}')
    return {'inputs': 0, 'error': 0, 'load': 0, 'failures': 1, 'seconds': 0.0, 'hashes': []}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--inputs', type=int, default=200_000, help='of all containers together')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--processes', type=int, default=2)
  parser.add_argument('--containers', help='only those whose name holds this')
  parser.add_argument(
    '--failures',
    type=pathlib.Path,
    help='where they are kept',
    default=pathlib.Path(tempfile.gettempdir(), 'fuzz_failures'),
  )
  parser.add_argument('--out', type=pathlib.Path, default='benchmarks/results')
  parser.add_argument('--job', help=argparse.SUPPRESS)
  parser.add_argument('--folder', type=pathlib.Path, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.job:
    return run_job(args.job, args.inputs, args.seed, args.folder, args.failures)
  names = [name for name in make_models() if not args.containers or args.containers in name]
  if not names:
    parser.error(f'no container has {args.containers!r} in its name')
  each = -(-args.inputs // len(names))
  jobs = [
    (name, min(JOB, each - start), args.seed * 1000 + start // JOB, args.failures)
    for start in range(0, each, JOB)
    for name in names
  ]
  with concurrent.futures.ThreadPoolExecutor(args.processes) as pool:
    results = list(zip(jobs, pool.map(lambda job: start_job(*job), jobs), strict=True))
  rows = []
  for name in (*names, 'all'):
    job_results = [result for job, result in results if name in (job[0], 'all')]
    total = {
      key: sum(r[key] for r in job_results) for key in ('inputs', 'error', 'load', 'failures')
    }
    distinct = {digest for result in job_results for digest in result['hashes']}
    seconds = sum(result['seconds'] for result in job_results)
    rows.append(
      {
        'date': datetime.date.today().isoformat(),
        'container': name,
        'inputs': total['inputs'],
        'distinct': len(distinct),
        'clean_errors': total['error'],
        'correct_loads': total['load'],
        'failures': total['failures'],
        'inputs_per_process_second': round(total['inputs'] / max(seconds, 1e-9), 1),
        'seed': args.seed,
      }
    )
  widths = {key: 2 + max(len(str(row[key])) for row in [*rows, {key: key}]) for key in rows[0]}
  for row in ({key: key for key in rows[0]}, *rows):
    print(''.join(f'{row[key]!s:<{width}}' for key, width in widths.items()))
  path = args.out / f'fuzz_loaders_{datetime.date.today()}.csv'
  new = not path.exists()
  with path.open('a', newline='') as file:
    writer = csv.DictWriter(file, rows[0])
    if new:
      writer.writeheader()
    writer.writerows(rows)
  sys.exit(1 if rows[-1]['failures'] else 0)


if __name__ == '__main__':
  main()
