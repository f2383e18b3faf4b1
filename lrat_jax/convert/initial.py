"""Fine-tuning: a run's initial weights, from another run's workdir or from a file of weights.

The network must be the same as the run's, including the input normalisation. The last layer is loaded too, which needs
the same number of classes; or it is initialised anew, if the configuration says so.
"""

import collections
import contextlib
import hashlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lrat_jax.convert import exchange
from lrat_jax.core import files
from lrat_jax.core.errors import ConfigError, WeightsError
from lrat_jax.training import experiment as experiment_lib
from lrat_jax.training.step import leaf_names
from lrat_jax.training.workdir import read_config

# Fields of `config.model` that do not define the network.
_NOT_THE_NETWORK = ("dtype", "batch_norm")
# The largest difference allowed between a mean or standard deviation and the file's: they are given to four decimals.
_CLOSE = 1e-3


class Initial(NamedTuple):
  """A run's initial weights.

  Attributes:
    arrays: the variables by name, such as "params/network/Conv_0/kernel"; without the last layer's if that is new.
    about: what config.json and results.json record about them: "source", "content" (a digest), "head", and for a run
      its "name" and "step", for a file its "architecture".
  """

  arrays: dict[str, np.ndarray]
  about: dict[str, Any]


def _shapes(config: ConfigDict, num_classes: int, image_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
  model = experiment_lib.create_model(config, num_classes, "float32")
  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  return {name: leaf.shape for name, leaf in leaf_names(jax.eval_shape(model.init, jax.random.key(0), images)).items()}


def _of_run(workdir: Path, config: ConfigDict) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """The best checkpoint's variables (their moving average, if there is one), and the run's name and the step."""
  step, state = exchange.best_checkpoint(workdir)
  try:
    saved = read_config(workdir / "config.json")
    ours = {name: value for name, value in config.model.to_dict().items() if name not in _NOT_THE_NETWORK}
    plain = lambda value: list(value) if isinstance(value, tuple | list) else value
    for name, value in ours.items():
      if plain(saved["model"].get(name)) != plain(value):
        raise WeightsError(f"{workdir} has model.{name}={saved['model'].get(name)!r}, but this run has {value!r}.")
    return leaf_names(state["ema"] or state["variables"]), {"name": saved["name"], "step": step}
  except (files.CorruptFileError, ConfigError) as error:
    raise WeightsError(str(error)) from None
  except (KeyError, TypeError, AttributeError) as error:
    raise WeightsError(
      f"{workdir}: config.json and the checkpoint do not match ({type(error).__name__}: {error})."
    ) from None


def _said(config: ConfigDict) -> list[dict[str, Any]]:
  """What the configuration defines and a file may leave open: preprocessing, activation and network."""
  model = config.model
  by_numbers = model.preprocessing == "mean_std"
  inputs = {"mean": model.mean, "std": model.std} if by_numbers else {"preprocessing": model.preprocessing}
  network = experiment_lib.create_model(config, 2, "float32").network
  activation = {"activation": network.activation} if hasattr(network, "activation") else {}
  return [inputs, activation, {"architecture": model.name}]


def _read_file(source: str, config: ConfigDict) -> exchange.Stored:
  """Reads a file of weights; the configuration is used only for what the file leaves open."""
  said = _said(config)
  for count in range(len(said) + 1):
    for words in itertools.combinations(said, count):
      with contextlib.suppress(WeightsError):
        return exchange.read(source, **dict(collections.ChainMap(*words)))
  inputs, activation, _ = said
  return exchange.read(source, **inputs, **activation)  # raises, with the reason


def _of_file(source: str, config: ConfigDict) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """A file's variables, and the name of its network."""
  stored = _read_file(source, config)
  module, variables = stored.build()
  ours = experiment_lib.create_model(config, stored.recognised.num_classes, "float32")
  if module.preprocessing != ours.preprocessing:
    raise WeightsError(
      f"{source} has preprocessing={module.preprocessing!r}, but config.model has {ours.preprocessing!r}."
    )
  for name in ("mean", "std"):
    one, two = (np.asarray(getattr(side, name)) for side in (module, ours))
    agree = one.size == two.size or 1 in (one.size, two.size)
    if ours.preprocessing == "mean_std" and not (agree and np.abs(one - two).max() <= _CLOSE):
      raise WeightsError(
        f"{source} has the {name} {getattr(module, name)}, but config.model.{name} is {getattr(ours, name)}."
      )
  theirs, network = module.network, ours.network
  if type(theirs) is not type(network) or theirs != network.clone(axis_name=theirs.axis_name):
    found = stored.recognised
    raise WeightsError(
      f"{source} contains the network {found.name} with activation={found.activation!r}, but config.model has "
      f"name={config.model.name!r} and activation={config.model.activation!r}."
    )
  return leaf_names(variables), {"architecture": stored.recognised.name}


def read(config: ConfigDict, num_classes: int, image_shape: tuple[int, ...]) -> Initial:
  """Reads the weights that `config.train.init_from` names, and compares them with the run's network.

  Args:
    config: a checked configuration in which this field is not empty.
    num_classes, image_shape: of the data.

  Raises:
    ConfigError: the weights cannot be read, are of another network or normalisation, or have another number of classes
      while `config.train.init_head` is "loaded".
  """
  source, new_head = config.train.init_from, config.train.init_head == "new"
  where = f"config.train.init_from={source!r}"
  path = Path(os.path.expanduser(source))  # noqa: PTH111 (of a user that is not there it is left as it is)
  try:
    found, about = _of_run(path, config) if (path / "checkpoints").is_dir() else _of_file(source, config)
  except WeightsError as error:
    raise ConfigError(f"{where}: {error}") from None
  except OSError as error:  # a name that is too long, or a folder without read permission
    raise ConfigError(f"{where}: {error.strerror}.") from None
  expected = _shapes(config, num_classes, image_shape)
  other = _shapes(config, num_classes + 1, image_shape)
  head = {name for name, shape in expected.items() if other[name] != shape}
  if set(found) != set(expected):
    name = min(set(found) ^ set(expected))
    raise ConfigError(f"{where}: {name} is {'not in this run' if name in found else 'missing'}.")
  for name, shape in expected.items():
    if found[name].shape == shape or (new_head and name in head):
      continue
    if name in head:
      raise ConfigError(
        f"config.train.init_head='loaded': {source} has {found[name].shape[-1]} classes, but the data have "
        f"{num_classes}; use 'new' to initialise the last layer anew."
      )
    raise ConfigError(f"{where}: {name} has the shape {found[name].shape} there, but {shape} in this run.")
  kept = {name: np.asarray(array) for name, array in found.items() if not (new_head and name in head)}
  return Initial(kept, {"source": source, "content": _digest(found), "head": config.train.init_head, **about})


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
  digest = hashlib.sha256()
  for name, array in sorted(arrays.items()):
    digest.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
  return f"sha256:{digest.hexdigest()[:16]}"
