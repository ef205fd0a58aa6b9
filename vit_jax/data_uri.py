"""Pictures within a page, as data URIs."""

import base64
import io

from PIL import Image

_SMALL = 64  # pixels; smaller images are stored without loss


def picture_uri(image: Image.Image, quality: int = 88) -> str:
  """A PNG of a small image or one with opacity, else a JPEG of this quality (1 to 95)."""
  kind = 'PNG' if max(image.size) <= _SMALL or image.mode == 'RGBA' else 'JPEG'
  file = io.BytesIO()
  image.save(file, kind, **({'quality': quality} if kind == 'JPEG' else {}))
  return f'data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}'
