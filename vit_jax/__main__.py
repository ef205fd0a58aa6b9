"""Lists the commands, or runs one: `python -m vit_jax [COMMAND …]`; installed as `vit-jax`."""

import ast
import difflib
import pathlib
import runpy
import sys

from vit_jax.errors import UserError
from vit_jax.text import printable

COMMANDS = {  # name: its module, in the order of their use
  'train': 'main',
  'evaluate': 'evaluate',
  'predict': 'predict',
  'explain': 'explain',
  'convert': 'convert',
  'catalog': 'catalog',
  'prepare_data': 'prepare_data',
  'plan': 'plan',
  'report': 'report',
  'goodput': 'goodput',
  'verify': 'verify',
  'sweep': 'sweep',
  'vtab': 'vtab',
  'scaling': 'experiments.scaling',
}
_USAGE = """\
usage: vit-jax COMMAND …, or python -m vit_jax COMMAND …

{commands}

vit-jax COMMAND --help shows the arguments of a command, train --help all fields of a config.
"""


def _summary(module: str) -> str:
  """The first sentence of a module's docstring, without its example; imports nothing."""
  path = pathlib.Path(__file__).parent.joinpath(*module.split('.')).with_suffix('.py')
  text = ast.get_docstring(ast.parse(path.read_text('utf-8'))) or ''
  return text.splitlines()[0].split(': `')[0].rstrip('.')


def main() -> None:
  """Runs the command that the command line names, as `python -m vit_jax.MODULE` does."""
  name = sys.argv[1] if len(sys.argv) > 1 else '--help'
  if name in ('-h', '--help'):
    width = max(map(len, COMMANDS)) + 2
    lines = [f'  {name:{width}}{_summary(module)}' for name, module in COMMANDS.items()]
    print(_USAGE.format(commands='\n'.join(lines)), end='')
    return
  if name not in COMMANDS:
    close = difflib.get_close_matches(name, COMMANDS, n=3, cutoff=0.5)
    choices = ', '.join(close or COMMANDS)
    message = f'There is no command {printable(name)[:40]!r}; choose {choices}.'
    print(f'error: {message}', file=sys.stderr)
    sys.exit(UserError.exit_code)
  del sys.argv[1]
  # Processes that it starts import `__main__` again: it must be the command's module.
  runpy.run_module(f'vit_jax.{COMMANDS[name]}', run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  main()
