"""Zero-shot accuracy against NumPy, in any order of the classes, and files that are wrong."""

import json

import numpy as np
import pytest

import vit_jax
from tests.helpers import random_params, read_example, run
from vit_jax.classifier import Classifier
from vit_jax.config import EvalConfig
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError
from vit_jax.evaluation.score import score
from vit_jax.evaluation.zero_shot import read_class_embeddings
from vit_jax.models.vit import VisionTransformer

DIM, SIZE = 6, (8, 8)


def make_classifier(num_outputs: int) -> Classifier:
  model = VisionTransformer(4, 12, 1, 16, 2, num_outputs, pool='gap', head_bias=False)
  return Classifier(model, random_params(model, SIZE), SIZE)


def write(path, **arrays) -> str:
  np.savez(path, **arrays)
  return str(path)


def zero_shot(vit, file) -> dict[str, float]:
  config = EvalConfig(
    kind='zero_shot', source='digits', split='test', batch_size=64, class_embeddings=file
  )
  return score(vit, {'zero_shot': config}).outcomes['zero_shot'].metrics


def embeddings(dim: int = DIM) -> np.ndarray:
  return np.random.default_rng(0).normal(size=(10, dim)).astype(np.float32)


def reference(vit, scale: float, bias: float | None) -> tuple[float, float]:
  """(accuracy, loss) in float64."""
  source = open_source('digits', 'test')
  images, labels = zip(*(read_example(source, i) for i in range(source.size)), strict=True)
  outputs = np.float64(vit(np.stack([vit.preprocess(image) for image in images])))
  texts = np.float64(embeddings(outputs.shape[1]))
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
  logits, rows = scale * unit(outputs) @ unit(texts).T + (bias or 0), np.arange(source.size)
  labels = np.array(labels)
  if bias is None:
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[rows, labels]
  else:
    signs = np.where(np.arange(10) == labels[:, None], 1, -1)
    losses = np.log1p(np.exp(-signs * logits)).sum(axis=1)
  return (logits.argmax(axis=1) == labels).mean(), losses.mean()


@pytest.mark.parametrize('num_outputs', [DIM, 0])  # with a projection as CLIP, without as SigLIP
@pytest.mark.parametrize('bias', [None, -3.0])
def test_scores_are_those_of_the_cosines(num_outputs, bias, tmp_path):
  vit = make_classifier(num_outputs)
  texts = embeddings(num_outputs or 12)
  arrays = {'embeddings': 7 * texts, 'logit_scale': 4.0}
  file = write(tmp_path / 'x.npz', **arrays, **({} if bias is None else {'logit_bias': bias}))
  metrics = zero_shot(vit, file)
  accuracy, loss = reference(vit, 4.0, bias)
  assert metrics['examples'] == 360 and metrics['accuracy'] == accuracy
  np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-4)


def test_names_give_the_order_of_the_classes(tmp_path):
  vit, order = make_classifier(DIM), np.random.default_rng(1).permutation(12)
  extra = np.concatenate([embeddings(), np.ones((2, DIM), np.float32)])
  names = np.array([*open_source('digits', 'test').class_names, 'dog', 'cat'])
  plain = zero_shot(vit, write(tmp_path / 'x.npz', embeddings=embeddings()))
  named = write(tmp_path / 'y.npz', embeddings=extra[order], names=names[order])
  assert zero_shot(vit, named) == plain
  with pytest.raises(UserError, match='missing: '):
    zero_shot(vit, write(tmp_path / 'z.npz', embeddings=embeddings()[:9], names=names[3:]))


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({'embedding': np.ones((2, 3))}, "has no class embeddings: it has an array 'embedding'; those"),
    ({}, "it has no array 'embeddings'"),
    ({'embeddings': np.ones(3)}, r'the shape \(3,\), not \(classes, features\)'),
    ({'embeddings': np.zeros((2, 3))}, 'an embedding is zero or not finite'),
    ({'embeddings': np.full((2, 3), np.nan)}, 'an embedding is zero or not finite'),
    ({'embeddings': np.ones((2, 3)), 'names': ['a']}, 'there are 1 names of 2 embeddings'),
    ({'embeddings': np.ones((2, 3)), 'names': ['a', 'a']}, 'two classes have the same name'),
    ({'embeddings': np.ones((2, 3)), 'logit_scale': -1}, 'logit_scale is -1.0 and logit_bias None'),
    ({'embeddings': np.array([{}, []], object)}, 'has no class embeddings: .*allow_pickle=False'),
  ],
)
def test_wrong_files_are_one_sentence(arrays, message, tmp_path):
  with pytest.raises(UserError, match=message):
    read_class_embeddings(write(tmp_path / 'x.npz', **arrays))


def test_a_file_must_exist_and_be_an_archive(tmp_path):
  with pytest.raises(UserError, match='There is no file of class embeddings at'):
    read_class_embeddings(tmp_path / 'x.npz')
  (tmp_path / 'x.npz').write_bytes(b'PK no archive')
  with pytest.raises(UserError, match='has no class embeddings'):
    read_class_embeddings(tmp_path / 'x.npz')


def test_other_features_and_missing_files_are_refused(tmp_path):
  file = write(tmp_path / 'x.npz', embeddings=embeddings(5))
  with pytest.raises(UserError, match='have 5 features, but those of the model 6; take those of'):
    zero_shot(make_classifier(DIM), file)
  with pytest.raises(UserError, match="class_embeddings is ''; kind is zero_shot; zero_shot needs"):
    EvalConfig(kind='zero_shot')


def test_the_command(tmp_path):
  vit = make_classifier(DIM)
  vit.save(tmp_path / 'model')
  file = write(tmp_path / 'x.npz', embeddings=embeddings(), logit_scale=4.0)
  flags = ['--data=digits', '--eval=zero_shot', f'--class_embeddings={file}', '--json']
  result = run('evaluate', f'--model={tmp_path / "model"}', *flags)
  assert result.returncode == 0, result.stderr
  report = json.loads(result.stdout)['zero_shot']
  accuracy, _ = reference(vit_jax.load(tmp_path / 'model'), 4.0, None)
  assert report['accuracy'] == accuracy and report['examples'] == 360
