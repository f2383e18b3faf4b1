"""Converts models from PyTorch's files to ours and back: the same numbers, in the tensor names of common networks.

  python -m lrat_jax.convert weights.pt weights.safetensors --mean=0.4914,0.4822,0.4465 --std=0.2471,0.2435,0.2616
  python -m lrat_jax.convert weights.pt weights.safetensors --robustbench=Wang2023Better_WRN-28-10
  python -m lrat_jax.convert runs/at_cifar10_seed0 at.safetensors          a run's best checkpoint
  python -m lrat_jax.convert runs/at_cifar10_seed0 at --robustbench_entry=entry.json

  SOURCE                 .pt, .pth, .th, .safetensors, a directory with model.safetensors and config.json, or a workdir
  DESTINATION            NAME.safetensors, or a directory that gets model.safetensors and config.json
  --mean=M,M,M --std=S,S,S   of the training images in [0, 1], for each channel or one number for all channels
  --preprocessing=NAME   in place of these: none for images in [0, 1] as they are; per_image if each image is
                         standardised by itself; minus_one_to_one for 2 x - 1
  --activation=NAME      relu, silu, gelu or gelu_tanh
  --architecture=NAME    the network, if the tensors fit several
  --robustbench=NAME     in place of all of these: an entry of RobustBench, NAME or DATASET/THREAT_MODEL/NAME
  --key=NAME             the state_dict to read, if a .pt file has several
  --robustbench_entry=FILE   also writes the model's entry for RobustBench, from a workdir evaluated by suite=autoattack

The networks of docs/models.md are supported. If SOURCE does not define the preprocessing of images, a flag must do so;
buffers of mean and std among the tensors define it, and so do files written here. PyTorch loads the result with
load_state_dict(safetensors.torch.load_file(DESTINATION)); `python -m lrat_jax.main --model=DESTINATION` evaluates it.
Exit codes: 0 done, 2 bad input, 4 a file could not be written.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags, logging

from lrat_jax.config import command_line
from lrat_jax.core.errors import ConfigError, CorruptFileError, WeightsError

BAD_INPUT, FILES_FAILED = 2, 4


class Options(NamedTuple):
  """The parsed command line: `weights` are arguments of `exchange.read`; `entry` is a file for RobustBench's entry."""

  source: Path
  destination: Path
  weights: dict[str, Any]
  entry: Path | None


def _flags() -> flags.FlagValues:
  values = flags.FlagValues()
  command_line.define_weights_flags(values)
  flags.DEFINE_string("robustbench_entry", None, "a JSON file to write", flag_values=values)
  flags.DEFINE_bool("help", False, "shows help", short_name="h", flag_values=values)
  return values


def parse(arguments: Sequence[str]) -> Options | None:
  """Reads the command line; returns None for --help. Raises ConfigError with a message of one line."""
  command_line.check_characters(arguments)
  values = _flags()
  try:
    rest = values(["convert", *map(command_line.expand_home, arguments)])[1:]
  except flags.Error as error:
    raise ConfigError(command_line.reason(error)) from None
  if values.help:
    return None
  if len(rest) != 2:
    raise ConfigError(
      f"SOURCE and DESTINATION are required, but {len(rest)} given; see python -m lrat_jax.convert --help."
    )
  weights = command_line.weights(values)
  source, destination = (Path(text) for text in rest)
  if destination.suffix not in ("", ".safetensors") and not destination.is_dir():
    raise ConfigError(f"{destination} must be NAME.safetensors, or a directory without a dot in its name.")
  if (destination / "checkpoints").exists():
    raise ConfigError(f"{destination} contains a training run; use another DESTINATION.")
  entry = None if values.robustbench_entry is None else Path(values.robustbench_entry)
  return Options(source, destination, weights, entry)


def _robustbench(workdir: Path) -> dict[str, Any]:
  """RobustBench's entry for a workdir's evaluated model. Raises ConfigError if it cannot be made."""
  from lrat_jax.core import files
  from lrat_jax.evaluation import results as results_lib

  path = workdir / "results.json"
  if not path.exists():
    raise ConfigError(f"--robustbench_entry: {path} does not exist; evaluate the model with suite=autoattack first.")
  results = files.read_json(path)
  try:
    architecture = results.get("architecture") or results["config"]["model"]["name"]
    dataset = results["dataset"].partition(":")[2] or results["dataset"]
    return results_lib.robustbench_entry(results, dataset=dataset, architecture=architecture)
  except ValueError as error:
    raise ConfigError(f"--robustbench_entry: {path}: {error}") from None
  except (KeyError, TypeError, AttributeError) as error:
    raise ConfigError(
      f"--robustbench_entry: {path} contains no complete results ({type(error).__name__}: {error})."
    ) from None


def run(options: Options) -> None:
  """Runs the conversion. Raises ConfigError and WeightsError for bad input, OSError if a file cannot be written."""
  import jax
  from rich.console import Console

  from lrat_jax.convert import exchange
  from lrat_jax.evaluation import results as results_lib

  console = Console()
  say = lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)
  entry = None if options.entry is None else _robustbench(options.source)
  stored = exchange.read(options.source, **options.weights)
  say(stored.summary())
  model = stored.build()
  exchange.save(options.destination, model.module, model.variables, **stored.metadata)
  if entry is not None:
    results_lib.write_json(options.entry, entry)
  count = sum(leaf.size for leaf in jax.tree.leaves(model.variables["params"]))
  say(f"{count:,} parameters are in {options.destination}.")


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the program on command-line arguments and returns its exit code; an error is one line on stderr."""
  logging.set_verbosity(logging.FATAL)  # Orbax warns about its own defaults
  try:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if options is None:
      print(__doc__.strip())
      return 0
    run(options)
  except (ConfigError, WeightsError, CorruptFileError) as error:
    print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT
  except OSError as error:
    print(f"error: {error.filename or 'a file'} cannot be written: {error.strerror or error}.", file=sys.stderr)
    return FILES_FAILED
  return 0


if __name__ == "__main__":
  sys.exit(main())
