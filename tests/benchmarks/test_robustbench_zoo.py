"""The share of RobustBench's entries that load, on a zoo of a few definitions; one gives different logits."""

import sys
import types
from enum import Enum

import pytest
import torch

from benchmarks import robustbench_zoo
from tests import torch_definitions as definitions


class _Where(Enum):
  CIFAR10, LINF = "cifar10", "Linf"


class _PerImage(definitions.WideResNet):
  """Standardises each image, as Ding2020MMA does."""

  def forward(self, x):
    least = torch.tensor(x[0].numel() ** -0.5)
    std = torch.maximum(x.std(dim=(1, 2, 3), keepdim=True), least)
    return super().forward((x - x.mean(dim=(1, 2, 3), keepdim=True)) / std)


class _Normalised(definitions.WideResNet):
  """A network with buffers for normalisation, whose forward pass does not use them as their names suggest."""

  def __init__(self, *sizes):
    super().__init__(*sizes)
    self.register_buffer("mu", torch.full((1, 3, 1, 1), 0.5))
    self.register_buffer("sigma", torch.full((1, 3, 1, 1), 0.25))

  def forward(self, x):
    return super().forward(torch.tanh((x - self.mu) / self.sigma))


def _ensemble():
  raise RuntimeError("no definition on meta")


ENTRIES = {
  "Ding2020MMA": lambda: _PerImage(28, 4),
  "Wrong": lambda: _Normalised(10, 1),
  "Plain": lambda: definitions.WideResNet(10, 1),
  "Bai2024MixedNUTS": _ensemble,
}


@pytest.fixture
def entries(monkeypatch, tmp_path):
  """The entries that `zoo` finds in a folder with RobustBench, which imports a module that is not installed."""
  package = tmp_path / "robustbench" / "model_zoo"
  package.mkdir(parents=True)
  for folder in (package.parent, package):  # without __init__.py, an installed RobustBench goes first
    (folder / "__init__.py").touch()
  (package / "models.py").write_text(
    "from autoattack.state import EvaluationState\nfrom zoo_entries import model_dicts\n"
  )
  fakes = {"zoo_entries": types.ModuleType("zoo_entries"), "timm": types.ModuleType("timm")}
  fakes["timm"].is_model = lambda name: False
  fakes["zoo_entries"].model_dicts = {
    _Where.CIFAR10: {_Where.LINF: {name: {"model": create} for name, create in ENTRIES.items()}}
  }
  monkeypatch.setattr(sys, "path", list(sys.path))
  monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
  for name, module in fakes.items():
    monkeypatch.setitem(sys.modules, name, module)
  yield list(robustbench_zoo.zoo(tmp_path))
  for name in [name for name in sys.modules if name.partition(".")[0] in ("robustbench", "autoattack")]:
    del sys.modules[name]


@pytest.mark.slow
def test_what_loads_is_told_from_what_does_not_and_from_wrong_numbers(entries):
  examined = robustbench_zoo.Examined(40, 2)
  rows = {entry.name: examined.row(entry) for entry in entries}
  assert [rows[name]["loads"] for name in ENTRIES] == [True, False, False, False]
  assert (
    rows["Ding2020MMA"]["difference"] < 1e-4 and "the preprocessing of images" in rows["Ding2020MMA"]["nothing said"]
  )
  assert rows["Wrong"]["nothing said"] == "loads" and rows["Wrong"]["difference"] > 1e-2
  assert "difference" not in rows["Plain"] and "is not an entry whose network is known" in rows["Plain"]["reason"]
  assert "cannot be built on meta: no definition on meta" in rows["Bai2024MixedNUTS"]["reason"]
  *_, last = robustbench_zoo._table(list(rows.values()))
  assert last["network"] == "all" and last["all"] == last["cifar10 Linf"] == "1/4"
  assert (last["compared"], last["wrong"]) == (2, 1)


def test_what_is_too_large_is_fitted_and_not_compared(entries):
  row = robustbench_zoo.Examined(0, 2).row(entries[0])
  assert row["loads"] and row["network"] == "wide_resnet_28_4" and "difference" not in row
