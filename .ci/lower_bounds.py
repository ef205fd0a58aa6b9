"""Prints lower bounds of the dependencies as pip constraints: jax>=0.10.0 -> jax==0.10.0.*"""

import pathlib
import re
import tomllib

project = tomllib.loads(pathlib.Path('pyproject.toml').read_text())['project']
for dependency in project['dependencies']:
  requirement, _, marker = dependency.partition(';')
  name = re.sub(r'\[.*?\]', '', requirement)  # constraints take no extras
  print(f'{name.replace(">=", "==").strip()}.*' + (f';{marker}' if marker else ''))
