"""Writes an HTML report about one run or several; it opens from disk, without a network.

  python -m lrat_jax.report runs/lrat_digits_seed0                     runs/lrat_digits_seed0/report.html
  python -m lrat_jax.report runs/compare_digits/*/seed* --output=digits.html    several, side by side

  RUN...              workdirs; runs that differ only in their seed are one method; the other methods are
                      compared with the first
  --output=FILE.html  default RUN/report.html for one run, report.html for several

Exit codes: 0 done, 2 bad input, 4 the page could not be written.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from lrat_jax.config import command_line
from lrat_jax.core.errors import ConfigError, CorruptFileError

BAD_INPUT, FILES_FAILED = 2, 4


class Options(NamedTuple):
  """The parsed options."""

  workdirs: list[Path]
  output: Path


def _flags() -> flags.FlagValues:
  values = flags.FlagValues()
  flags.DEFINE_string("output", None, "the page", flag_values=values)
  flags.DEFINE_bool("help", False, "shows help", short_name="h", flag_values=values)
  return values


def parse(arguments: Sequence[str]) -> Options | None:
  """Reads the command line; returns None if help was requested. Raises ConfigError with a one-line message."""
  command_line.check_characters(arguments)
  values = _flags()
  try:
    workdirs = [Path(name) for name in values(["report", *map(command_line.expand_home, arguments)])[1:]]
  except flags.Error as error:
    raise ConfigError(command_line.reason(error)) from None
  if values.help:
    return None
  if not workdirs:
    raise ConfigError("no run is given; try python -m lrat_jax.report runs/lrat_digits_seed0.")
  default = workdirs[0] / "report.html" if len(workdirs) == 1 else Path("report.html")
  output = default if values.output is None else Path(values.output)
  if output.suffix.lower() not in (".html", ".htm"):
    raise ConfigError(f"--output={output} must end in .html.")
  return Options(workdirs, output)


def run(options: Options) -> None:
  """Writes the page. Raises ConfigError or CorruptFileError for bad input, OSError if it cannot be written."""
  from rich.console import Console

  from lrat_jax.core import files

  try:
    from lrat_jax.report import page, runs
  except ModuleNotFoundError as error:
    raise ConfigError(f"a report needs the package {error.name}: pip install jinja2 jsonschema.") from None
  start = time.perf_counter()
  console = Console()
  # A pattern such as runs/* matches other folders too. If none is a run, the first one gives the error message.
  workdirs = [workdir for workdir in options.workdirs if runs.is_run(workdir)] or options.workdirs
  for workdir in options.workdirs:
    if workdir not in workdirs:
      console.print(f"{workdir} is not a run and is left out.", highlight=False, markup=False, soft_wrap=True)
  content = page.render(workdirs).encode()
  with files.replacing(options.output) as file:
    file.write(content)
  seconds = time.perf_counter() - start
  console.print(
    f"{options.output}: {len(content) / 1e6:.2f} MB in {seconds:.0f} s", highlight=False, markup=False, soft_wrap=True
  )


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the program on command-line arguments and returns its exit code; an error is one line on stderr."""
  try:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if options is None:
      print(__doc__.strip())
      return 0
    run(options)
  except (ConfigError, CorruptFileError) as error:
    print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT
  except OSError as error:
    print(f"error: {error.strerror or error}: {error.filename}", file=sys.stderr)
    return FILES_FAILED
  return 0


if __name__ == "__main__":
  sys.exit(main())
