"""Determines what the tensors leave open: the network's name, activation and preprocessing. Nothing is guessed.

The user's arguments are used first, then RobustBench's entry (but mean and std among the tensors replace the entry's),
then the buffers among the tensors, then the file's metadata. What is still unknown is an error.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lrat_jax import models
from lrat_jax.convert import robustbench
from lrat_jax.convert.tensors import Recognised
from lrat_jax.core.errors import WeightsError

# The buffers of a normalisation, anywhere in the model.
_MEANS, _STDS = re.compile(r"(?:.+\.)?(mean|mu|new_mean)"), re.compile(r"(?:.+\.)?(std|sigma|new_std)")
# Preprocessing without numbers; the other kind, "mean_std", follows from mean and std.
_WITHOUT_NUMBERS = tuple(name for name in models.PREPROCESSING if name != "mean_std")


class Said(NamedTuple):
  """What the user specifies about a file; None if it is not given. `exchange.read` explains the fields."""

  architecture: str | None = None
  activation: str | None = None
  preprocessing: str | None = None
  mean: Sequence[float] | None = None
  std: Sequence[float] | None = None
  robustbench: str | None = None

  def check(self) -> None:
    """Raises WeightsError for an unknown value, or for fields that do not go together."""
    if (self.mean is None) != (self.std is None):
      raise WeightsError("mean and std go together; pass both or neither.")
    for name, choices in (("preprocessing", _WITHOUT_NUMBERS), ("activation", tuple(models.ACTIVATIONS))):
      value = getattr(self, name)
      if value is not None and value not in choices:
        raise WeightsError(f"{name}={value!r} is unknown; choose from {list(choices)}.")
    if self.preprocessing is not None and self.mean is not None:
      raise WeightsError(
        f"preprocessing={self.preprocessing!r} uses no mean and std; pass either preprocessing, or mean and std."
      )
    doubled = [name for name in self._fields[:4] if getattr(self, name) is not None]
    if self.robustbench is not None and doubled:
      raise WeightsError(f"robustbench={self.robustbench!r} also defines {', '.join(doubled)}; pass one or the other.")


class Preprocessing(NamedTuple):
  """The preprocessing of a `models.Classifier`, and the source of this information."""

  name: str
  mean: tuple[float, ...] = (0.0,)
  std: tuple[float, ...] = (1.0,)
  known_from: str = ""

  def __str__(self) -> str:
    if self.name == "mean_std":
      mean, std = (" ".join(f"{number:.4g}" for number in side) for side in (self.mean, self.std))
      how = f"is normalised, mean {mean} and std {std}"
    else:
      how = {
        "none": "is taken as it is, in [0, 1]",
        "per_image": "is standardised, each image by its own mean and std",
        "minus_one_to_one": "is scaled to [-1, 1]",
      }[self.name]
    return f"Its input {how}, {self.known_from}."


class Identity(NamedTuple):
  """A network, and the preprocessing of its input.

  Attributes:
    recognised: with the final name and activation.
    notes: the sources of the information, one line each.
    metadata: what RobustBench's entry records about the training.
  """

  recognised: Recognised
  preprocessing: Preprocessing
  notes: list[str]
  metadata: dict[str, Any]


def take_buffers(tensors: dict[str, np.ndarray], channels: int) -> Preprocessing | None:
  """Takes the input's mean and standard deviation out of the tensors; returns None unless there is one of each."""
  names = [[name for name in tensors if pattern.fullmatch(name)] for pattern in (_MEANS, _STDS)]
  if [len(found) for found in names] != [1, 1]:
    return None
  (mean,), (std,) = names
  if not tensors[mean].size == tensors[std].size in (1, channels):
    return None
  take = lambda name: tuple(tensors.pop(name).ravel().tolist())
  return Preprocessing("mean_std", take(mean), take(std), "from its own tensors")


def numbers(metadata: Mapping[str, Any], field: str) -> tuple[float, ...]:
  """Reads numbers from metadata: a list, or a list as JSON text."""
  value = metadata[field]
  try:
    numbers = json.loads(value) if isinstance(value, str) else value
    if isinstance(numbers, Sequence) and len(numbers):
      return tuple(float(number) for number in numbers)
  except (TypeError, ValueError, RecursionError):
    pass
  raise WeightsError(f"its metadata contain {field}={value!r}, which is not a list of numbers.")


def _from_metadata(metadata: Mapping[str, Any]) -> Preprocessing | None:
  """Reads the preprocessing from the metadata of our files; older files have only mean and std, without its name."""
  name = metadata.get("preprocessing", "mean_std")
  if name in _WITHOUT_NUMBERS:
    return Preprocessing(name, known_from="from its metadata")
  if name != "mean_std":
    raise WeightsError(
      f"its metadata contain preprocessing={name!r}, which is unknown; choose from {list(models.PREPROCESSING)}."
    )
  if not ("mean" in metadata and "std" in metadata):
    return None
  return Preprocessing(name, numbers(metadata, "mean"), numbers(metadata, "std"), "from its metadata")


def _of_entry(entry: robustbench.Entry, buffers: Preprocessing | None) -> Preprocessing:
  """An entry's preprocessing; mean and std among the tensors, which PyTorch would load, replace the definition's."""
  if buffers is None:
    return Preprocessing(entry.preprocessing, entry.mean or (0.0,), entry.std or (1.0,), "as in RobustBench")
  if entry.preprocessing != "mean_std":
    raise WeightsError(f"--robustbench={entry.name} has {entry.flags}, but these tensors contain a mean and a std.")
  return buffers


def _given(said: Said) -> Preprocessing | None:
  if said.preprocessing is not None:
    return Preprocessing(said.preprocessing, known_from="as given")
  if said.mean is not None and said.std is not None:
    return Preprocessing("mean_std", tuple(map(float, said.mean)), tuple(map(float, said.std)), "as given")
  return None


def _ask(recognised: Recognised, name: str | None, activation: str | None, known: Preprocessing | None) -> None:
  """Raises WeightsError if something is unknown; the message has the flags that set it, and RobustBench's."""
  asked = []
  if name is None:
    asked.append(f"the network among those that its tensors fit (--architecture={' or '.join(recognised.fitting)})")
  if activation is None:
    asked.append(f"the activation (--activation={' or '.join(models.ACTIVATIONS)})")
  if known is None:
    choices = " or ".join(f"--preprocessing={choice}" for choice in _WITHOUT_NUMBERS)
    asked.append(f"the preprocessing of images in [0, 1] ({choices} or --mean and --std)")
  if asked:
    raise WeightsError(
      f"the file does not define {' or '.join(asked)}, and every logit depends on it: pass it (in Python, as arguments "
      f"of the same names), or pass --robustbench=NAME.{robustbench.suggestions(recognised)}"
    )


def _name(recognised: Recognised, said: Said, metadata: Mapping[str, Any]) -> str | None:
  """The network's name, among those that the tensors fit; None if several fit and nothing determines which."""
  fitting = recognised.fitting
  if said.architecture is not None and said.architecture not in fitting:
    raise WeightsError(f"its tensors fit {' or '.join(fitting)}, not --architecture={said.architecture}.")
  told = said.architecture or metadata.get("architecture")
  return told if told in fitting else recognised.name if len(fitting) == 1 else None


def settle(recognised: Recognised, buffers: Preprocessing | None, metadata: Mapping[str, Any], said: Said) -> Identity:
  """Determines the network, its activation and its preprocessing.

  Raises:
    WeightsError: one of them is unknown, or what is given does not fit the tensors.
  """
  notes: list[str] = []
  about: dict[str, Any] = {}
  if said.robustbench is not None:
    chosen = robustbench.choose(said.robustbench, recognised)
    entry, threats = chosen[0], robustbench.threat_models(chosen)
    name, activation, known = entry.network, entry.activation or recognised.activation, _of_entry(entry, buffers)
    places, against = " or ".join(entry.place for entry in chosen), ", ".join(threats) or entry.threat_model
    notes.append(f"RobustBench's {places}, evaluated on images of {entry.image_size}x{entry.image_size}, {against}.")
    about = {"robustbench": places} | ({"trained_against": threats} if len(chosen) == len(threats) == 1 else {})
  else:
    name = _name(recognised, said, metadata)
    activation = said.activation or metadata.get("activation") or recognised.activation
    known = _given(said) or buffers or _from_metadata(metadata)
  _ask(recognised, name, activation, known)
  return Identity(recognised.fitting[name]._replace(activation=activation), known, [str(known), *notes], about)
