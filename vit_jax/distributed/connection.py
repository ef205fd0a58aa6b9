"""Messages between two processes of a run, and how they notice that the other one is gone."""

import contextlib
import json
import socket
from collections.abc import Mapping
from typing import Any

# A host that vanishes closes nothing: it is lost after 3 s of silence and three probes, 2 s apart.
# The kernels answer probes, so a process that compiles or is stopped for a while is not lost.
_KEEPALIVE = {'TCP_KEEPIDLE': 3, 'TCP_KEEPINTVL': 2, 'TCP_KEEPCNT': 3}


class Connection:
  """Messages over a socket, one JSON object per line."""

  def __init__(self, connected: socket.socket):
    self._socket, self._lines = connected, connected.makefile(encoding='utf-8')
    connected.settimeout(None)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
      if hasattr(socket, name):
        connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

  def send(self, message: Mapping[str, Any]) -> None:
    """Sends a message; if the peer is gone, only `receive` notices."""
    with contextlib.suppress(OSError):
      self._socket.sendall(json.dumps(message).encode() + b'\n')

  def receive(self, timeout: float | None = None) -> dict[str, Any] | None:
    """Waits for a message; None when the peer is gone, sends anything else, or times out."""
    self._socket.settimeout(timeout)
    try:
      message = json.loads(self._lines.readline(2**20))
    except (OSError, ValueError):
      return None
    finally:
      self._socket.settimeout(None)
    return message if isinstance(message, dict) else None

  def close(self) -> None:
    """Closes the connection; messages that were sent still arrive."""
    self._lines.close()
    self._socket.close()

  def is_closed_by_peer(self) -> bool:
    try:
      return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
      return False
    except OSError:
      return True
