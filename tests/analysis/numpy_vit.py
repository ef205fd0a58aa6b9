"""The Transformer of a ViT in NumPy, float64, written from the equations of the paper."""

import numpy as np


def float64(tree):
  if hasattr(tree, 'items'):
    return {name: float64(value) for name, value in tree.items()}
  return np.asarray(tree, np.float64)


def norm(x, p):
  x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p['scale'] + p['bias']


def gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def mlp(x, p):
  hidden = gelu(x @ p['Dense_0']['kernel'] + p['Dense_0']['bias'])
  return hidden @ p['Dense_1']['kernel'] + p['Dense_1']['bias']


def attend(queries, tokens, p, offset=0.0):
  """One image: (M, D), (N, D) -> (M, D), the weights (K, M, N)."""
  q = np.einsum('nd,dkf->knf', queries, p['query']['kernel']) + p['query']['bias'][:, None]
  k = np.einsum('nd,dkf->knf', tokens, p['key']['kernel']) + p['key']['bias'][:, None]
  v = np.einsum('nd,dkf->knf', tokens, p['value']['kernel']) + p['value']['bias'][:, None]
  logits = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights = weights / weights.sum(-1, keepdims=True)
  mixed = (weights + offset) @ v
  return np.einsum('knf,kfd->nd', mixed, p['out']['kernel']) + p['out']['bias'], weights


def run(params, patches, pool, offsets=None):
  """(h w, D) embedded patches of one image -> logits (C,), [weights (K, N, N) of each block, and
  of the query of pool map].
  """
  p, x, weights = params['Transformer'], patches, []
  depth = sum(name.startswith('encoderblock') for name in p)
  offsets = offsets or [0.0] * (depth + 1)
  if pool == 'token':
    x = np.concatenate([params['cls'][0], x])
  x = x + p['posembed_input']['pos_embedding'][0]
  for i in range(depth):
    block = p[f'encoderblock_{i}']
    y = norm(x, block['LayerNorm_0'])
    y, new = attend(y, y, block['MultiHeadDotProductAttention_0'], offsets[i])
    weights.append(new)
    x = x + y
    x = x + mlp(norm(x, block['LayerNorm_1']), block['MlpBlock_0'])
  x = norm(x, p['encoder_norm'])
  if pool == 'map':
    head = params['MAPHead_0']
    x, new = attend(head['probe'][0], x, head['MultiHeadDotProductAttention_0'], offsets[depth])
    weights.append(new)
    x = (x + mlp(norm(x, head['LayerNorm_0']), head['MlpBlock_0']))[0]
  else:
    x = x[0] if pool == 'token' else x.mean(0)
  if 'pre_logits' in params:
    x = np.tanh(x @ params['pre_logits']['kernel'] + params['pre_logits']['bias'])
  if 'head' in params:
    x = x @ params['head']['kernel'] + params['head']['bias']
  return x, weights


def rolled(weights):
  """Attention rollout of [(K, N, N), …]: (N, N)."""
  result = np.eye(weights[0].shape[-1])
  for each in weights:
    mixing = each.mean(0) + np.eye(len(result))
    result = mixing / mixing.sum(-1, keepdims=True) @ result
  return result
