"""The registry of published models: table, names, AugReg's index.csv, downloads from a server."""

import base64
import contextlib
import csv
import dataclasses
import errno
import hashlib
import http.server
import io
import os
import pathlib
import shutil
import ssl
import subprocess
import sys
import threading
import urllib.parse

import numpy as np
import pytest

from vit_jax import catalog as command
from vit_jax.errors import UserError
from vit_jax.files import cache_folder
from vit_jax.weights import download, registry

L_16 = 'L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0'
TI_16 = 'Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0'
INDEX = """\
name,ds,final_val,adapt_ds,adapt_resolution,adapt_final_val,filename,adapt_filename
Ti/16,i21k,0.30,imagenet2012,384,0.79,Ti_16-i21k-300ep-a,Ti_16-i21k-300ep-a--imagenet2012-x-res_384
Ti/16,i21k,0.31,imagenet2012,224,0.71,Ti_16-i21k-300ep-b,Ti_16-i21k-300ep-b--imagenet2012-x-res_224
Ti/16,i21k,0.31,imagenet2012,384,0.74,Ti_16-i21k-300ep-b,Ti_16-i21k-300ep-b--imagenet2012-x-res_384
Ti/16,i21k,0.31,cifar100,384,0.99,Ti_16-i21k-300ep-b,Ti_16-i21k-300ep-b--cifar100-x-res_384
Ti/16,i21k_30,0.35,imagenet2012,384,0.80,Ti_16-i21k-30ep-c,Ti_16-i21k-30ep-c--imagenet2012-x
Ti/16,i1k,0.75,imagenet2012,384,0.81,Ti_16-i1k-300ep-d,Ti_16-i1k-300ep-d--imagenet2012-x
R+Ti/16,i21k,0.39,imagenet2012,384,0.85,R_Ti_16-i21k-300ep-e,R_Ti_16-i21k-300ep-e--imagenet2012-x
S/32,i21k,nan,imagenet2012,384,0.8,S_32-i21k-300ep-f,S_32-i21k-300ep-f--imagenet2012-x
S/16,i21k,0.4,imagenet2012,384,0.8,S_16-i21k-/../../g,S_16-i21k-300ep-g--imagenet2012-x
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> pathlib.Path:
  """An empty cache for each test, and no proxy between it and the server."""
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setenv('no_proxy', '*')
  return tmp_path / 'cache'


# The table.


def test_table_is_well_formed():
  with open(pathlib.Path(registry.__file__).with_name('registry.csv'), newline='') as file:
    names = [row['name'] for row in csv.DictReader(file)]
  assert len(set(names)) == len(names) == len(registry.PUBLISHED_MODELS) > 100
  models = list(registry.PUBLISHED_MODELS.values())
  assert len({model.url or model.name for model in models}) == len(models)
  assert {model.family for model in models} == set(registry.LICENSES)
  for name, model in registry.PUBLISHED_MODELS.items():
    file = name.removeprefix(f'{model.family}/')
    assert name == model.name and '/' not in file
    assert (model.url is None) == (model.family in registry.GATED)
    url = urllib.parse.urlsplit(model.url or '')
    if url.netloc == 'storage.googleapis.com':
      assert urllib.parse.unquote(url.path) == f'/{registry.FOLDERS[model.family]}/{file}.npz'
    elif url.netloc:
      assert url.netloc in ('dl.fbaipublicfiles.com', 'openaipublic.azureedge.net')
      assert pathlib.PurePosixPath(url.path).stem == file
    assert (url.scheme or 'https', url.query) == ('https', '')
    assert urllib.parse.quote(urllib.parse.unquote(url.path)) == url.path
    assert str(model.path).endswith(f'/{name}{pathlib.PurePosixPath(url.path).suffix or ".pth"}')
    # OpenAI has the sha256 in the address; torch.hub takes the end of a name for its first digits.
    digits = url.path.split('/')[-2] if model.family == 'clip' else file.rpartition('-')[2]
    if model.family in ('clip', 'deit', 'dinov3'):
      assert model.sha256 == digits and len(digits) in (8, 64) and int(digits, 16)
    else:
      assert model.sha256 is None
    assert (model.accuracy is None) == (model.accuracy_source is None)
    assert model.accuracy is None or (70 < model.accuracy < 90 and 'imagenet2012' in model.data)
    assert model.size is None or 30 < model.size < 4000
    assert model.resolution in (160, 224, 256, 336, 384, 480, 512, 518)
    assert model.source.split(':')[0].count('/') == 1, 'no <repository>:<file>'


def test_published_sizes_accuracies_and_addresses():
  model = registry.PUBLISHED_MODELS[f'augreg/{L_16}']
  assert (model.size, model.resolution, model.data) == (1243, 224, 'imagenet21k')
  assert registry.find('augreg/L_16-imagenet2012').accuracy == 85.59
  assert registry.PUBLISHED_MODELS['imagenet21k+imagenet2012/ViT-L_16-224'].accuracy == 82.7
  assert registry.PUBLISHED_MODELS['imagenet21k+imagenet2012/R50+ViT-B_16'].url == (
    'https://storage.googleapis.com/vit_models/imagenet21k%2Bimagenet2012/R50%2BViT-B_16.npz'
  )
  assert registry.PUBLISHED_MODELS['bit/distill/R50x1_224'].url == (
    'https://storage.googleapis.com/bit_models/distill/R50x1_224.npz'
  )


def test_every_augreg_model_has_short_names():
  models = 'Ti_16 S_32 S_16 B_32 B_16 B_8 L_16 R_Ti_16 R26_S_32 R50_L_32'.split()
  for model in models:
    pretrained = registry.find(f'augreg/{model}')
    finetuned = registry.find(f'augreg/{model}-imagenet2012')
    assert pretrained.name.startswith(f'augreg/{model}-i21k-300ep-')
    assert finetuned.name.startswith(f'{pretrained.name}--imagenet2012-')
    assert finetuned.resolution == (224 if model == 'B_8' else 384)
    assert finetuned.accuracy is not None


def test_table_is_printed(capsys, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['catalog'])
  command.main()
  (_, *lines), gated = (x.splitlines() for x in capsys.readouterr().out.split('\n\n'))
  assert gated[0].startswith('dinov3/…: accept the license at https://ai.meta.com/resources/')
  assert len(lines) == len(registry.PUBLISHED_MODELS)
  for line, name in zip(lines, registry.PUBLISHED_MODELS, strict=True):
    assert f' {name} ' in f'{line} '
  assert any(' 1243 ' in line and line.endswith('augreg/L_16') for line in lines)
  monkeypatch.setattr(sys, 'argv', ['catalog', 'r50x1_224'])
  command.main()
  assert len(capsys.readouterr().out.splitlines()) == 2
  monkeypatch.setattr(sys, 'argv', ['catalog', 'mae_pretrain_vit_base'])
  command.main()
  assert ' CC-BY-NC-4.0 ' in capsys.readouterr().out
  monkeypatch.setattr(sys, 'argv', ['catalog', 'resnet'])
  with pytest.raises(UserError, match='No published model'):
    command.main()


# Names.


@pytest.mark.parametrize('name', ['augreg/L_16', 'bit/distill/x', 'imagenet21k+imagenet2012/x'])
def test_names_are_told_from_paths(name):
  assert registry.is_name(name)


@pytest.mark.parametrize('path', ['ViT-B_16.npz', '/augreg/L_16', 'runs/model', 'augreg', ''])
def test_paths_are_not_names(path):
  assert not registry.is_name(path)


def test_an_existing_path_is_not_a_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'sam').mkdir()
  (tmp_path / 'sam' / 'ViT-B_16').touch()
  assert not registry.is_name('sam/ViT-B_16')
  assert registry.is_name('sam/ViT-B_32')


def test_cache_folder(monkeypatch):
  monkeypatch.setenv('VIT_JAX_CACHE', '~/x')
  assert str(cache_folder()) == os.path.expanduser('~/x')
  monkeypatch.delenv('VIT_JAX_CACHE')
  assert str(cache_folder()) == os.path.expanduser('~/.cache/vit_jax')
  monkeypatch.setenv('VIT_JAX_CACHE', 'gs://bucket/x')
  with pytest.raises(UserError, match='VIT_JAX_CACHE is gs://bucket/x; it takes a local folder'):
    cache_folder()


def test_find_a_row():
  model = registry.PUBLISHED_MODELS['imagenet21k/ViT-B_16']
  assert registry.find('imagenet21k/ViT-B_16') is model
  assert registry.find('imagenet21k/ViT-B_16.npz') is model
  assert registry.find('clip/ViT-B-32.pt') is registry.find('clip/ViT-B-32')


def test_find_an_augreg_file_that_is_not_in_the_table():
  model = registry.find(f'augreg/{TI_16}--cifar100-steps_10k-lr_0.01-res_384')
  assert model.source == 'not in table'
  assert (model.data, model.resolution) == ('imagenet21k+cifar100', 384)
  assert (model.size, model.accuracy) == (None, None)
  assert model.url.endswith(f'/augreg/{TI_16}--cifar100-steps_10k-lr_0.01-res_384.npz')


@pytest.mark.parametrize(
  ('name', 'close'),
  [
    ('augreg/Ti16', 'similar names are augreg/Ti_16,'),
    ('imagenet21k/ViT-B16', 'similar names are imagenet21k/ViT-B_16,'),
    ('augreg/L_32', 'similar names are augreg/'),
    ('sam/Ti_16-i21k-300ep', "called 'sam/Ti_16-i21k-300ep'"),
    ('augreg/../Ti_16-i21k-300ep', "called 'augreg/../Ti_16-i21k-300ep'"),
    ('augreg/Ti_16-i21k-300ep?x', "called 'augreg/Ti_16-i21k-300ep?x'"),
    ('', "No published model is called ''; `python -m"),
  ],
)
def test_unknown_name(name, close):
  with pytest.raises(UserError, match='lists all names') as error:
    registry.find(name)
  assert close in str(error.value)


def test_a_license_must_be_accepted_before_a_download(cache):
  name = 'dinov3/dinov3_vitb16_pretrain_lvd1689m-73cec8be'
  with pytest.raises(UserError) as error:
    registry.fetch(name)
  assert str(error.value) == (
    f'{name} can be downloaded once its license is accepted at https://ai.meta.com/resources/'
    f'models-and-libraries/dinov3-downloads/; put the file at {cache / name}.pth, or pass its path '
    'instead of the name.'
  )
  (cache / 'dinov3').mkdir(parents=True)
  (cache / f'{name}.pth').touch()
  assert pathlib.Path(registry.fetch(name)) == cache / f'{name}.pth'


# AugReg's index.csv.


@pytest.fixture
def index(tmp_path) -> pathlib.Path:
  (tmp_path / 'index.csv').write_text(INDEX)
  return tmp_path / 'index.csv'


@pytest.mark.parametrize(
  ('name', 'file'),
  [
    ('Ti_16', 'Ti_16-i21k-300ep-b'),
    ('Ti_16-imagenet2012', 'Ti_16-i21k-300ep-b--imagenet2012-x-res_384'),
    ('R_Ti_16', 'R_Ti_16-i21k-300ep-e'),
    (L_16, L_16),  # a full name leaves no choice
  ],
)
def test_index_chooses(index, name, file):
  assert registry.find(f'augreg/{name}', index).name == f'augreg/{file}'


def test_index_in_the_cache_chooses(index, cache):
  assert registry.find('augreg/Ti_16').name == f'augreg/{TI_16}'
  (cache / 'augreg').mkdir(parents=True)
  index.rename(cache / 'augreg' / 'index.csv')
  assert registry.find('augreg/Ti_16').name == 'augreg/Ti_16-i21k-300ep-b'


@pytest.mark.parametrize('model', ['L_16', 'S_32', 'S_16'])  # Absent, no number, no file name.
def test_index_without_the_model(index, model):
  with pytest.raises(UserError, match=f'index.csv is damaged or has no i21k row of {model}'):
    registry.find(f'augreg/{model}', index)


@pytest.mark.parametrize(
  'content', [b'', b'filename\nTi_16-i21k-300ep-a\n', b'ds,filename\ni21k\n', b'filename\n\xff\n']
)
def test_damaged_index(index, content):
  index.write_bytes(content)
  with pytest.raises(UserError, match='index.csv is damaged'):
    registry.find('augreg/Ti_16', index)


def test_missing_index(tmp_path):
  with pytest.raises(UserError, match='none.csv cannot be read'):
    registry.find('augreg/Ti_16', tmp_path / 'none.csv')


# Downloads.


@dataclasses.dataclass
class Server:
  """What the server sends, how it misbehaves, and which requests it received."""

  url: str
  content: bytes
  etag: str = '"one"'
  md5: str | None = None  # None: the right one.
  one_header: bool = False  # Both hashes in one header.
  lose_after: list[int] = dataclasses.field(default_factory=list)  # Bytes, one a request.
  statuses: list[int] = dataclasses.field(default_factory=list)  # One a request.
  location: str | None = None  # Where it redirects to.
  knows_ranges: bool = True
  knows_if_range: bool = True
  extra_length: int = 0
  announces_length: bool = True
  requests: list[tuple[str | None, str | None]] = dataclasses.field(default_factory=list)

  def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
    wanted, condition = handler.headers['Range'], handler.headers['If-Range']
    self.requests.append((wanted, condition))
    if self.location is not None:
      handler.send_response(302)
      handler.send_header('Location', self.location)
      handler.send_header('Content-Length', '0')
      handler.end_headers()
      return
    if self.statuses:
      handler.send_error(self.statuses.pop(0))
      return
    first = 0
    if wanted and self.knows_ranges and (condition == self.etag or not self.knows_if_range):
      first = int(wanted.removeprefix('bytes=').removesuffix('-'))
    body = self.content[first:]
    handler.send_response(206 if first else 200)
    if first:
      end = len(self.content)
      handler.send_header('Content-Range', f'bytes {first}-{end - 1}/{end}')
    if self.announces_length:
      handler.send_header('Content-Length', str(len(body) + self.extra_length))
    handler.send_header('ETag', self.etag)
    md5 = self.md5 or base64.b64encode(hashlib.md5(self.content).digest()).decode()
    hashes = ['crc32c=AAAAAA==', f'md5={md5}']
    for value in [','.join(hashes)] if self.one_header else hashes:
      handler.send_header('x-goog-hash', value)
    handler.end_headers()
    handler.wfile.write(body[: self.lose_after.pop(0)] if self.lose_after else body)


def npz(seed: int) -> bytes:
  file = io.BytesIO()
  np.savez(file, kernel=np.random.default_rng(seed).integers(0, 256, 300_000, dtype=np.uint8))
  return file.getvalue()


@contextlib.contextmanager
def serve(certificate: pathlib.Path | None = None):
  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
      state.answer(self)

    def log_message(self, *_):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as listener:
    if certificate:
      context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
      context.load_cert_chain(certificate)
      listener.socket = context.wrap_socket(listener.socket, server_side=True)
    scheme = 'https' if certificate else 'http'
    state = Server(f'{scheme}://127.0.0.1:{listener.server_port}/ViT-B_16.npz', npz(0))
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
    thread.start()
    yield state
    listener.shutdown()
    thread.join()


@pytest.fixture
def server():
  with serve() as state:
    yield state


@pytest.fixture
def https_server(tmp_path, monkeypatch):
  """A server with a certificate that this process trusts."""
  if shutil.which('openssl') is None:
    pytest.skip('openssl makes the certificate')
  certificate = tmp_path / 'certificate.pem'
  command = 'openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2'
  command += ' -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1'
  subprocess.run(
    [*command.split(), '-keyout', certificate, '-out', tmp_path / 'public.pem'],
    check=True,
    capture_output=True,
  )
  with certificate.open('a') as file:
    file.write((tmp_path / 'public.pem').read_text())
  monkeypatch.setenv('SSL_CERT_FILE', str(tmp_path / 'public.pem'))
  with serve(certificate) as state:
    yield state


@pytest.fixture
def model(server) -> registry.PublishedModel:
  return dataclasses.replace(
    registry.PUBLISHED_MODELS['imagenet21k/ViT-B_16'], url=server.url, size=None
  )


@pytest.fixture
def pytorch_model(server) -> registry.PublishedModel:
  model = registry.PUBLISHED_MODELS['dinov2/dinov2_vits14_pretrain']
  return dataclasses.replace(model, url=server.url.replace('.npz', '.pth'))


@pytest.fixture
def target(cache) -> pathlib.Path:
  return cache / 'imagenet21k' / 'ViT-B_16.npz'


def files_beside(target: pathlib.Path) -> list[str]:
  return sorted(path.name for path in target.parent.iterdir())


def download_model(model: registry.PublishedModel, target: pathlib.Path) -> None:
  download.download(
    model.url, target, name=model.name, published_mib=model.size, sha256=model.sha256
  )


def error_of_download(model: registry.PublishedModel, target: pathlib.Path) -> str:
  """The one sentence with which the download ends."""
  with pytest.raises(UserError) as error:
    download_model(model, target)
  assert not target.exists()
  assert '\n' not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize('one_header', [False, True])
def test_download(server, model, target, one_header, capsys):
  server.one_header = one_header
  download_model(model, target)
  assert target.read_bytes() == server.content
  assert files_beside(target) == ['ViT-B_16.npz', 'ViT-B_16.npz.sha256']
  assert server.requests == [(None, None)]
  assert capsys.readouterr().err == '', 'a progress bar that is on no terminal'


def test_progress_bar_on_a_terminal(model, target, monkeypatch):
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  monkeypatch.setattr(sys, 'stderr', terminal)
  download_model(model, target)
  assert 'imagenet21k/ViT-B_16' in terminal.getvalue()
  assert '/293k [' in terminal.getvalue()


def test_fetch_downloads_once(server, model, target, monkeypatch):
  monkeypatch.setitem(registry.PUBLISHED_MODELS, model.name, model)
  assert pathlib.Path(registry.fetch(model.name)) == target
  assert target.read_bytes() == server.content
  monkeypatch.setattr(registry, 'download', None)
  assert pathlib.Path(registry.fetch(model.name)) == target


def test_a_lost_connection_is_resumed(server, model, target):
  server.lose_after = [1000, 500]
  download_model(model, target)
  assert target.read_bytes() == server.content
  assert server.requests == [(None, None), ('bytes=999-', '"one"'), ('bytes=1498-', '"one"')]
  assert files_beside(target) == ['ViT-B_16.npz', 'ViT-B_16.npz.sha256']


def test_after_three_lost_connections_the_next_call_resumes(server, model, target):
  server.lose_after = [1000, 1000, 1000]
  message = error_of_download(model, target)
  assert 'the connection is lost after 2,998 of ' in message
  assert f'fetch {server.url} by other means and put it at {target}.' in message
  assert files_beside(target) == ['ViT-B_16.npz.part', 'ViT-B_16.npz.part.etag']
  download_model(model, target)
  assert target.read_bytes() == server.content
  assert server.requests[-1] == ('bytes=2997-', '"one"')


def test_a_server_without_ranges(server, model, target):
  server.lose_after = [1000]
  server.knows_ranges = False
  download_model(model, target)
  assert target.read_bytes() == server.content


@pytest.mark.parametrize('knows_if_range', [True, False])
def test_a_changed_file_is_downloaded_from_the_start(server, model, target, knows_if_range):
  server.lose_after = [1000] * 3
  error_of_download(model, target)
  server.content, server.etag, server.knows_if_range = npz(1), '"two"', knows_if_range
  download_model(model, target)
  assert target.read_bytes() == server.content


def test_a_weak_etag_is_not_resumed(server, model, target):
  server.etag = 'W/"one"'
  server.lose_after = [1000]
  download_model(model, target)
  assert target.read_bytes() == server.content
  assert server.requests == [(None, None)] * 2


def test_a_complete_partial_file_is_not_downloaded_again(server, model, target):
  server.lose_after = [1000] * 3
  error_of_download(model, target)
  partial = target.with_name('ViT-B_16.npz.part')
  partial.write_bytes(server.content)
  download_model(model, target)
  assert target.read_bytes() == server.content
  assert server.requests[-1] == (f'bytes={len(server.content) - 1}-', '"one"')


def test_a_damaged_partial_file_is_detected(server, model, target):
  server.lose_after = [1000] * 3
  error_of_download(model, target)
  target.with_name('ViT-B_16.npz.part').write_bytes(bytes(5000))
  assert 'is damaged' in error_of_download(model, target)
  download_model(model, target)
  assert target.read_bytes() == server.content


def test_wrong_length(server, model, target):
  server.extra_length = 10
  end = len(server.content)
  assert f'the connection is lost after {end:,} of {end + 10:,} bytes' in error_of_download(
    model, target
  )


def test_wrong_hash(server, model, target):
  server.md5 = 'AAAAAAAAAAAAAAAAAAAAAA=='
  message = error_of_download(model, target)
  assert f'The file downloaded from {server.url} is damaged' in message
  assert f'put the right file at {target}' in message
  assert files_beside(target) == []


def test_a_file_that_is_not_an_npz_is_refused(server, model, target):
  server.content = b'<html>Please log in.</html>'
  assert 'is not an .npz file and was deleted' in error_of_download(model, target)
  assert files_beside(target) == []


@pytest.mark.parametrize('content', [npz(0), b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'])
def test_a_file_of_pytorch_may_be_a_zip_or_a_pickle(content, server, pytorch_model):
  server.content = content
  download_model(pytorch_model, pathlib.Path(pytorch_model.path))
  assert pathlib.Path(pytorch_model.path).read_bytes() == content


def test_a_file_that_is_not_of_pytorch_is_refused(server, pytorch_model):
  server.content = b'<html>Please log in.</html>'
  message = error_of_download(pytorch_model, pathlib.Path(pytorch_model.path))
  assert 'is not a PyTorch file and was deleted' in message


def test_a_wrong_size_is_detected_before_the_download(server, model, target):
  server.lose_after = [0]
  model = dataclasses.replace(model, size=394)
  assert 'has 0.3 MiB instead of the published 394 MiB' in error_of_download(model, target)
  assert len(server.requests) == 1
  assert files_beside(target) == []
  download_model(dataclasses.replace(model, size=2), target)  # Less than 2 MiB away.


@pytest.mark.parametrize(('mib', 'ok'), [(1156.9, True), (1162.1, True), (1164, False)])
def test_large_files_may_differ_by_half_a_percent(model, mib, ok):
  model = dataclasses.replace(model, size=1157)
  if ok:
    download._check_size(1157, int(mib * 2**20))
  else:
    with pytest.raises(download._WrongFileError):
      download._check_size(1157, int(mib * 2**20))


def test_redirects_never_leave_https(server, https_server, model, target):
  secure = dataclasses.replace(model, url=https_server.url)
  download_model(secure, target)
  target.unlink()
  https_server.location = server.url
  message = error_of_download(secure, target)
  assert f'the server redirects from https to {server.url}' in message
  assert server.requests == []
  for location in ('file:///etc/passwd', 'ftp://127.0.0.1/x', 'data:,x'):
    server.location = https_server.location = location
    assert 'redirect' in error_of_download(secure, target).lower()
    assert 'redirect' in error_of_download(model, target).lower()
  assert files_beside(target) == ['ViT-B_16.npz.sha256']


def test_redirects_to_https_are_followed(server, https_server, model, target):
  server.location = https_server.url
  download_model(model, target)
  assert target.read_bytes() == https_server.content


def test_a_file_without_a_length_is_read_to_the_published_size(server, model, target):
  server.announces_length = False
  download_model(model, target)
  target.unlink()
  server.content = npz(0) + bytes(2**23)
  message = error_of_download(dataclasses.replace(model, size=1), target)
  assert 'has more than' in message and 'instead of the published 1 MiB' in message
  assert files_beside(target) == ['ViT-B_16.npz.sha256']


def test_the_published_sha256_is_checked(server, model, target):
  digest = hashlib.sha256(server.content).hexdigest()
  message = error_of_download(dataclasses.replace(model, sha256='0' * 64), target)
  assert f'has the sha256 {digest} instead of the published one' in message
  assert files_beside(target) == []
  download_model(dataclasses.replace(model, sha256=digest), target)
  target.unlink()
  download_model(dataclasses.replace(model, sha256=digest[:8]), target)  # all that is published


def test_a_file_that_is_changed_after_the_download_is_refused(server, model, target, monkeypatch):
  monkeypatch.setitem(registry.PUBLISHED_MODELS, model.name, model)
  registry.fetch(model.name)
  record = target.with_name('ViT-B_16.npz.sha256')
  digest = hashlib.sha256(server.content).hexdigest()
  assert record.read_text() == f'{digest}  ViT-B_16.npz\n'
  target.write_bytes(server.content)  # the same again
  registry.fetch(model.name)
  target.write_bytes(server.content[:-1] + b'x')
  with pytest.raises(UserError, match='is not the file that was downloaded'):
    registry.fetch(model.name)
  record.unlink()
  registry.fetch(model.name)  # put there by other means
  assert len(server.requests) == 1


@pytest.mark.parametrize('suffix', ['part', 'part.etag'])
def test_nothing_is_written_through_a_link(suffix, server, model, target, tmp_path):
  target.parent.mkdir(parents=True)
  (tmp_path / 'victim').write_text('precious')
  link = target.with_name(f'ViT-B_16.npz.{suffix}')
  link.symlink_to(tmp_path / 'victim')
  if suffix == 'part':
    assert 'it is a link' in error_of_download(model, target)
    assert link.is_symlink()
  else:
    download_model(model, target)
  assert (tmp_path / 'victim').read_text() == 'precious'


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no pipes on this system')
def test_a_pipe_in_the_place_of_the_partial_file(server, model, target):
  target.parent.mkdir(parents=True)
  os.mkfifo(target.with_name('ViT-B_16.npz.part'))
  assert 'it is a pipe or a device' in error_of_download(model, target)


def test_a_missing_file_is_requested_once(server, model, target):
  server.statuses = [404]
  message = error_of_download(model, target)
  assert message == (
    f'imagenet21k/ViT-B_16 cannot be downloaded (the server answers 404 Not Found); fetch '
    f'{server.url} by other means and put it at {target}.'
  )
  assert len(server.requests) == 1
  assert files_beside(target) == []


def test_a_busy_server_is_requested_three_times(server, model, target):
  server.statuses = [503] * 3
  assert '503 Service Unavailable' in error_of_download(model, target)
  server.statuses = [503] * 2
  download_model(model, target)
  assert target.read_bytes() == server.content
  assert len(server.requests) == 6


def test_no_connection(server, model, target):
  with http.server.HTTPServer(('127.0.0.1', 0), None) as listener:
    port = listener.server_port
  message = error_of_download(
    dataclasses.replace(model, url=f'http://127.0.0.1:{port}/x.npz'), target
  )
  assert 'Connection refused' in message
  assert f'fetch http://127.0.0.1:{port}/x.npz by other means and put it at {target}.' in message
  assert files_beside(target) == []


def test_a_cache_that_cannot_be_written(model, target):
  target.parent.parent.mkdir()
  target.parent.write_text('a file')
  message = error_of_download(model, target)
  assert f'cannot be written to {target.parent} (' in message
  assert 'set VIT_JAX_CACHE to another folder' in message


def test_a_full_disk(server, model, target, monkeypatch):
  def full(_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', full)
    assert 'No space left on device' in error_of_download(model, target)
  download_model(model, target)
  assert target.read_bytes() == server.content
  assert server.requests[-1] == (f'bytes={len(server.content) - 1}-', '"one"')


@pytest.mark.skipif(download.fcntl is None, reason='no flock on this system')
def test_four_at_once_download_once(server, model, target):
  threads = [threading.Thread(target=download_model, args=(model, target)) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert target.read_bytes() == server.content
  assert files_beside(target) == ['ViT-B_16.npz', 'ViT-B_16.npz.sha256']
  assert len(server.requests) == 1
