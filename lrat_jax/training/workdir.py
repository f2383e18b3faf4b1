"""Whose a run's folder is: which configuration it belongs to, and which process works in it."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
from ml_collections import ConfigDict

from lrat_jax import data
from lrat_jax.config import earlier, validate, validate_user_code
from lrat_jax.core import distributed, files, provenance
from lrat_jax.core.errors import ConfigError

# Where this machine keeps things: they change no result.
_MACHINE_FIELDS = ("data.data_dir", "data.loading", "data.placement", "data.workers", "compilation_cache", "mesh")
_LOCK = ".lock"
# A network's file system may take so long to show on one machine what another wrote.
_SHARED_WITHIN_S = 30

# What may differ between two tries at one run, besides: what is evaluated.
_FREE_FIELDS = ("eval", "data.corruptions", *_MACHINE_FIELDS)


def _without(config: dict[str, Any], paths: tuple[str, ...]) -> dict[str, Any]:
  plain = json.loads(json.dumps(config))
  for path in paths:
    *parents, leaf = path.split(".")
    node = plain
    for key in parents:
      node = node.get(key)
    if isinstance(node, dict):
      node.pop(leaf, None)
  return plain


def portable(config: ConfigDict) -> dict[str, Any]:
  """A configuration as plain JSON data, without the fields that belong to a machine and change no result."""
  return _without(config.to_dict(), _MACHINE_FIELDS)


def _difference(saved: dict[str, Any], asked: dict[str, Any], prefix: str = "config") -> list[str]:
  """The fields in which two nested dictionaries differ, a line each: "config.seed: 0 in the workdir, 1 asked for"."""
  lines = []
  for key in sorted(set(saved) | set(asked)):
    path, old, new = f"{prefix}.{key}", saved.get(key, "absent"), asked.get(key, "absent")
    if isinstance(old, dict) and isinstance(new, dict):
      lines += _difference(old, new, path)
    elif old != new:
      lines.append(f"{path}: {old!r} in the workdir, {new!r} asked for")
  return lines


def write_config(workdir: Path, config: ConfigDict, asked: dict[str, Any]) -> None:
  """config.json: what was asked for and what the data are under "run", then the fields."""
  with files.replacing(workdir / "config.json") as file:
    run = provenance.stamp() | asked
    file.write((json.dumps({"run": run, **config.to_dict()}, indent=2) + "\n").encode())


def read_config(path: Path, *, says: bool = False) -> dict[str, Any]:
  """The fields in a config.json; those that came later than it are at their defaults, and with `says` a line says so.

  Raises:
    ConfigError: it was written by another version.
    files.CorruptFileError: it is not whole.
  """
  saved = files.read_json(path)
  run = saved.pop("run", None)
  provenance.refuse_other_schema(path, run if isinstance(run, dict) else {})
  fields, absent = earlier.completed(saved)
  if says and absent and distributed.is_primary():
    line = f"note: {path} is from before {', '.join(absent)}; there is no such field in it, so the default counts."
    print(line, file=sys.stderr)
  return fields


def _read_run(workdir: Path) -> dict[str, Any]:
  """What config.json says of the run. Raises as `read_config` does."""
  read_config(workdir / "config.json")
  return files.read_json(workdir / "config.json")["run"]


def read_preset(workdir: Path) -> str:
  """The --config that a run was made with, "lrat:digits". Raises as `read_config` does."""
  return str(_read_run(workdir).get("preset", ""))


def data_of_run(workdir: Path, dataset: data.Dataset) -> dict[str, Any]:
  """What config.json is to say of a run's data: {"num_classes", and the fingerprint of each split}.

  Of splits that were not read this time it says what it said.

  Raises:
    ConfigError: the run that is there had other data, or a file of it is damaged.
  """
  found = {"num_classes": dataset.num_classes, **dataset.fingerprint()}
  if not (workdir / "config.json").exists():
    return found
  try:
    saved = _read_run(workdir).get("data", {})
  except files.CorruptFileError as error:
    raise ConfigError(str(error)) from None
  found |= {"num_classes": dataset.num_classes or saved.get("num_classes")}
  if changed := _changed(saved, found):
    raise ConfigError(
      f"--workdir={workdir} holds a run on other data under the same name ({changed}); give another --workdir."
    )
  return saved | found


def init_of_run(workdir: Path) -> dict[str, Any] | None:
  """What config.json says of the weights that a run began with; None where it began from the seed alone.

  Raises:
    ConfigError: the file is damaged.
  """
  try:
    return _read_run(workdir).get("init_from")
  except files.CorruptFileError as error:
    raise ConfigError(str(error)) from None


def _changed(saved: Mapping[str, Any], found: Mapping[str, Any]) -> str:
  """Of what both name, what differs: "test: uint8 [500, 8, 8, 1] sha256:01 before, ... sha256:23 now"."""
  both = [name for name in found if name in saved and saved[name] != found[name]]
  return "; ".join(f"{name}: {saved[name]} before, {found[name]} now" for name in both)


def check_model(folder: Path, about: Mapping[str, Any]) -> None:
  """Refuses to replace results of another model, or of another test set under the same name.

  Args:
    folder: where the results go.
    about: what the results will say: "data" as of `data_of_run`, and "model_content" of weights.

  Raises:
    ConfigError: with what differs.
  """
  try:
    saved = files.read_json(folder / "results.json")
  except files.CorruptFileError:  # not there, or not whole: nothing is lost with it
    return
  one, other = (
    {"model": said.get("model_content", said.get("model")), **said.get("data", {})} for said in (saved, about)
  )
  if changed := _changed(one, other):
    raise ConfigError(
      f"--workdir={folder} holds the results of another evaluation ({changed}); give another --workdir."
    )


def check(workdir: Path, config: ConfigDict) -> None:
  """Refuses a workdir that is no directory or holds a run of another configuration, and shows the difference.

  Raises:
    ConfigError: with the fields that differ and their values.
  """
  try:
    if workdir.exists() and not workdir.is_dir():
      raise ConfigError(f"--workdir={workdir} is a file, not a directory.")
    saved_file = workdir / "config.json"
    if not saved_file.exists():
      return
    saved = read_config(saved_file, says=True)
  except OSError as error:  # a name that is too long, or a folder that may not be looked into
    raise ConfigError(f"--workdir={workdir} cannot be: {error.strerror}.") from None
  except files.CorruptFileError as error:
    raise ConfigError(f"{error} Give another --workdir or remove this one.") from None
  lines = _difference(_without(saved, _FREE_FIELDS), _without(config.to_dict(), _FREE_FIELDS))
  if lines:
    raise ConfigError(
      f"--workdir={workdir} holds a run of another configuration ({'; '.join(lines)}); give another --workdir."
    )


def load_config(workdir: Path, *, trust_user_code: bool = False) -> ConfigDict:
  """The config.json of a run that may be another's.

  Args:
    trust_user_code: whether it may name functions of its author's ("package.module:function"), which are imported and
      run when the run is built. Say True only of people whose programs you would run.

  Raises:
    ValueError: no config.json there, one that is damaged, or one that names such functions without leave.
  """
  path = workdir / "config.json"
  if not path.is_file():
    raise ValueError(f"workdir={str(workdir)!r} holds no config.json; train there first.")
  config = ConfigDict(read_config(path, says=True))
  validate.check_form(config)
  names = list(validate_user_code.named(config.to_dict()))
  if names and not trust_user_code:
    raise ValueError(
      f"{path} names code that would be run, {names[0]}; give trust_user_code=True if you trust its author."
    )
  return config


def _lock(workdir: Path) -> filelock.BaseFileLock | None:
  """Makes the folder and takes its lock; None where the file system knows no locks."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(workdir / _LOCK).acquire(timeout=0).lock
  except filelock.Timeout:
    raise ConfigError(f"--workdir={workdir} is in use by another process; wait for it, or give another.") from None
  except NotImplementedError:  # some network file systems; a run there should not be impossible, only unguarded
    line = f"warning: --workdir={workdir} is on a file system without locks; let no other process work in it."
    print(line, file=sys.stderr)
    return None
  except OSError as error:
    raise ConfigError(f"--workdir={workdir} cannot be written: {error.strerror}.") from None


def _find(workdir: Path) -> None:
  """Waits for the folder that the first process has made."""
  deadline = time.monotonic() + _SHARED_WITHIN_S
  while not workdir.is_dir():
    if time.monotonic() > deadline:
      raise ConfigError(f"--workdir={workdir} is not shared: what the first process made there is not to be seen.")
    time.sleep(0.1)


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
  """The folder, made if it was not there, and for as long as the context lasts no other run's.

  The lock is the operating system's, so that it ends with the process however that ends.

  Raises:
    ConfigError: it cannot be written, another process works in it, or not all of this run's processes see it.
  """
  lock = distributed.run_on_all_processes("workdir", lambda: _lock(workdir) if distributed.is_primary() else None)
  try:
    distributed.run_on_all_processes("shared workdir", lambda: _find(workdir))
    yield
  finally:
    if lock is not None:
      lock.release()
