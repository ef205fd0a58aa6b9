"""tfds:name: data sets in TFDS's own folder, by their TFDS name; read without TensorFlow."""

from etils import epath

from vit_jax.data.sources import array_record
from vit_jax.data.sources.source import Source
from vit_jax.errors import MissingDataError, first_line


def _find_folder(name: str) -> epath.Path:
  """Returns the folder in which TFDS keeps a prepared data set."""
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder(name, try_gcs=False, file_format='array_record')
    splits = builder.info.splits
  except Exception as error:  # noqa: BLE001 - TFDS raises a dozen types for an unknown name
    raise MissingDataError(f'TFDS cannot open {name!r} ({first_line(error)}).') from None
  if not splits:
    raise MissingDataError(
      f'The TFDS data set {name!r} is not prepared in {builder.data_path}; prepare it with '
      f"pip install -e '.[prepare]', then python -c \"import tensorflow_datasets as tfds; "
      f"tfds.builder({name!r}, file_format='array_record').download_and_prepare()\", "
      f'or name a folder of images as folder:/path.'
    )
  return epath.Path(builder.data_path)


def split_names(name: str) -> tuple[str, ...]:
  return array_record.split_names(str(_find_folder(name)))


def open_split(name: str, split: str) -> Source:
  """Opens a split of a data set that TFDS has prepared."""
  return array_record.open_split(str(_find_folder(name)), split, f'tfds:{name}')
