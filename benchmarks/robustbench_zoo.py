"""The share of RobustBench's entries that load here, and whether these give RobustBench's own logits.

    git clone https://github.com/RobustBench/robustbench; pip install torch torchvision timm pyyaml
    python -m benchmarks.robustbench_zoo --robustbench=robustbench

No checkpoint is downloaded. The zoo's definition of each entry is built on PyTorch's meta device, and the names and
shapes of its state_dict are given to the conversion twice: with the entry's name but without the definition's buffers
of mean and std, as in most checkpoint files; and with all buffers but no other information. "loads" means the first.
Definitions of up to --most_parameters million parameters are also built with random weights; their logits on random
images in [0, 1], including RobustBench's preprocessing, are compared with those here. "wrong" counts entries that load,
in either way, but give different logits.
"""

import argparse
import collections
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import torch
from torch import nn

from benchmarks import common
from lrat_jax.convert import exchange, identity
from lrat_jax.core.errors import WeightsError

# Modules that RobustBench imports, but that no compared definition needs.
_STAND_INS = ("autoattack", "gdown", "geotorch", "torchdiffeq")
_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
_TOLERANCE = 1e-4  # absolute, or relative to the largest logit if that is above 1


class ZooEntry(NamedTuple):
  """An entry of the zoo; `create` builds its PyTorch definition on the default device."""

  dataset: str
  threat_model: str
  name: str
  create: Callable[[], nn.Module]

  @property
  def place(self) -> str:
    return f"{self.dataset}/{self.threat_model}/{self.name}"


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Modules in which any name is an empty class."""

  def find_spec(self, name, path=None, target=None):
    is_ours = name.partition(".")[0] in _STAND_INS
    return importlib.machinery.ModuleSpec(name, self, is_package=True) if is_ours else None

  def create_module(self, spec):
    return None

  def exec_module(self, module):
    def empty_class(name: str) -> type:
      if name.startswith("__"):
        raise AttributeError(name)
      return type(name, (), {})

    module.__getattr__ = empty_class


def zoo(folder: Path) -> Iterator[ZooEntry]:
  """RobustBench's entries as its `load_model` finds them: timm's registry first, then its own table."""
  sys.path.insert(0, str(folder))
  sys.meta_path.append(_StandIns())
  timm = importlib.import_module("timm")
  model_dicts = importlib.import_module("robustbench.model_zoo.models").model_dicts
  for dataset, threats in model_dicts.items():
    for threat_model, entries in threats.items():
      for name, entry in entries.items():
        registered = f"{name.lower().replace('-', '_')}_{dataset.value}_{threat_model.value}".lower()
        create = entry["model"]
        if timm.is_model(registered):
          create = lambda registered=registered, dataset=dataset.value: timm.create_model(
            registered, num_classes=_CLASSES[dataset]
          )
        yield ZooEntry(dataset.value, threat_model.value, name, create)


@contextlib.contextmanager
def _without_downloads() -> Iterator[None]:
  """Definitions that load pretrained weights keep their own instead; the result of `linspace` is not on "meta"."""
  linspace = lambda *of, make=torch.linspace, **options: make(*of, **options | {"device": "cpu"})
  load = nn.Module.load_state_dict
  keep = lambda self, state, *of, **options: load(self, state, *of, **options) if state else None
  with contextlib.ExitStack() as patches:
    patches.enter_context(mock.patch.object(torch, "linspace", linspace))
    patches.enter_context(mock.patch.object(nn.Module, "load_state_dict", keep))
    if "torchvision" in sys.modules:
      weights = importlib.import_module("torchvision.models._api").WeightsEnum
      patches.enter_context(mock.patch.object(weights, "get_state_dict", lambda *_, **__: {}))
    yield


def build(entry: ZooEntry, device: str) -> nn.Module:
  """Builds the entry's definition in evaluation mode, on "cpu" or "meta"."""
  with _without_downloads(), torch.device(device):
    return entry.create().eval()


def shapes_only(network: nn.Module) -> dict[str, np.ndarray]:
  """A state_dict of ones, which are broadcast and take no memory."""
  kind = lambda tensor: np.float32 if tensor.is_floating_point() else np.int64
  return {name: np.broadcast_to(kind(tensor)(1), tensor.shape) for name, tensor in network.state_dict().items()}


def _is_gain(name: str, tensor: torch.Tensor) -> bool:
  return tensor.dim() <= 1 and name.endswith(("weight", "gamma", "gamma_1", "gamma_2", "gamma1", "gamma2", "gamma3"))


@torch.no_grad()
def randomise(network: nn.Module, images: torch.Tensor, seed: int = 0) -> nn.Module:
  """Sets random weights, gains, layer scales and offsets as after training, and batch norm statistics of the images.

  Without these statistics, activations of deep networks would overflow. MeanSparse's statistics are random, and its
  thresholds 0.2.
  """
  generator = torch.Generator().manual_seed(seed)
  uniform = lambda like, low, high: torch.rand(like.shape, generator=generator) * (high - low) + low
  for name, parameter in network.named_parameters():
    if parameter.dim() > 1 and parameter.shape[1:].numel() > 1:
      parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
    else:
      parameter.copy_(uniform(parameter, *((0.5, 1.5) if _is_gain(name, parameter) else (-0.3, 0.3))))
  norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
  for norm in norms:
    norm.momentum = None  # the mean over the batches seen
    norm.train()
  network(images)
  for norm in norms:
    norm.eval()
    norm.running_mean += 0.1 * uniform(norm.running_mean, -1, 1) * norm.running_var.sqrt()
    norm.running_var *= uniform(norm.running_var, 0.8, 1.25)
  for module in network.modules():
    if "MeanSparse" in type(module).__name__ and hasattr(module, "threshold"):
      module.threshold.fill_(0.2)
      module.running_mean.copy_(uniform(module.running_mean, -0.3, 0.3))
      module.running_var.copy_(uniform(module.running_var, 0.5, 1.5))
  return network


def _images(entry: ZooEntry, count: int) -> np.ndarray:
  side = 224 if entry.dataset == "imagenet" else 32
  return np.random.default_rng(0).uniform(size=(count, side, side, 3)).astype(np.float32)


def without_buffers(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The tensors as in the files of most entries: without mean and std, which only the definition has."""
  kept = dict(tensors)
  identity.take_buffers(kept, 3)
  return kept


def difference(entry: ZooEntry, by_name: bool, num_images: int) -> float:
  """The largest difference of logits with the same random weights; relative to the largest logit if that is above 1."""
  images = _images(entry, num_images)
  pictures = torch.tensor(images).permute(0, 3, 1, 2)
  network = randomise(build(entry, "cpu"), torch.cat([pictures, 1 - pictures]))
  with torch.no_grad():
    theirs = network(pictures).numpy()
  tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
  tensors, said = (without_buffers(tensors), {"robustbench": entry.place}) if by_name else (tensors, {})
  ours = np.asarray(exchange.from_tensors(entry.place, tensors, **said).build().logits_fn(images))
  return float(np.abs(theirs - ours).max() / max(1.0, np.abs(theirs).max()))


def _reason(error: Exception) -> str:
  return " ".join(str(error).split()).partition(" RobustBench's entries")[0][:300]


class Examined:
  """The results of the entries so far; definitions that differ only in their name are compared once."""

  def __init__(self, most_parameters: float, num_images: int):
    self._most, self._num_images = most_parameters, num_images
    self._fits: set[int] = set()
    self._differences: dict[int, float] = {}

  def row(self, entry: ZooEntry) -> dict[str, Any]:
    """The results of an entry, as a row of the report."""
    row = {"dataset": entry.dataset, "threat_model": entry.threat_model, "name": entry.name, "network": ""}
    try:
      network = build(entry, "meta")
    except Exception as error:  # an ensemble, or a layer that needs a GPU
      return row | {"loads": False, "reason": f"its definition cannot be built on meta: {_reason(error)}"}
    tensors = shapes_only(network)
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    by_name, reason = self._tried(entry, without_buffers(tensors), robustbench=entry.place)
    unsaid, refusal = self._tried(entry, tensors)
    row |= {"loads": by_name is not None, "reason": reason, "nothing said": refusal if unsaid is None else "loads"}
    row |= {"network": (by_name or unsaid).recognised.name if by_name or unsaid else "", "millions": round(millions, 1)}
    if millions > self._most or not (by_name or unsaid):
      return row
    return row | {"difference": max(self._difference(entry, network, stored) for stored in (by_name, unsaid) if stored)}

  def _tried(self, entry: ZooEntry, tensors: Mapping[str, np.ndarray], **said: str) -> tuple[Any, str]:
    """(what it would load as or None, the reason if it does not load)."""
    try:
      stored = exchange.from_tensors(entry.place, tensors, **said)
      fit = hash(repr((stored.recognised, [(name, tensor.shape) for name, tensor in tensors.items()])))
      if fit not in self._fits:
        stored.fitted()
        self._fits.add(fit)
    except WeightsError as error:
      return None, _reason(error).removeprefix(f"{entry.place}: ")
    return stored, ""

  def _difference(self, entry: ZooEntry, network: nn.Module, stored: exchange.Stored) -> float:
    inputs, kinds = stored.preprocessing, [type(module).__qualname__ for module in network.modules()]
    by_name = inputs.known_from != "from its own tensors"
    numbers = np.round((*inputs.mean, *inputs.std), 6).tolist() if by_name else []
    same = hash(repr((network, kinds, inputs.name, numbers, stored.recognised)))
    if same not in self._differences:
      self._differences[same] = difference(entry, by_name, self._num_images)
    return self._differences[same]


def _table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """By architecture, how many load for each data set and threat model; unrecognised networks share one line."""
  places = list(dict.fromkeys((row["dataset"], row["threat_model"]) for row in rows))
  kinds = collections.defaultdict(list)
  for row in rows:
    kinds[re.sub(r"(_\d.*|_(tiny|small|medium|base|large).*)$", "", row["network"]) or "none here"].append(row)
  kinds = dict(sorted(kinds.items(), key=lambda item: (item[0] == "none here", -len(item[1])))) | {"all": rows}
  lines = []
  for kind, of in kinds.items():
    line: dict[str, Any] = {"network": kind}
    for place in [*places, None]:
      inside = [row for row in of if place is None or (row["dataset"], row["threat_model"]) == place]
      text = f"{sum(row['loads'] for row in inside)}/{len(inside)}" if inside else ""
      line["all" if place is None else " ".join(place)] = text
    compared = [row["difference"] for row in of if "difference" in row]
    line |= {"compared": len(compared), "wrong": sum(difference > _TOLERANCE for difference in compared)}
    lines.append(line | {"largest difference": f"{max(compared):.1e}" if compared else ""})
  return lines


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--robustbench", type=Path, required=True, help="a clone of RobustBench")
  parser.add_argument("--most_parameters", type=float, default=40, help="in millions; what has more is not compared")
  parser.add_argument("--num_images", type=int, default=2)
  parser.add_argument("--only", default="", help="a regular expression that DATASET/THREAT_MODEL/NAME must match")
  parser.add_argument("--output", type=Path, help="a JSON file for everything that was found")
  options = parser.parse_args()
  examined, rows = Examined(options.most_parameters, options.num_images), []
  for entry in zoo(options.robustbench):
    if not re.search(options.only, entry.place):
      continue
    try:
      rows.append(examined.row(entry))
    except Exception:  # the conversion should raise only WeightsError; another error must not stop the other entries
      rows.append({"dataset": entry.dataset, "threat_model": entry.threat_model, "name": entry.name, "network": "",
                   "loads": False, "reason": traceback.format_exc(limit=-3)})  # fmt: skip
    row = rows[-1]
    print(f"{entry.place}: {'loads' if row['loads'] else row['reason']} {row.get('difference', '')}", flush=True)
  table = _table(rows)
  common.report("RobustBench's entries that load, of those there are", table, None)
  if options.output:
    versions = {"torch": torch.__version__, "jax": jax.__version__}
    options.output.write_text(json.dumps({"versions": versions, "table": table, "entries": rows}, indent=2) + "\n")


if __name__ == "__main__":
  main()
