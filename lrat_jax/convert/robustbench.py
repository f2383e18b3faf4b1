"""RobustBench's entries by name (Croce et al., arXiv:2010.09670): what their checkpoints do not contain.

robustbench.json has them by data set and threat model, read from the zoo's definitions: the network, by its name in
`models.create`; its activation, if the tensors do not determine it; and its preprocessing.
"""

import collections
import difflib
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from lrat_jax.convert.tensors import Recognised, first
from lrat_jax.core.errors import WeightsError

_TABLE = Path(__file__).with_name("robustbench.json")
_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
# The number of alternatives that a message suggests.
_SHOWN = 4


class Entry(NamedTuple):
  """A model of RobustBench.

  Attributes:
    dataset: "cifar10", "cifar100" or "imagenet".
    threat_model: "Linf", "L2" or "corruptions".
    network: its name, as `models.create` takes it.
    activation: as `models.create` takes it; None for the network's own.
    preprocessing, mean, std: of a `models.Classifier`; mean and std are None unless preprocessing is "mean_std".
    epsilon: the radius of its evaluation, such as "8/255"; None for corruptions.
    image_size: the side of the images in its evaluation.
  """

  name: str
  dataset: str
  threat_model: str
  network: str
  activation: str | None = None
  preprocessing: str = "mean_std"
  mean: tuple[float, ...] | None = None
  std: tuple[float, ...] | None = None
  epsilon: str | None = None
  image_size: int = 32

  @property
  def place(self) -> str:
    """The entry's unique name."""
    return f"{self.dataset}/{self.threat_model}/{self.name}"

  @property
  def flags(self) -> str:
    """The activation and preprocessing that `--robustbench` would set, as separate flags."""
    activation = "" if self.activation is None else f"--activation={self.activation} "
    if self.preprocessing != "mean_std":
      return f"{activation}--preprocessing={self.preprocessing}"
    mean, std = (",".join(f"{number:g}" for number in side) for side in (self.mean, self.std))
    return f"{activation}--mean={mean} --std={std}"


@functools.cache
def entries() -> tuple[Entry, ...]:
  """All entries."""

  def tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}

  return tuple(
    Entry(name, dataset, threat_model, **tuples(group["shared"] | fields))
    for dataset, groups in json.loads(_TABLE.read_text()).items()
    for threat_model, group in groups.items()
    for name, fields in group["entries"].items()
  )


def named(text: str) -> list[Entry]:
  """The entries that match "NAME", "DATASET/NAME" or "DATASET/THREAT_MODEL/NAME".

  Raises:
    WeightsError: there are none; the message suggests similar names.
  """
  *where, name = text.split("/")
  parts = {part.lower() for part in where}
  inside = [entry for entry in entries() if parts <= {entry.dataset, entry.threat_model.lower()}]
  if found := [entry for entry in inside if entry.name == name]:
    return found
  names = {entry.name.lower(): entry.name for entry in inside or entries()}
  near = [names[close] for close in difflib.get_close_matches(name.lower(), names, n=4, cutoff=0.5)]
  choices = (
    f"similar names: {', '.join(near)}" if near else "examples are Wang2023Better_WRN-28-10 and cifar10/L2/Ding2020MMA"
  )
  raise WeightsError(f"--robustbench={text!r} is not an entry whose network is known here; {choices}.")


def choose(text: str, recognised: Recognised) -> list[Entry]:
  """The entries of a name that fit the tensors; they differ only in what they are evaluated on.

  Raises:
    WeightsError: no such entry, none that fits, or several with different networks, activations or preprocessing.
  """
  found = named(text)
  classes = sorted({_CLASSES[entry.dataset] for entry in found})
  if not (found := [entry for entry in found if _CLASSES[entry.dataset] == recognised.num_classes]):
    said = " or ".join(map(str, classes))
    raise WeightsError(f"--robustbench={text} has {said} classes, but these tensors have {recognised.num_classes}.")
  networks = sorted({entry.network for entry in found})
  if not (found := [entry for entry in found if entry.network in recognised.fitting]):
    theirs, ours = " or ".join(networks), " or ".join(recognised.fitting)
    raise WeightsError(f"--robustbench={text} is {theirs}, but these tensors fit {ours}.")
  if len({(entry.network, entry.flags) for entry in found}) > 1:
    places = ", ".join(f"{entry.place} ({entry.flags})" for entry in found)
    raise WeightsError(f"--robustbench={text} is the name of several entries that differ; choose from {places}.")
  return found


def suggestions(recognised: Recognised) -> str:
  """One line with the flags of entries of this network, the most frequent first; "" if there are no entries."""
  ways: dict[str, list[str]] = collections.defaultdict(list)
  for entry in entries():
    if entry.network in recognised.fitting and _CLASSES[entry.dataset] == recognised.num_classes:
      ways[entry.flags].append(entry.name)
  most = sorted(ways, key=lambda flags: -len(set(ways[flags])))[:_SHOWN]
  texts = [f"{flags} ({first(set(ways[flags]), 2)})" for flags in most]
  return f" RobustBench's entries of this network have {'; '.join(texts)}." if texts else ""


def threat_models(chosen: Iterable[Entry]) -> list[str]:
  """The threat models of their evaluation, such as "linf 8/255"."""
  return sorted({f"{entry.threat_model.lower()} {entry.epsilon}" for entry in chosen if entry.epsilon is not None})
