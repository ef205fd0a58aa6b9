"""Text that is shown: numbers, and names of strangers."""

import os
import subprocess
import sys

import pytest

from tests.helpers import SANDBOX
from vit_jax import errors, text

PRINTABLE = (
  'cat',
  'é',
  'e\u0301',
  '猫',
  '🐈',
  '❤\ufe0f',
  'Ελλάδα',
  'עברית',
  'a b',
  '10\u202f20',
  '\u3000',
)
HOSTILE = {
  '\n': '\\n',
  '\r': '\\r',
  '\t': '\\t',
  '\0': '\\x00',
  '\x1b[31m': '\\x1b[31m',
  '\x7f': '\\x7f',
  '\x9b31m': '\\x9b31m',
  '\xad': '\\xad',
  '\u061c': '\\u061c',
  '\u200b': '\\u200b',
  '\u200e': '\\u200e',
  '\u2028': '\\u2028',
  '\u202egnp.exe': '\\u202egnp.exe',
  '\u2066': '\\u2066',
  '\u2069': '\\u2069',
  '\ufeff': '\\ufeff',
  '\udcff': '\\udcff',
  '\U000e0041': '\\U000e0041',
}


@pytest.mark.parametrize('name', PRINTABLE)
def test_letters_of_all_scripts_are_kept(name):
  assert text.printable(name) == name


@pytest.mark.parametrize('name', HOSTILE)
def test_what_is_not_visible_is_escaped(name):
  shown = text.printable(f'é{name}猫')
  assert shown == f'é{HOSTILE[name]}猫'
  assert text.printable(shown) == shown


def test_lines_are_kept_where_they_are_wanted():
  assert text.printable_lines('a\x1b\nb\r\n') == 'a\\x1b\nb\\r\n'


def test_errors_are_printable(capsys):
  for error in (errors.UserError('a\n\x1b'), errors.BadExampleError('a\n\x1b')):
    assert str(error) == 'a\\n\\x1b'
    assert errors.report(error) == (2, 'a\\n\\x1b')
    assert capsys.readouterr().err == 'error: a\\n\\x1b\n'


def test_a_terminal_that_knows_only_ascii():
  script = (
    'from vit_jax import command_line, errors\n'
    'def main():\n'
    '  print("é 猫")\n'
    '  raise errors.UserError("ü \\x1b")\n'
    'command_line.run(main)\n'
  )
  environment = {**os.environ, 'LC_ALL': 'C', 'PYTHONIOENCODING': 'ascii'}
  command = [sys.executable, '-c', script]
  result = subprocess.run(command, cwd=SANDBOX, capture_output=True, env=environment, timeout=60)
  assert result.stdout == b'\\xe9 \\u732b\n'
  assert result.stderr == b'error: \\xfc \\x1b\n'
  assert result.returncode == 2
