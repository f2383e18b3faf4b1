"""The errors that end a command, each with a one-line message. This file exists so that importing one is cheap."""


class ConfigError(ValueError):
  """The user's input is invalid; the message is one line that names the field and the value."""

  def __str__(self) -> str:
    return " ".join(super().__str__().splitlines())  # a value in the message may contain a line break


class UserCodeError(ValueError):
  """User-defined code is missing, fails, or does not return what is required."""


class CorruptFileError(ValueError):
  """A file is missing, incomplete, or not what its name says."""


class EvaluationError(ValueError):
  """A model cannot be evaluated, or an evaluation cannot be continued; the message is one line with the reason."""


class WeightsError(ValueError):
  """A file contains no usable weights."""

  def __str__(self) -> str:
    return " ".join(super().__str__().splitlines())  # a tensor's name may contain a line break


class NonFiniteError(ArithmeticError):
  """A metric is NaN or infinite; the run stops with its last good checkpoint intact."""


class CheckpointError(Exception):
  """A checkpoint could not be written."""


class Preempted(Exception):
  """The run was asked to stop, and everything is saved."""
