"""The workdir of a run: the configuration to which it belongs, and the lock of the process that uses it."""

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

# Fields that depend on the machine and change no result.
_MACHINE_FIELDS = ("data.data_dir", "data.loading", "data.placement", "data.workers", "compilation_cache", "mesh")
_LOCK = ".lock"
# On a network file system, it may take this long until one machine sees what another wrote.
_SHARED_WITHIN_S = 30

# Fields that may differ between two attempts at one run: what is evaluated, and the machine's fields.
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
  """The fields in which two nested dictionaries differ, one line each: "config.seed: 0 in the workdir, 1 asked for"."""
  lines = []
  for key in sorted(set(saved) | set(asked)):
    path, old, new = f"{prefix}.{key}", saved.get(key, "absent"), asked.get(key, "absent")
    if isinstance(old, dict) and isinstance(new, dict):
      lines += _difference(old, new, path)
    elif old != new:
      lines.append(f"{path}: {old!r} in the workdir, {new!r} asked for")
  return lines


def write_config(workdir: Path, config: ConfigDict, asked: dict[str, Any]) -> None:
  """Writes config.json: under "run" the version, the command and the data (`asked`), then the fields."""
  with files.replacing(workdir / "config.json") as file:
    run = provenance.stamp() | asked
    file.write((json.dumps({"run": run, **config.to_dict()}, indent=2) + "\n").encode())


def read_config(path: Path, *, says: bool = False) -> dict[str, Any]:
  """The fields in a config.json; fields newer than the file get their defaults, with a note on stderr if `says`.

  Raises:
    ConfigError: it was written by another version.
    files.CorruptFileError: it is missing or damaged.
  """
  saved = files.read_json(path)
  run = saved.pop("run", None)
  provenance.refuse_other_schema(path, run if isinstance(run, dict) else {})
  fields, absent = earlier.completed(saved)
  if says and absent and distributed.is_primary():
    line = f"note: {path} was written before {', '.join(absent)} existed; defaults are used instead."
    print(line, file=sys.stderr)
  return fields


def _read_run(workdir: Path) -> dict[str, Any]:
  """The entry "run" of config.json. Raises as `read_config` does."""
  read_config(workdir / "config.json")
  return files.read_json(workdir / "config.json")["run"]


def read_preset(workdir: Path) -> str:
  """The --config with which a run was started, such as "lrat:digits". Raises as `read_config` does."""
  return str(_read_run(workdir).get("preset", ""))


def data_of_run(workdir: Path, dataset: data.Dataset) -> dict[str, Any]:
  """What config.json records about a run's data: {"num_classes", and the fingerprint of each split}.

  Splits that were not read this time keep their recorded fingerprints.

  Raises:
    ConfigError: the run in the workdir had other data, or its config.json is damaged.
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
      f"--workdir={workdir} contains a run on different data with the same name ({changed}); use another --workdir."
    )
  return saved | found


def init_of_run(workdir: Path) -> dict[str, Any] | None:
  """What config.json records about a run's initial weights; None if they came from the seed alone.

  Raises:
    ConfigError: the file is damaged.
  """
  try:
    return _read_run(workdir).get("init_from")
  except files.CorruptFileError as error:
    raise ConfigError(str(error)) from None


def _changed(saved: Mapping[str, Any], found: Mapping[str, Any]) -> str:
  """The differences in entries that both have: "test: uint8 [500, 8, 8, 1] sha256:01 before, ... sha256:23 now"."""
  both = [name for name in found if name in saved and saved[name] != found[name]]
  return "; ".join(f"{name}: {saved[name]} before, {found[name]} now" for name in both)


def check_model(folder: Path, about: Mapping[str, Any]) -> None:
  """Refuses to overwrite results of another model, or of another test set under the same name.

  Args:
    folder: where the results are written.
    about: what the results will record: "data" from `data_of_run`, "model", and for weights "model_content".

  Raises:
    ConfigError: the results in the folder are of another model or data; it states the difference.
  """
  try:
    saved = files.read_json(folder / "results.json")
  except files.CorruptFileError:  # missing or damaged: nothing is lost if it is overwritten
    return
  one, other = (
    {"model": said.get("model_content", said.get("model")), **said.get("data", {})} for said in (saved, about)
  )
  if changed := _changed(one, other):
    raise ConfigError(
      f"--workdir={folder} contains the results of another evaluation ({changed}); use another --workdir."
    )


def check(workdir: Path, config: ConfigDict) -> None:
  """Refuses a workdir that is not a directory, cannot be read, or has a run of another configuration.

  Raises:
    ConfigError: for another configuration, it states the fields that differ and their values.
  """
  try:
    if workdir.exists() and not workdir.is_dir():
      raise ConfigError(f"--workdir={workdir} is a file, not a directory.")
    saved_file = workdir / "config.json"
    if not saved_file.exists():
      return
    saved = read_config(saved_file, says=True)
  except OSError as error:  # a name that is too long, or a folder without read permission
    raise ConfigError(f"--workdir={workdir} cannot be used: {error.strerror}.") from None
  except files.CorruptFileError as error:
    raise ConfigError(f"{error} Use another --workdir or remove this one.") from None
  lines = _difference(_without(saved, _FREE_FIELDS), _without(config.to_dict(), _FREE_FIELDS))
  if lines:
    raise ConfigError(
      f"--workdir={workdir} contains a run with another configuration ({'; '.join(lines)}); use another --workdir."
    )


def load_config(workdir: Path, *, trust_user_code: bool = False) -> ConfigDict:
  """Reads the config.json of a run that may come from someone else.

  Args:
    trust_user_code: whether it may name user-defined functions ("package.module:function"), which are imported and run
      when the run is built. Set it to True only if you would run programs of its author.

  Raises:
    ValueError: config.json is missing or damaged, or names such functions without `trust_user_code`.
  """
  path = workdir / "config.json"
  if not path.is_file():
    raise ValueError(f"workdir={str(workdir)!r} contains no config.json; train there first.")
  config = ConfigDict(read_config(path, says=True))
  validate.check_form(config)
  names = list(validate_user_code.named(config.to_dict()))
  if names and not trust_user_code:
    raise ValueError(
      f"{path} refers to user code that would be run, {names[0]}; pass trust_user_code=True if you trust its author."
    )
  return config


def _lock(workdir: Path) -> filelock.BaseFileLock | None:
  """Creates the folder and acquires its lock; None if the file system does not support locks."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(workdir / _LOCK).acquire(timeout=0).lock
  except filelock.Timeout:
    raise ConfigError(f"--workdir={workdir} is in use by another process; wait for it, or use another.") from None
  except NotImplementedError:  # some network file systems; a run there is possible, but without a lock
    line = f"warning: --workdir={workdir} is on a file system without locks; make sure that no other process uses it."
    print(line, file=sys.stderr)
    return None
  except OSError as error:
    raise ConfigError(f"--workdir={workdir} cannot be written: {error.strerror}.") from None


def _find(workdir: Path) -> None:
  """Waits until this process sees the folder that the primary process created."""
  deadline = time.monotonic() + _SHARED_WITHIN_S
  while not workdir.is_dir():
    if time.monotonic() > deadline:
      raise ConfigError(
        f"--workdir={workdir} is not shared: this process cannot see the directory that the first process created."
      )
    time.sleep(0.1)


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
  """Context in which the workdir exists (it is created if needed) and is locked against other runs.

  The lock is the operating system's, so it is released when the process ends, however it ends.

  Raises:
    ConfigError: the workdir cannot be written, another process uses it, or not all processes of this run see it.
  """
  lock = distributed.run_on_all_processes("workdir", lambda: _lock(workdir) if distributed.is_primary() else None)
  try:
    distributed.run_on_all_processes("shared workdir", lambda: _find(workdir))
    yield
  finally:
    if lock is not None:
      lock.release()
