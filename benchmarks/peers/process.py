"""A peer in a process of its own, which computes only when it is asked to; see serve.py."""

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any


class PeerError(RuntimeError):
  """A peer cannot be run; the message says why."""


class PeerProcess:
  """Asks a process for measurements.

  The process starts at once, and builds its model meanwhile; `wait` waits for that.

  Attributes:
    name: of the peer.
    description: its answer to the first request: versions, parameters, optimizer; after `wait`.
    loss: of its last step; None before.
  """

  def __init__(self, name: str, command: Sequence[str], request: dict[str, Any]):
    self.name, self.loss = name, None
    self.description: dict[str, Any] = {}
    self._errors = tempfile.TemporaryFile('w+')
    env = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false', **os.environ}  # a GPU has room for several
    try:
      self._process = subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=self._errors,
        text=True,
        env=env,
      )
    except OSError as error:
      self._errors.close()
      raise PeerError(f'{command[0]} cannot be started ({error.strerror})') from None
    self._send(request)

  def wait(self) -> None:
    """Waits until the peer is built.

    Raises:
      PeerError: when it cannot be.
    """
    self.description = self._receive()

  def run(self, kind: str, calls: int) -> float:
    """Seconds a call of a pass, 'forward' or 'step'.

    Raises:
      PeerError: when it fails, as without memory.
    """
    self._send({'run': kind, 'calls': calls})
    answer = self._receive()
    self.loss = answer.get('loss', self.loss)
    return answer['seconds'] / calls

  def close(self) -> None:
    """Ends the process."""
    with contextlib.suppress(OSError):
      self._process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
    try:
      self._process.wait(10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._process.stdout.close()  # pyright: ignore[reportOptionalMemberAccess]
    self._errors.close()

  def _send(self, request: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # `_receive` says why it has ended
      self._process.stdin.write(json.dumps(request) + '\n')  # pyright: ignore
      self._process.stdin.flush()  # pyright: ignore[reportOptionalMemberAccess]

  def _receive(self) -> dict[str, Any]:
    line = self._process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
    if not line:
      code = self._process.wait()
      self._errors.seek(0)
      last = ([''] + self._errors.read().strip().splitlines())[-1]
      raise PeerError(f'its process ended with exit code {code}: {last[:200]}')
    answer = json.loads(line)
    if 'error' in answer:
      raise PeerError(answer['error'])
    return answer


@contextlib.contextmanager
def open_peers(
  commands: dict[str, tuple[Sequence[str], dict[str, Any]]],
) -> Iterator[tuple[dict[str, PeerProcess], dict[str, str]]]:
  """Yields ({name: peer}, {name: why it cannot be run}); all peers are built at the same time."""
  peers: dict[str, PeerProcess] = {}
  failures: dict[str, str] = {}
  with contextlib.ExitStack() as stack:
    for name, (command, request) in commands.items():
      try:
        peers[name] = PeerProcess(name, command, request)
        stack.callback(peers[name].close)
      except PeerError as error:
        failures[name] = str(error)
    for name, peer in list(peers.items()):
      try:
        peer.wait()
      except PeerError as error:
        failures[name] = str(error)
        del peers[name]
    yield peers, failures
