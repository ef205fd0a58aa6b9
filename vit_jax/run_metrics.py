"""The metrics of a run, read from its workdir.

A local workdir has one `metrics.jsonl`. Files in a bucket cannot grow, so there a run writes
`metrics/<first step>.jsonl`, several of bounded size.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from vit_jax.files import is_remote, open_to_read, parse_json, read_text, write_text
from vit_jax.retries import with_retries

METRICS_FILE, PARTS_FOLDER = 'metrics.jsonl', 'metrics'


def part_name(first_step: int) -> str:
  """The name of a part in `metrics/`; names sort as their steps do."""
  return f'{first_step:014}.jsonl'


def metrics_files(workdir: epath.Path) -> list[epath.Path]:
  """The files of a run's metrics, in the order of their steps; [] without any."""
  whole, folder = workdir / METRICS_FILE, workdir / PARTS_FOLDER
  files = [whole] if with_retries(whole.exists) else []
  if with_retries(folder.is_dir):
    files += sorted(file for file in with_retries(_children, folder) if file.suffix == '.jsonl')
  return files


def _children(folder: epath.Path) -> list[epath.Path]:
  return list(folder.iterdir())


def read_metrics(workdir: epath.Path) -> list[dict[str, Any]]:
  """The metrics of a run: one flat dict for each line, always with 'step', in order of steps.

  Args:
    workdir: of the run, or the path of its metrics.jsonl.

  Raises:
    FileNotFoundError: without any metrics.
    OSError, ValueError: for a file that cannot be read, or a line without metrics.
  """
  files = _named_files(workdir)
  if not files:
    raise FileNotFoundError(2, 'it has no metrics.jsonl', str(workdir))
  lines = [line for file in files for line in _lines(file)]
  return sorted(lines, key=lambda line: line['step'])  # a run may have moved out of a bucket


def _named_files(workdir: epath.Path) -> list[epath.Path]:
  """The files of a workdir, or the metrics.jsonl that is named in its place."""
  is_file = workdir.suffix == '.jsonl' and not workdir.is_dir()
  return [workdir] if is_file else metrics_files(workdir)


def _lines(file: epath.Path) -> Iterator[dict[str, Any]]:
  for number, text in enumerate(read_text(file).splitlines(), 1):
    line = parse_json(text)
    if not isinstance(line, dict) or type(line.get('step')) is not int:
      raise ValueError(f'line {number} is not a JSON object with a step')
    yield line


def stream_metrics(workdir: epath.Path) -> Iterator[dict[str, Any]]:
  """The lines of `read_metrics` one by one, however large the files are.

  They come in the order of the files, without what a kill has cut short and what has no step.

  Args:
    workdir: of the run, or the path of its metrics.jsonl.

  Raises:
    OSError: for a file that cannot be read.
  """
  for path in _named_files(workdir):
    if is_remote(path):
      yield from _with_steps(read_text(path).splitlines())
    else:
      with open(open_to_read(path), 'rb') as file:
        yield from _with_steps(file)


def _with_steps(lines: Iterable[str | bytes]) -> Iterator[dict[str, Any]]:
  return (line for line in _objects(lines) if type(line.get('step')) is int)


def parse_lines(text: str) -> list[dict[str, Any]]:
  """The JSON objects of a text, one a line, without what a kill has cut short."""
  return list(_objects(text.splitlines()))


def _objects(lines: Iterable[str | bytes]) -> Iterator[dict[str, Any]]:
  for text in lines:
    with contextlib.suppress(ValueError):
      line = parse_json(text)
      if isinstance(line, dict):
        yield line


def truncate_metrics(workdir: epath.Path, step: int) -> None:
  """Drops the lines past `step`, which a resumed run writes again, and lines cut short."""
  for file in metrics_files(workdir):
    before = read_text(file)
    kept = ''.join(f'{line}\n' for line in before.splitlines() if _is_kept(line, step))
    if not kept and file.parent.name == PARTS_FOLDER:
      with_retries(file.unlink, missing_ok=True)
    elif kept != before:
      write_text(file, kept)


def _is_kept(line: str, step: int) -> bool:
  try:
    return parse_json(line)['step'] <= step
  except (ValueError, KeyError, TypeError):
    return False
