"""RobustBench's entries by name: all networks of the table are known here; similar names; entries that do not fit."""

import re

import numpy as np
import pytest

from lrat_jax import models
from lrat_jax.convert import __main__ as convert
from lrat_jax.convert import exchange, robustbench
from lrat_jax.convert.tensors import Recognised
from lrat_jax.core.errors import WeightsError
from tests import torch_definitions as definitions

_WIDE = Recognised("", "wide_resnet_28_10", 10, 3, (8, 8), activation="relu")


def test_every_entry_is_of_a_network_and_a_way_to_take_images_that_are_known_here():
  entries = robustbench.entries()
  assert len({entry.place for entry in entries}) == len(entries) > 160
  for entry in entries:
    side = {"imagenet": 224}.get(entry.dataset, 32)
    assert entry.image_size == side or entry.place == "imagenet/Linf/Wong2020Fast"
    assert entry.preprocessing in models.PREPROCESSING and entry.activation in (None, *models.ACTIVATIONS)
    assert (entry.mean is None) == (entry.preprocessing != "mean_std")
    assert (entry.epsilon is None) == (entry.threat_model == "corruptions")
  for name, activation in {(entry.network, entry.activation) for entry in entries}:
    assert models.create(name, 10, activation=activation or "auto").network.activation in models.ACTIVATIONS


def test_what_a_few_entries_are():
  """The values are those of RobustBench's definitions at its commit 78fcc9e."""
  (wang,) = robustbench.named("cifar100/Wang2023Better_WRN-28-10")
  assert (wang.network, wang.activation, wang.epsilon) == ("dm_wide_resnet_28_10", "silu", "8/255")
  assert wang.mean == (0.5071, 0.4865, 0.4409) and wang.std == (0.2673, 0.2564, 0.2762)
  ways = {
    place: robustbench.named(place)[0].preprocessing for place in ("cifar10/L2/Ding2020MMA", "Hendrycks2019Using")
  }
  assert ways == {"cifar10/L2/Ding2020MMA": "per_image", "Hendrycks2019Using": "minus_one_to_one"}
  (trades,) = robustbench.named("Zhang2019Theoretically")
  assert (trades.network, trades.preprocessing, trades.epsilon) == ("wide_resnet_34_10", "none", "0.031")


@pytest.mark.parametrize(
  ("name", "near"),
  [
    ("Wang2023Beter_WRN-28-10", "similar names: Wang2023Better_WRN-28-10"),
    ("imagenet/linf/salman2020do_r50", "similar names: Salman2020Do_R50"),
    ("cifar10/Salman2020Do_R50", "is not an entry whose network is known here"),
    ("", "examples are Wang2023Better"),
  ],
)
def test_an_unknown_name_is_one_line_with_near_names(name, near):
  with pytest.raises(WeightsError, match=re.escape(near)) as caught:
    robustbench.named(name)
  assert "\n" not in str(caught.value)


def test_of_entries_with_one_name_the_tensors_choose_where_they_can():
  standard = {entry.place for entry in robustbench.choose("Standard", _WIDE)}
  assert standard == {"cifar10/Linf/Standard", "cifar10/L2/Standard", "cifar10/corruptions/Standard"}
  (rice,) = robustbench.choose("Rice2020Overfitting", _WIDE._replace(name="preact_resnet18"))
  assert rice.place == "cifar10/L2/Rice2020Overfitting"
  with pytest.raises(WeightsError, match="Carmon2019Unlabeled has 10 classes, but these tensors have 100"):
    robustbench.choose("Carmon2019Unlabeled", _WIDE._replace(num_classes=100))
  with pytest.raises(WeightsError, match="is wide_resnet_34_10, but these tensors fit wide_resnet_28_10"):
    robustbench.choose("Zhang2019Theoretically", _WIDE)
  two = tuple(robustbench.Entry("A", "cifar10", threat, "cnn", preprocessing=way) for threat, way in (
    ("Linf", "none"), ("L2", "per_image")))  # fmt: skip
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(robustbench, "entries", lambda: two)
    with pytest.raises(WeightsError, match=r"choose from cifar10/Linf/A \(--preprocessing=none\), cifar10/L2/A"):
      robustbench.choose("A", _WIDE._replace(name="cnn"))
    assert robustbench.choose("l2/A", _WIDE._replace(name="cnn")) == [two[1]]


def _tensors():
  """(a WideResNet-40-2, the architecture that AugMix trained; its tensors)."""
  network = definitions.WideResNet(40, 2)
  return network, {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def test_a_name_says_all_that_the_tensors_do_not():
  _, tensors = _tensors()
  with pytest.raises(WeightsError, match="does not define the preprocessing of images"):
    exchange.from_tensors("a", tensors)
  stored = exchange.from_tensors("a", tensors, robustbench="Hendrycks2020AugMix_WRN")
  assert stored.preprocessing[:3] == ("mean_std", (0.5,) * 3, (0.5,) * 3)
  assert stored.metadata == {"robustbench": "cifar10/corruptions/Hendrycks2020AugMix_WRN"}
  assert "RobustBench's cifar10/corruptions/Hendrycks2020AugMix_WRN, evaluated on images of 32x32" in stored.summary()
  module, _ = stored.fitted()
  assert module.network == models.create("wide_resnet_40_2", 10).network
  # As with `load_state_dict` in RobustBench, a mean and std among the tensors replace those of the definition.
  buffers = {"mu": np.full((1, 3, 1, 1), 0.25, np.float32), "sigma": np.full((1, 3, 1, 1), 2, np.float32)}
  stored = exchange.from_tensors("a", tensors | buffers, robustbench="Hendrycks2020AugMix_WRN")
  assert stored.preprocessing[1:3] == ((0.25,) * 3, (2.0,) * 3)


def test_what_does_not_fit_an_entry_is_one_line():
  _, tensors = _tensors()
  with pytest.raises(WeightsError, match="is wide_resnet_28_10, but these tensors fit wide_resnet_40_2"):
    exchange.from_tensors("a", tensors, robustbench="Carmon2019Unlabeled")
  del tensors["bn1.weight"]
  with pytest.raises(WeightsError, match="missing: bn1.weight"):
    exchange.from_tensors("a", tensors, robustbench="Hendrycks2020AugMix_WRN").fitted()
  small = {name: tensor.numpy() for name, tensor in definitions.WideResNet(28, 4).state_dict().items()}
  assert exchange.from_tensors("a", small, robustbench="Ding2020MMA").preprocessing.name == "per_image"
  small |= {"mean": np.zeros(3, np.float32), "std": np.ones(3, np.float32)}
  with pytest.raises(WeightsError, match="has --preprocessing=per_image, but these tensors contain a mean and a std"):
    exchange.from_tensors("a", small, robustbench="Ding2020MMA")


def test_the_command_takes_a_name(capsys, tmp_path):
  assert convert.main([str(tmp_path / "a.pt"), str(tmp_path / "b"), "--robustbench=X", "--preprocessing=none"]) == 2
  assert "robustbench='X' also defines preprocessing" in capsys.readouterr().err
