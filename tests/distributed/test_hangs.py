"""Real processes that hang, are stopped, or get the error of a faulty machine: how they end."""

import re
import signal
import socket

import jax
import pytest

from tests import process_groups
from tests.process_groups import ARGUMENTS, messages, wait_for_exit, wait_for_line
from vit_jax.errors import LostPeerError, faults_named

# The command, with a fault after its fourth step, or another statement at its beginning.
COMMAND = """
import ctypes, os, signal, sys, time
import jax
from vit_jax import command_line, main
from vit_jax.distributed import peers, processes
from vit_jax.training.initial_state import Start
from vit_jax.training.progress import Progress

def hang():
  time.sleep(1000)

def update(self, number=iter(range(1, 100)), update=Progress.update):
  update(self)
  if next(number) == 4:
    {fault}

Progress.update = update
{setup}
command_line.run(main.main)
"""


def start_group(fault, count, *arguments, setup=''):
  """Starts a run of `count` processes with the fault, a statement."""
  command = ('-c', COMMAND.format(fault=fault or 'pass', setup=setup))
  return process_groups.start_group(count, 1, *ARGUMENTS, *arguments, command=command)


def test_a_hang_ends_all_processes_and_leaves_the_stacks_of_each(tmp_path):
  fault = 'processes._watchdog._timeout = 1; hang()'
  codes, errors = wait_for_exit(start_group(fault, 2, f'--workdir={tmp_path}'))
  assert codes == [78, 78], errors
  assert 'Nothing has finished for 1 s on ' in errors[0] + errors[1]
  stacks = [file.read_text() for file in (tmp_path / 'hangs').iterdir()]
  assert len(stacks) == 2 and all(' in hang' in text for text in stacks)


def test_a_restore_that_hangs_ends_the_run(tmp_path):
  setup = 'Start.make_state = lambda *unused: hang()'
  group = start_group('', 1, f'--workdir={tmp_path}', '--config.hang_timeout=1', setup=setup)
  codes, errors = wait_for_exit(group)
  assert codes == [78] and 'Nothing has finished for 1 s on ' in errors[0], errors
  (stacks,) = (tmp_path / 'hangs').iterdir()
  assert ' in hang' in stacks.read_text()


def test_a_process_that_is_stopped_is_lost_by_its_silence(tmp_path):
  fault = 'peers.SILENCE_SECONDS = 8'
  group = start_group(fault, 2, f'--workdir={tmp_path}', '--config.total_steps=100000')
  wait_for_line(group[0], 'step 10/')
  group[1].send_signal(signal.SIGSTOP)
  try:
    codes, errors = wait_for_exit(group[:1])
  finally:
    group[1].send_signal(signal.SIGCONT)
  assert codes == [76], errors
  (message,) = messages(errors[0])
  name = re.escape(f'process 1 ({socket.gethostname()}) was lost (stopped or unreachable: no ')
  assert re.match(rf'error: {name}heartbeat for \d+ s\); rerun the same command', message)
  codes, errors = wait_for_exit(group[1:])
  assert codes == [76] and 'process 0 ' in errors[0], errors


def test_sigterm_ends_a_process_that_does_not_get_to_save(tmp_path):
  stuck = 'print("stuck", flush=True); ctypes.CDLL(None).sleep(1000)'  # runs no signal handler
  group = start_group(stuck, 2, f'--workdir={tmp_path}', '--config.grace_period=1')
  wait_for_line(group[0], 'stuck')
  group[0].terminate()
  codes, errors = wait_for_exit(group)
  assert codes == [75, 76], errors
  assert messages(errors[0]) == [
    'stopped: received SIGTERM, and 1 s later no step was saved; rerun the same command to resume '
    'from the last checkpoint.'
  ]


FAULT = 'INTERNAL: Accelerator device halted prematurely'


def test_the_host_of_a_fault_is_named(tmp_path):
  fault = f'raise jax.errors.JaxRuntimeError("{FAULT}")'
  codes, errors = wait_for_exit(start_group(fault, 1, f'--workdir={tmp_path}'))
  assert codes == [77], errors
  assert messages(errors[0]) == [
    f'error: A device or the network of {socket.gethostname()} failed ({FAULT}); rerun the '
    'same command to resume from the last checkpoint, on another host if it fails again.'
  ]
  (record,) = (tmp_path / 'failures').iterdir()
  assert record.name == f'0-{socket.gethostname()}.txt' and FAULT in record.read_text()


@pytest.mark.parametrize('is_sound', [True, False])
def test_a_process_that_does_not_connect_before_the_first_collective_is_lost(is_sound):
  message = (
    'UNKNOWN: Gloo context initialization failed: DEADLINE_EXCEEDED: GetKeyValue() timed out with '
    'key: cpu:gloo/0,1/4 and duration: 29.999999729s'
  )
  with pytest.raises(LostPeerError, match='did not connect .*29.999999729s.*rerun'):
    with faults_named(lambda: is_sound):
      raise jax.errors.JaxRuntimeError(message)


@pytest.mark.parametrize(
  ('message', 'is_sound'),
  [
    ('INVALID_ARGUMENT: shapes', True),
    ('RESOURCE_EXHAUSTED: INTERNAL', True),
    (FAULT, False),  # of the first step, perhaps a bug of the compiler
  ],
)
def test_an_error_of_the_program_stays_one(message, is_sound):
  with pytest.raises(jax.errors.JaxRuntimeError, match=message):
    with faults_named(lambda: is_sound):
      raise jax.errors.JaxRuntimeError(message)
