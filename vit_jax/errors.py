"""The errors a command turns into one sentence and an exit code."""


class UserError(Exception):
  """Something the user can mend; the message says what was wrong, where, and what to do."""

  exit_code = 2


class NonFiniteLossError(Exception):
  """The loss or its gradient stopped being a number; the message names the step."""

  exit_code = 3


def first_line(error: Exception) -> str:
  """The first line of a library's error, short enough to stand inside one of our sentences."""
  return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
