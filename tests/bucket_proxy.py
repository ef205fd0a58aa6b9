"""A proxy before an emulator of Google Cloud Storage that fails on request, as networks do."""

import contextlib
import http.client
import http.server
import json
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator

from tests.helpers import free_port

BUCKET = 'bucket'
_EMULATOR = f"""
import sys, threading
from gcp_storage_emulator.server import RequestHandler, create_server
RequestHandler.wbufsize, RequestHandler.disable_nagle_algorithm = 2**16, True
create_server('127.0.0.1', int(sys.argv[1]), in_memory=True, default_bucket='{BUCKET}').start()
threading.Event().wait()
"""


class Faults:
  """What goes wrong with the next requests; the counts say how often it did.

  Attributes:
    plan: kinds of faults, one for each of the next requests that change something: '503', 'torn'
      (the connection breaks in the middle of the upload), 'lost' (the response gets lost), or ''.
    is_down: whether all requests get 503.
    latency: seconds before each response.
    uploads: the bytes of each upload, by the name of the object.
  """

  def __init__(self):
    self.plan: list[str] = []
    self.is_down, self.latency = False, 0.0
    self.counts: dict[str, int] = {}
    self.uploads: dict[str, list[int]] = {}
    self.lock = threading.Lock()

  def next(self, method: str) -> str:
    with self.lock:
      fault = '503' if self.is_down else ''
      if not fault and method != 'GET' and self.plan:
        fault = self.plan.pop(0)
      self.counts[fault] = self.counts.get(fault, 0) + 1
      return fault


def _handler(emulator: int, faults: Faults) -> type[http.server.BaseHTTPRequestHandler]:
  def forward(method, path, body, headers):
    connection = http.client.HTTPConnection('127.0.0.1', emulator, timeout=30)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response, content

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    wbufsize, disable_nagle_algorithm = 2**16, True

    def answer(self) -> None:
      body = self.body()
      time.sleep(faults.latency)
      if '/moveTo/' in self.path:  # the emulator has 501, which gcsfs would try six times
        self.reply(400, {}, b'')
        return
      fault = faults.next(self.command)
      if fault == '503':
        self.reply(503, {'Content-Type': 'application/json'}, b'{"error": {"code": 503}}')
        return
      if fault == 'torn':  # the emulator, like the real service, keeps no part of an upload
        self.close_connection = True
        self.connection.close()
        return
      headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_HEADERS}
      response, content = forward(self.command, self.path, body, headers)
      if fault == 'lost':
        self.close_connection = True
        self.connection.close()
        return
      kept = {k: v for k, v in response.getheaders() if k.lower() not in _HOP_HEADERS}
      url = urllib.parse.urlsplit(self.path)
      if 'alt=media' in url.query and response.status in (200, 206):  # TensorStore needs it
        _, metadata = forward('GET', url.path.replace('/download/', '/'), None, {})
        kept['x-goog-generation'] = json.loads(metadata)['generation']
      if self.command == 'POST' and '/upload/' in url.path and response.status == 200:
        with contextlib.suppress(ValueError, KeyError):
          name = json.loads(content)['name']
          faults.uploads.setdefault(name, []).append(len(body))
      own = f'{self.server.server_address[0]}:{self.server.server_address[1]}'
      kept = {k: v.replace(f'127.0.0.1:{emulator}', own) for k, v in kept.items()}
      self.reply(response.status, kept, content)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer

    def body(self) -> bytes:
      if self.headers.get('Transfer-Encoding', '') != 'chunked':
        return self.rfile.read(int(self.headers.get('Content-Length') or 0))
      chunks = []
      while size := int(self.rfile.readline(), 16):
        chunks.append(self.rfile.read(size))
        self.rfile.readline()
      self.rfile.readline()
      return b''.join(chunks)

    def reply(self, status: int, headers: dict[str, str], content: bytes) -> None:
      self.send_response(status)
      for name, value in headers.items():
        self.send_header(name, value)
      self.send_header('Content-Length', str(len(content)))
      self.end_headers()
      self.wfile.write(content)

    def log_message(self, *unused) -> None:
      pass

  return Handler


_HOP_HEADERS = {'connection', 'content-length', 'host', 'transfer-encoding', 'server', 'date'}


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 128

  def handle_error(self, *unused) -> None:
    """Clients that are killed break connections."""


@contextlib.contextmanager
def faulty_bucket() -> Iterator[tuple[dict[str, str], Faults]]:
  """Runs emulator and proxy; yields the environment of processes that use them, and the faults."""
  emulator, faults = free_port(), Faults()
  process = subprocess.Popen(
    [sys.executable, '-c', _EMULATOR, str(emulator)],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  server = _Server(('127.0.0.1', 0), _handler(emulator, faults))
  threading.Thread(target=server.serve_forever, daemon=True).start()
  url = f'http://127.0.0.1:{server.server_address[1]}'
  environment = {
    'STORAGE_EMULATOR_HOST': url,
    'TENSORSTORE_GCS_HTTP_URL': url,
    'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'none',
    # Nobody asks for the credentials of this machine.
    'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
    'NO_GCE_CHECK': 'true',
  }
  try:
    _wait_for(emulator)
    yield environment, faults
  finally:
    server.shutdown()
    server.server_close()
    process.kill()
    process.wait()


def _wait_for(port: int) -> None:
  for _ in range(300):
    with contextlib.suppress(OSError):
      connection = http.client.HTTPConnection('127.0.0.1', port)
      connection.request('GET', f'/storage/v1/b/{BUCKET}')
      if connection.getresponse().status == 200:
        return
    time.sleep(0.1)
  raise TimeoutError('the emulator does not answer')
