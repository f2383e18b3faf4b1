"""The command line: absl flags and ml_collections overrides, with a one-line message for any mistake in it."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from lrat_jax.core.errors import ConfigError

# The keys of `methods.METHODS`, a module that is slow to import.
METHODS = ("at", "irat", "lrat", "lrat_irat", "max", "softmax", "eat", "trades", "mart")
MODES = ("train_and_evaluate", "train", "evaluate")
# Flags about a file of weights.
WEIGHTS_FLAGS = ("key", "mean", "std", "preprocessing", "activation", "architecture", "robustbench")
# An override of a configuration's field: its path, and "=" if a value follows.
OVERRIDE = re.compile(r"--?config\.([^=]*)(=?)")


class Options(NamedTuple):
  """The parsed command line; `config` is None if only help is requested, `model` if a run's checkpoint is evaluated.

  Attributes:
    weights: the values of WEIGHTS_FLAGS, about the file of --model (`exchange.read`).
    preset: the value of --config, such as "lrat:cifar10".
    arguments: the arguments that determine the result, so without the run's folder and number of processes.
    track: the services that track the run (`metric_writers.find`).
    topology: TPUs that a dry run is compiled for, such as "v5e:4x4".
    profile: a folder for a trace of the run.
    coordinator, num_processes, process_id: how to find the run's other processes (`distributed.join`).
  """

  config: ConfigDict | None
  workdir: str | None
  mode: str
  model: str | None
  weights: Mapping[str, Any] = MappingProxyType({})
  preset: str = ""
  arguments: tuple[str, ...] = ()
  track: tuple[str, ...] = ()
  dry_run: bool = False
  topology: str | None = None
  profile: str | None = None
  coordinator: str | None = None
  num_processes: int | None = None
  process_id: int | None = None


# Arguments about where and how a run executes, not about what it computes.
_PLACE = re.compile(
  r"--?(workdir|mode|track|profile|no?dry_run|topology|coordinator|num_processes|process_id"
  r"|config\.(compilation_cache|data\.(data_dir|loading|placement|workers)))="
)
_METHODS_FILE = Path(__file__).with_name("methods.py")
_CONFIG = re.compile(r"--?config=(.*)", re.DOTALL)


def joined(arguments: Sequence[str]) -> list[str]:
  """The arguments with "--name value" written as "--name=value"."""
  result, waiting = [], None
  for argument in arguments:
    if waiting is not None:
      result.append(f"{waiting}={argument}")
      waiting = None
    elif re.fullmatch(
      rf"--?(config|workdir|model|{'|'.join(WEIGHTS_FLAGS)}|mode|track|profile|topology|coordinator|num_processes"
      r"|process_id)",
      argument,
    ):
      waiting = argument
    else:
      result.append(argument)
  return result + ([waiting] if waiting is not None else [])


def _with_file(argument: str) -> str:
  """Inserts the methods' file into `--config=NAME` or `--config=NAME:ARG`; other arguments are returned unchanged.

  Raises ConfigError if NAME is neither a method nor a file.
  """
  match = _CONFIG.fullmatch(argument)
  if match is None:
    return argument
  name = match[1].partition(":")[0]
  if name in METHODS:
    return f"--config={_METHODS_FILE}:{match[1]}"
  if not os.path.exists(name):  # noqa: PTH110 (False, not an error, for a name that no file can have)
    raise ConfigError(f"--config={match[1]}: {name!r} is neither a method ({', '.join(METHODS)}) nor a file.")
  return argument


def expand_home(argument: str) -> str:
  """Replaces a "~" at the start of an argument's value by the home folder; a shell does not replace it after "="."""
  name, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
  return f"{name}{equals}{os.path.expanduser(value)}"  # noqa: PTH111 (no path need be meant)


def check_characters(arguments: Sequence[str]) -> None:
  """Raises ConfigError for a character that no file name can contain."""
  for argument in arguments:
    if "\0" in argument:
      raise ConfigError(f"{argument!r} contains a null character.")


def define_weights_flags(values: flags.FlagValues) -> None:
  """Defines WEIGHTS_FLAGS, which say how a file of weights is read."""
  for name in WEIGHTS_FLAGS:
    define = flags.DEFINE_list if name in ("mean", "std") else flags.DEFINE_string
    define(name, None, "of a file of weights", flag_values=values)


def _define(arguments: list[str]) -> flags.FlagValues:
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "FILE or FILE:ARGUMENT", flag_values=values, sys_argv=arguments)
  flags.DEFINE_string("workdir", None, "where the run lives", flag_values=values)
  flags.DEFINE_string("model", None, "package.module:function, a model to evaluate", flag_values=values)
  define_weights_flags(values)
  flags.DEFINE_string("mode", None, "what to do", flag_values=values)
  flags.DEFINE_list("track", [], "wandb, mlflow", flag_values=values)
  flags.DEFINE_bool("dry_run", False, "says what the run would take", flag_values=values)
  flags.DEFINE_string("topology", None, "of TPUs to compile for", flag_values=values)
  flags.DEFINE_string("profile", None, "a folder for a trace of the run", flag_values=values)
  flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0", flag_values=values)
  flags.DEFINE_integer("num_processes", None, "of this run", flag_values=values)
  flags.DEFINE_integer("process_id", None, "which of them this is", flag_values=values)
  flags.DEFINE_bool("help", False, "shows help", short_name="h", flag_values=values)
  return values


def reason(error: BaseException) -> str:
  """The last line of an error's text, because ml_collections includes a whole traceback."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return re.sub(r"^(flag --\S+: )?(\w+(Error|Exception): )?", "", lines[-1]) if lines else type(error).__name__


def _parse(arguments: list[str]) -> flags.FlagValues:
  values = _define(["lrat_jax", *arguments])
  try:
    rest = values(["lrat_jax", *arguments])[1:]
  except flags.IllegalFlagValueError as error:
    flag = str(error).splitlines()[0].removeprefix("flag --").partition(": ")[0].replace(f"{_METHODS_FILE}:", "")
    raise ConfigError(f"--{flag}: {reason(error)}") from None
  except (flags.Error, AttributeError, TypeError, ValueError) as error:
    raise ConfigError(reason(error)) from None
  except Exception as error:  # anything that the user's file raises
    raise ConfigError(f"--config: the file failed with {type(error).__name__}: {reason(error)}") from None
  if rest:
    raise ConfigError(f"{rest[0]!r} is not understood; options are written --name=value.")
  return values


def _load(values: flags.FlagValues) -> ConfigDict:
  if values.config is None:
    raise ConfigError("--config is missing; try --config=lrat.")
  try:
    is_config = hasattr(values.config, "keys") and isinstance(values.config, ConfigDict)
  except OSError as error:  # a file that failed to load raises only when it is used
    raise ConfigError(f"--config: {reason(error)}; try --config=lrat.") from None
  if not is_config:
    raise ConfigError(f"--config: the file returns {type(values.config).__name__}, not a ConfigDict.")
  from lrat_jax.config.validate import check_form  # imports JAX, which is slow, and not needed to report a wrong flag

  check_form(values.config)
  return values.config


def _check_override(config: ConfigDict, argument: str) -> None:
  """Raises ConfigError if PATH in `--config.PATH=VALUE` is no field, or is a group of fields."""
  path, equals = OVERRIDE.match(argument).groups()
  if not equals:
    raise ConfigError(f"{argument!r} is not understood; options are written --name=value.")
  node, done = config, "config"
  for key in path.split("."):
    if not isinstance(node, ConfigDict) or key not in node:
      choices = f"choose from {sorted(node)}" if isinstance(node, ConfigDict) else "it is a value, not a group"
      raise ConfigError(f"{done}.{key} is unknown; {done}: {choices}.")
    node, done = node[key], f"{done}.{key}"
  if isinstance(node, ConfigDict):
    hint = " Training attacks are chosen in the config's argument, as in configs/lrat.py:digits,pgd,cw."
    raise ConfigError(
      f"{done} is a group of the fields {sorted(node)}; set one of them.{hint * (done == 'config.train_attacks')}"
    )


def _numbers(name: str, texts: list[str] | None) -> tuple[float, ...] | None:
  try:
    return None if texts is None else tuple(float(text) for text in texts)
  except ValueError:
    raise ConfigError(f"--{name}={','.join(texts)!r} must be numbers, such as 0.4914,0.4822,0.4465.") from None


def weights(values: flags.FlagValues) -> dict[str, Any]:
  """The values of WEIGHTS_FLAGS, as arguments of `exchange.read`; None if not given. Raises ConfigError."""
  said = {name: values[name].value for name in WEIGHTS_FLAGS}
  said |= {name: _numbers(name, said[name]) for name in ("mean", "std")}
  if (said["mean"] is None) != (said["std"] is None):
    raise ConfigError("--mean and --std go together; give both or neither.")
  return said


def parse(arguments: Sequence[str]) -> Options:
  """Reads the command line, the configuration and its overrides. Raises ConfigError with a one-line message."""
  check_characters(arguments)
  given = [expand_home(argument) for argument in joined(arguments)]
  arguments = [_with_file(argument) for argument in given]
  overrides = [argument for argument in arguments if OVERRIDE.match(argument)]
  values = _parse([argument for argument in arguments if argument not in overrides])
  mode = values.mode or ("evaluate" if values.model is not None else MODES[0])
  if values.help:
    return Options(None, None, mode, None)
  if mode not in MODES:
    raise ConfigError(f"--mode={mode!r} is unknown; choose from {list(MODES)}.")
  if values.model is not None and mode != "evaluate":
    raise ConfigError(f"--mode={mode} cannot be used with --model, which can only be evaluated; use --mode=evaluate.")
  for name in ("track", "dry_run"):
    if values.model is not None and values[name].value:
      raise ConfigError(f"--{name} is for a run of a configuration, not for --model.")
  if values.topology is not None and not values.dry_run:
    raise ConfigError(f"--topology={values.topology} only works with a dry run; pass --dry_run too.")
  said = weights(values)
  if values.model is None and (given_flags := [f"--{name}" for name in WEIGHTS_FLAGS if said[name] is not None]):
    raise ConfigError(f"{', '.join(given_flags)}: only valid with --model, which is not given.")
  config = _load(values)
  for argument in overrides:
    _check_override(config, argument)
  if overrides:
    config = _load(_parse(list(arguments)))
  return Options(
    config,
    values.workdir,
    mode,
    values.model,
    weights=said,
    preset=next(match[1] for match in map(_CONFIG.fullmatch, reversed(given)) if match),
    arguments=tuple(argument for argument in given if not _PLACE.match(argument)),
    track=tuple(values.track),
    dry_run=values.dry_run,
    topology=values.topology,
    profile=values.profile,
    coordinator=values.coordinator,
    num_processes=values.num_processes,
    process_id=values.process_id,
  )
