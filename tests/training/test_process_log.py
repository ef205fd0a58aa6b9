"""The log of a process: what is in it, in buckets too, and storage that fails or hangs."""

import os
import pty
import re
import socket
import subprocess
import sys
import termios
import time

import pytest
from etils import epath

from tests.helpers import SANDBOX
from vit_jax.errors import UserError
from vit_jax.training import process_log
from vit_jax.training.process_log import open_log, output_logged

NAME = f'{socket.gethostname()}-0'
START = rf'--- \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC, process 0 on {socket.gethostname()}, PID \d+\n'


@pytest.fixture
def workdir(tmp_path):
  (tmp_path / 'config.json').touch()
  return epath.Path(tmp_path)


def read_log(workdir):
  return (workdir / 'logs' / f'{NAME}.log').read_text()


def test_each_start_appends_what_both_streams_print(workdir, capsys):
  for text in ('one', 'two'):
    with output_logged(workdir, None):
      print('before', text)
      open_log(workdir)
      print(text)
      print('warning:', text, file=sys.stderr)
      assert read_log(workdir).endswith(f'before {text}\n{text}\nwarning: {text}\n')  # at once
  assert re.fullmatch(
    ''.join(f'{START}before {x}\n{x}\nwarning: {x}\n' for x in ('one', 'two')), read_log(workdir)
  )
  assert capsys.readouterr() == (
    'before one\none\nbefore two\ntwo\n',
    'warning: one\nwarning: two\n',
  )


@pytest.mark.parametrize(
  ('error', 'text'),
  [(UserError('It is wrong.'), 'error: It is wrong.\n'), (KeyError('x'), "KeyError: 'x'\n")],
)
def test_the_error_that_ends_a_run_is_logged_where_a_workdir_exists(error, text, workdir, tmp_path):
  for folder in (tmp_path / 'new', workdir):
    with pytest.raises(type(error)):
      with output_logged(folder, None):
        raise error
  assert not (tmp_path / 'new').exists()
  log = read_log(workdir)
  assert re.match(START, log) and log.endswith(text)
  assert ('Traceback' in log) == isinstance(error, KeyError)


BARS = """
import sys, time, tqdm
from vit_jax.training.process_log import open_log, output_logged
from etils import epath
assert sys.stdout.isatty()
with output_logged(sys.argv[1], None):
  open_log(epath.Path(sys.argv[1]))
  with tqdm.tqdm(total=5, file=sys.stdout, mininterval=0) as bar:
    for i in range(5):
      for _ in tqdm.tqdm(range(3), 'inner', leave=False, mininterval=0):
        pass
      bar.update()
      bar.set_postfix_str(f'loss {i}')
      with tqdm.tqdm.external_write_mode(file=sys.stdout):
        print('line', i)
  print('end')
"""


def test_a_progress_bar_stays_on_the_terminal(workdir):
  terminal, child = pty.openpty()
  termios.tcsetwinsize(terminal, (24, 80))
  with subprocess.Popen(
    [sys.executable, '-c', BARS, workdir], cwd=SANDBOX, stdout=child, stderr=child
  ) as process:
    os.close(child)
    shown = b''
    try:
      while data := os.read(terminal, 4096):
        shown += data
    except OSError:  # the terminal is closed
      pass
  os.close(terminal)
  assert process.returncode == 0, shown
  assert b'loss 4' in shown and b'inner' in shown and b'\r' in shown
  lines = ''.join(f'line {i}\n' for i in range(5))
  assert re.fullmatch(f'{START}{lines}end\n', read_log(workdir))


def test_storage_that_fails_is_one_warning_and_retried(workdir, capsys):
  (workdir / 'logs').touch()  # a file, where the folder would be
  with output_logged(workdir, None):
    open_log(workdir)
    print('one')
    print('two')
    (workdir / 'logs').unlink()
    (workdir / 'logs').mkdir()
    print('three')
  out, err = capsys.readouterr()
  assert out == 'one\ntwo\nthree\n'
  path = re.escape(str(workdir / 'logs' / f'{NAME}.log'))
  assert re.fullmatch(
    rf'log: {path} cannot be written \(Not a directory\); training continues, .*\n', err
  )
  assert re.match(f'{START}', read_log(workdir)) and 'one\n' in read_log(workdir)
  assert read_log(workdir).endswith('three\n')


def test_storage_that_hangs_stops_no_process(workdir, capsys, monkeypatch):
  monkeypatch.setattr(process_log, '_WAIT_SECONDS', 0.2)
  (workdir / 'logs').mkdir()
  pipe = workdir / 'logs' / f'{NAME}.log'
  os.mkfifo(pipe)  # to open it waits for a reader
  started = time.monotonic()
  with output_logged(workdir, None):
    open_log(workdir)
    for i in range(100):
      print(i)
  assert time.monotonic() - started < 5
  assert capsys.readouterr().out == ''.join(f'{i}\n' for i in range(100))
  with open(os.open(pipe, os.O_RDWR)) as reader:  # the storage is back
    assert re.match(START, reader.readline())
    assert [reader.readline() for _ in range(100)] == [f'{i}\n' for i in range(100)]


def test_a_bucket_gets_an_object_for_each_start(workdir, capsys, monkeypatch):
  monkeypatch.setattr(process_log, 'is_remote', lambda path: True)  # a local folder in place of one
  (workdir / 'logs').mkdir()  # which a bucket does not need
  with output_logged(workdir, None):
    open_log(workdir)
    print('one')
    print('warning', file=sys.stderr)
    (path,) = (workdir / 'logs').iterdir()
    assert re.fullmatch(rf'{re.escape(NAME)}-\d{{8}}T\d{{6}}-000001[.]log', path.name)
    assert re.fullmatch(f'{START}one\nwarning\n', path.read_text())  # for it is on stderr
    print('two')
  assert path.read_text().endswith('warning\ntwo\n')
  assert capsys.readouterr().err == 'warning\n'
