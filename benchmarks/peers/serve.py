"""Runs another implementation for model_speed.py, which asks in lines of JSON on stdin.

It needs only what that implementation needs, so that it can run in a Python environment of its own.
The answers are lines of JSON on stdout; what libraries print goes to stderr.

  {"peer": "timm", "model": {…}, "paths": […], "preload": "", "threads": 2, "tf32": false}
    -> {"python": …, "versions": {"torch": …}, "device": …, "parameters": …, "optimizer": …}
  {"run": "forward" or "step", "calls": 10}
    -> {"seconds": of all calls, "loss": of the last step}
  A request that fails -> {"error": a sentence}
"""

import importlib
import json
import os
import platform
import sys

# The module beside this file whose `build(request)` returns a workload.
MODULES = {
  'timm': 'torch_models',
  'timm_compile': 'torch_models',
  'transformers': 'torch_models',
  'original': 'original_models',
}


def build(request):
  """Imports and builds a peer; returns a workload: `description` and `run(kind, calls)`."""
  sys.path[:0] = request['paths']
  if request['preload']:
    importlib.import_module(request['preload'])
  return importlib.import_module(MODULES[request['peer']]).build(request)


def serve(build, requests, answers):
  """Answers the requests, the first of which builds the workload, until they end."""
  workload = None
  for line in requests:
    request = json.loads(line)
    try:
      if workload is None:
        workload = build(request)
        answer = {'python': platform.python_version(), **workload.description}
      else:
        answer = workload.run(request['run'], request['calls'])
    except Exception as error:  # noqa: BLE001 - the process that asked says it
      lines = str(error).strip().splitlines() or ['']
      answer = {'error': f'{type(error).__name__}: {lines[0]}'}
    answers.write(json.dumps(answer) + '\n')
    answers.flush()


def main():
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  serve(build, sys.stdin, answers)


if __name__ == '__main__':
  main()
