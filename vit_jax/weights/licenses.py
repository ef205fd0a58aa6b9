"""Terms of published weights that their owners want to be passed on with what is made of them."""

DINOV3 = (
  "Weights that were published as DINOv3 are under Meta's DINOv3 License, a copy of which must be "
  'passed on with them and with what is made of them: '
  'https://ai.meta.com/resources/models-and-libraries/dinov3-license/'
)
_PERMISSIVE = ('', 'apache-2.0', 'mit', 'bsd-3-clause', 'cc-by-4.0', 'unknown')


def not_commercial(family: str) -> str:
  """The terms of weights under CC BY-NC 4.0, published under that name."""
  return (
    f'Weights that were published as {family} are for noncommercial use, under CC BY-NC 4.0: '
    'https://creativecommons.org/licenses/by-nc/4.0/'
  )


def terms(identifier: str, family: str) -> str | None:
  """What a license asks to be named, as 'cc-by-nc-4.0'; None: nothing.

  Args:
    identifier: as huggingface.co writes licenses.
    family: the name under which the weights were published.
  """
  identifier = identifier.lower()
  if identifier in _PERMISSIVE:
    return None
  known = {'cc-by-nc-4.0': not_commercial(family), 'dinov3-license': DINOV3}
  return known.get(
    identifier, f'Weights that were published as {family} are under the license {identifier}.'
  )
