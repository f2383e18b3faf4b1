"""The error of a wrong configuration or command line, which every command turns into one line."""


class ConfigError(ValueError):
  """Something that the user asked for cannot be; the message is one line that names the field and the value."""

  def __str__(self) -> str:
    return " ".join(super().__str__().splitlines())  # a value that was given may hold a line's end
