"""The networks for small images, in the tensor names that are in common use.

ResNets and WideResNets have the names of TRADES, which RobustBench, Rice et al. and the robustness library also use;
PreActResNets those of Rice et al. and Wong et al.; our CNN those of a plain `nn.Sequential` of convolutions, ReLUs,
Flatten and linear layers.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flax import linen as nn

from lrat_jax.convert import tensors
from lrat_jax.convert.tensors import Entry, Recognised, Shape, UnknownNetworkError
from lrat_jax.models.cnn import CNN
from lrat_jax.models.preact_resnet import PreActResNet, WongPreActResNet
from lrat_jax.models.resnet import ResNet
from lrat_jax.models.wide_resnet import RobustWideResNet, WideResNet, name_of

# Our CNN's layers in its nn.Sequential. A ReLU follows each but the last; Flatten precedes the first linear layer.
_CNN_CONVS, _CNN_HIDDEN, _CNN_HEAD = ("0", "2", "4", "6"), "9", "11"
# One tensor of each kind of network, after any prefix that a wrapper added to its name.
_ANCHOR = re.compile(r"((?:.+\.)?)(layer1\.0\.conv1|block1\.layer\.0\.conv1|blocks\.0\.layer\.0\.conv1|11)\.weight")


def _pre_activation(name: str, shortcut: str, path: str, parameters: Mapping[str, Any]) -> Iterator[Entry]:
  yield from tensors.norm(f"{name}.bn1", path, "BatchNorm_0")
  yield from tensors.conv_norm(f"{name}.conv1", f"{name}.bn2", path, "ConvNorm_0")
  yield from tensors.conv(f"{name}.conv2", path, "Conv_0")
  if "Conv_1" in parameters[path]:
    yield from tensors.conv(f"{name}.{shortcut}", path, "Conv_1")


def resnet(
  network: ResNet, parameters: Mapping[str, Any], shortcut: str = "shortcut", head: str = "linear"
) -> Iterator[Entry]:
  """A ResNet's tensors; torchvision has its own names for shortcuts and for the last layer."""
  yield from tensors.conv_norm("conv1", "bn1", "ConvNorm_0")
  count = 3 if network.bottleneck else 2
  for stage, block, index in tensors.blocks(network.blocks):
    name, path = f"layer{stage}.{block}", f"{'Bottleneck' if network.bottleneck else 'BasicBlock'}_{index}"
    for number in range(count):
      yield from tensors.conv_norm(f"{name}.conv{number + 1}", f"{name}.bn{number + 1}", path, f"ConvNorm_{number}")
    if f"ConvNorm_{count}" in parameters[path]:
      yield from tensors.conv_norm(f"{name}.{shortcut}.0", f"{name}.{shortcut}.1", path, f"ConvNorm_{count}")
  yield from tensors.weights(head, ("Dense_0",), tensors.DENSE, bias=True)


def _preact_resnet(network: PreActResNet, parameters: Mapping[str, Any]) -> Iterator[Entry]:
  yield from tensors.conv("conv1", "Conv_0")
  for stage, block, index in tensors.blocks(network.blocks):
    yield from _pre_activation(f"layer{stage}.{block}", "shortcut.0", f"PreActivationBlock_{index}", parameters)
  if network.final_norm:
    yield from tensors.norm("bn", "BatchNorm_0")
  yield from tensors.weights("linear", ("Dense_0",), tensors.DENSE, bias=True)


def _wide_resnet(network: WideResNet, parameters: Mapping[str, Any]) -> Iterator[Entry]:
  yield from tensors.conv("conv1", "Conv_0")
  for group, block, index in tensors.blocks([(network.depth - 4) // 6] * 3):
    name = f"block{group}.layer.{block}"
    yield from _pre_activation(name, "convShortcut", f"PreActivationBlock_{index}", parameters)
  yield from tensors.norm("bn1", "BatchNorm_0")
  yield from tensors.weights("fc", ("Dense_0",), tensors.DENSE, bias=True)


def _robust_wide_resnet(network: RobustWideResNet, parameters: Mapping[str, Any]) -> Iterator[Entry]:
  yield from tensors.conv("stem_conv", "Conv_0")
  for group, block, index in tensors.blocks(count for count, _ in network.sizes):
    name = f"blocks.{group - 1}.layer.{block}"
    yield from _pre_activation(name, "convShortcut", f"PreActivationBlock_{index}", parameters)
  yield from tensors.norm("bn1", "BatchNorm_0")
  yield from tensors.weights("fc", ("Dense_0",), tensors.DENSE, bias=True)


def _cnn(network: CNN, parameters: Mapping[str, Any]) -> Iterator[Entry]:
  for index, name in enumerate(_CNN_CONVS):
    yield from tensors.weights(name, (f"Conv_{index}",), tensors.KERNEL, bias=True)
  yield from tensors.weights(_CNN_HIDDEN, ("Dense_0",), tensors.flattened(2 * network.width), bias=True)
  yield from tensors.weights(_CNN_HEAD, ("Dense_1",), tensors.DENSE, bias=True)


NETWORKS: dict[type[nn.Module], Callable[..., Iterator[Entry]]] = {
  CNN: _cnn,
  ResNet: resnet,
  PreActResNet: _preact_resnet,
  WongPreActResNet: _preact_resnet,
  WideResNet: _wide_resnet,
  RobustWideResNet: _robust_wide_resnet,
}


def resnet_depth(shapes: Mapping[str, Shape], prefix: str) -> tuple[str, bool]:
  """(depth, whether its blocks are bottlenecks) of a ResNet with or without pre-activation."""
  counts = [tensors.count(shapes, f"{prefix}layer{stage}.{{}}.conv1.weight") for stage in range(1, 5)]
  bottleneck = f"{prefix}layer1.0.conv3.weight" in shapes
  return tensors.depth(counts, bottleneck), bottleneck


def _robust_wide_resnet_name(shapes: Mapping[str, Shape], prefix: str) -> str:
  names = [f"{prefix}blocks.{group}.layer.{{}}.conv1.weight" for group in range(3)]
  channels = (tensors.size(shapes, name.replace("{}", "0"), 0, 4) for name in names)
  groups = tuple(zip((tensors.count(shapes, name) for name in names), channels, strict=True))
  return name_of("robust_", tensors.size(shapes, f"{prefix}stem_conv.weight", 0, 4), groups)


def _renamed(shapes: Mapping[str, Shape], prefix: str) -> dict[str, str]:
  """Our names of the tensors that Huang et al.'s second code (arXiv:2212.11005) renames; empty for their first code."""
  own = [name.removeprefix(prefix) for name in shapes]
  norms = {name: name.replace("norm1.", "bn1.", 1) for name in own if name.startswith("norm1.")}
  return norms | {name: name.replace("shortcut.0", "convShortcut") for name in own if ".shortcut.0." in name}


def _stages(shapes: Mapping[str, Shape], prefix: str) -> tuple[str, str]:
  """(name for `models.create`, name of its last layer) of a network in stages."""
  stem = tensors.size(shapes, f"{prefix}conv1.weight", 0, 4)
  if f"{prefix}block1.layer.0.conv1.weight" in shapes:
    layers = 4 + 6 * tensors.count(shapes, f"{prefix}block1.layer.{{}}.conv1.weight")
    width = tensors.size(shapes, f"{prefix}block1.layer.0.conv1.weight", 0, 4) // 16
    return f"wide_resnet_{layers}_{width}", f"{prefix}fc"
  depth, bottleneck = resnet_depth(shapes, prefix)
  family = "resnet" if f"{prefix}bn1.weight" in shapes else "preact_resnet"
  if family == "preact_resnet":
    if bottleneck:
      raise UnknownNetworkError("pre-activation ResNets with bottlenecks are not supported.")
    if f"{prefix}bn.weight" not in shapes:  # definitions with these names then also have shortcuts of a block's input
      family = "wong_preact_resnet"
  family += depth
  return family if stem == 64 else f"{family}_{stem}", f"{prefix}linear"


def recognise(shapes: Mapping[str, Shape]) -> Recognised | None:
  """Recognises one of these networks by the names and shapes of its tensors; returns None for another network."""
  prefixes = {match[1]: match[2] for name in shapes if (match := _ANCHOR.fullmatch(name))}
  if not prefixes:
    return None
  prefix, renamed = min(prefixes, key=len), {}
  if prefixes[prefix] == _CNN_HEAD:
    stem, head = f"{prefix}{_CNN_CONVS[0]}", f"{prefix}{_CNN_HEAD}"
    width = tensors.size(shapes, f"{stem}.weight", 0, 4)
    name = "cnn" if width == 32 else f"cnn_{width}"
    places = tensors.size(shapes, f"{prefix}{_CNN_HIDDEN}.weight", 1, 2) // (2 * width)
    image_size = (4, 4 * max(1, places))  # two strides of 2
  elif prefixes[prefix].startswith("blocks"):
    name, image_size = _robust_wide_resnet_name(shapes, prefix), (8, 8)
    stem, head, renamed = f"{prefix}stem_conv", f"{prefix}fc", _renamed(shapes, prefix)
  else:
    name, head = _stages(shapes, prefix)
    stem, image_size = f"{prefix}conv1", (8, 8)
  num_classes, channels = tensors.size(shapes, f"{head}.weight", 0, 2), tensors.size(shapes, f"{stem}.weight", 1, 4)
  # ReLU is hard-coded in the definitions with these names, except in the one with renamed tensors.
  activation = None if renamed else "relu"
  return Recognised(prefix, name, num_classes, channels, image_size, activation=activation, renamed=renamed)
