"""The errors a command turns into one sentence and an exit code."""


class UserError(Exception):
  """Something the user can mend; the message says what was wrong, where, and what to do."""

  exit_code = 2


class NonFiniteLossError(Exception):
  """The loss or its gradient stopped being a number; the message names the step."""

  exit_code = 3
