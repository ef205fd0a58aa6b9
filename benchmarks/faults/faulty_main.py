"""Runs `vit_jax.main`; once SIGUSR2 arrives, the process gets the fault that $FAULT names.

data_hang: the next batch never comes. collective_hang: the process never takes part in the next
step. storage: for 20 s every third file that is opened for writing fails with EIO. other_data: from
the start, an example is missing from the data.
"""

import builtins
import ctypes
import dataclasses
import errno
import io
import itertools
import os
import signal
import time

from vit_jax import command_line, main
from vit_jax.data.loading.loader import DataLoader
from vit_jax.distributed import peers
from vit_jax.training import loop, preflight

STORAGE_SECONDS = 20
_fault = os.environ['FAULT']
_received: list[float] = []  # when the signal came


def _hang(kind: str) -> None:
  if _fault == kind and _received:
    ctypes.CDLL(None).sleep(100_000)


def _with_data_hang(batches):
  def faulty(self, *args):
    for batch in batches(self, *args):
      _hang('data_hang')
      yield batch

  return faulty


def _with_collective_hang(should_stop):
  def faulty():
    _hang('collective_hang')
    return should_stop()

  return faulty


def _with_storage_errors(function):
  count = itertools.count()

  def faulty(file, mode='r', *args, **kwargs):
    writes = isinstance(mode, str) and set(mode) & set('wax+')
    is_faulty = _fault == 'storage' and _received
    if writes and is_faulty and time.monotonic() - _received[0] < STORAGE_SECONDS:
      if next(count) % 3 == 2:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
    return function(file, mode, *args, **kwargs)

  return faulty


def _with_an_example_less(open_source):
  def faulty(*args):
    source = open_source(*args)
    is_faulty = _fault == 'other_data'
    return dataclasses.replace(source, size=source.size - 1) if is_faulty else source

  return faulty


if __name__ == '__main__':
  peers.SILENCE_SECONDS = 10
  signal.signal(signal.SIGUSR2, lambda *unused: _received.append(time.monotonic()))
  DataLoader.batches = _with_data_hang(DataLoader.batches)
  loop.should_stop = _with_collective_hang(loop.should_stop)
  preflight.open_source = _with_an_example_less(preflight.open_source)
  builtins.open = io.open = _with_storage_errors(builtins.open)  # pathlib uses the latter
  command_line.run(main.main)
