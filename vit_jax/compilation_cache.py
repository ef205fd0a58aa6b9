"""The cache of compiled programs, so that a restart does not compile them again."""

import hashlib
import os
import pathlib
import platform
import re
import sys

from vit_jax.errors import UserError
from vit_jax.files import cache_folder

_CPUINFO = pathlib.Path('/proc/cpuinfo')
_MAX_BYTES = 4 * 2**30  # beyond this, the least recently used programs are deleted


def enable_cache() -> None:
  """Keeps compiled programs in the cache folder.

  $JAX_COMPILATION_CACHE_DIR names another folder; JAX_ENABLE_COMPILATION_CACHE=false keeps none.
  Nothing is kept where the folder cannot be written.
  """
  if 'jax' not in sys.modules or os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    return
  import jax

  # Older versions log an error for every CPU program read from the cache.
  if jax.__version_info__ < (0, 12):
    return
  try:
    folder = cache_folder() / 'compiled' / _processor()
    folder.mkdir(parents=True, exist_ok=True)
    is_writable = os.access(folder, os.W_OK)
  except (OSError, RuntimeError, UserError):  # it is remote, or no home folder is known
    return
  if is_writable:
    jax.config.update('jax_compilation_cache_dir', os.fspath(folder))
    jax.config.update('jax_compilation_cache_max_size', _MAX_BYTES)


def disable_cache() -> None:
  """Compiles every program of this process: before the first one, where compiling is timed."""
  import jax

  jax.config.update('jax_enable_compilation_cache', False)


def _processor() -> str:
  """A name of this machine's instruction set, which programs for the CPU are compiled for."""
  text = _CPUINFO.read_text() if _CPUINFO.exists() else ''
  features = re.search(r'^(flags|Features)\s*:.*$', text, re.MULTILINE)
  name = features[0] if features else platform.processor()
  return f'{platform.machine()}-{hashlib.sha256(name.encode()).hexdigest()[:8]}'
