"""The errors that end a command, each with a message of one line. They stand here so that naming one imports little."""


class ConfigError(ValueError):
  """Something that the user asked for cannot be; the message is one line that names the field and the value."""

  def __str__(self) -> str:
    return " ".join(super().__str__().splitlines())  # a value that was given may hold a line's end


class UserCodeError(ValueError):
  """User code that is not there, fails, or does not do what its place asks."""


class CorruptFileError(ValueError):
  """A file that is not whole, or not what its name says."""


class EvaluationError(ValueError):
  """A model or a half-done evaluation that cannot be evaluated; the message is one line that says why."""


class WeightsError(ValueError):
  """A file that holds no weights that can be used."""

  def __str__(self) -> str:
    return " ".join(super().__str__().splitlines())  # a tensor's name may hold a line's end


class NonFiniteError(ArithmeticError):
  """A metric is NaN or infinite; the run stops with its last good checkpoint intact."""


class CheckpointError(Exception):
  """A checkpoint could not be written."""


class Preempted(Exception):
  """The run was asked to stop, and everything is saved."""
