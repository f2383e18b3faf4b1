"""Numbers as readable text."""


def counted(number: int, noun: str) -> str:
  """A number and its noun: "1 seed", "1,000 seeds"."""
  return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def seconds_text(seconds: float) -> str:
  """A duration as readable text: "42 s", "3 min 20 s", "2 h 05 min"."""
  seconds = round(seconds)
  if seconds < 60:
    return f"{seconds} s"
  minutes, rest = divmod(seconds, 60)
  return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
