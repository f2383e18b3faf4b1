"""DeepMind's WideResNet and PreActResNet (Gowal et al., arXiv:2010.03593), in the tensor names of their PyTorch code.

RaWRN (Peng et al., arXiv:2308.16258) and networks with MeanSparse (Amini et al., arXiv:2406.05927) extend this code.
Most of RobustBench's best models use these names. The tensors do not determine the activation.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flax import linen as nn

from lrat_jax.convert import tensors
from lrat_jax.convert.tensors import Entry, Recognised, Shape
from lrat_jax.models.preact_resnet import DMPreActResNet
from lrat_jax.models.wide_resnet import DMWideResNet, RaWideResNet, name_of

# One tensor of each network, after any prefix that a wrapper added to its name.
_ANCHOR = re.compile(r"((?:.+\.)?)(layer\.0\.block\.0\.conv_0|layer_0\.0\.conv_2d_1)\.weight")


def _block(name: str, convolutions: tuple[str, str], path: str, parameters: Mapping[str, Any]) -> Iterator[Entry]:
  first, second = convolutions
  yield from tensors.norm(f"{name}.batchnorm_0", path, "BatchNorm_0")
  yield from tensors.conv_norm(f"{name}.{first}", f"{name}.batchnorm_1", path, "ConvNorm_0")
  yield from tensors.conv(f"{name}.{second}", path, "Conv_0")
  if "Conv_1" in parameters[path]:
    yield from tensors.conv(f"{name}.shortcut", path, "Conv_1")


def _wide_resnet(network: DMWideResNet, parameters: Mapping[str, Any]) -> Iterator[Entry]:
  yield from tensors.conv("init_conv", "Conv_0")
  for group, block, index in tensors.blocks(count for count, _ in network.sizes):
    name, path = f"layer.{group - 1}.block.{block}", f"PreActivationBlock_{index}"
    yield from _block(name, ("conv_0", "conv_1"), path, parameters)
    for layer, ours in (("fc1", "Dense_0"), ("fc2", "Dense_1")) if network.squeeze else ():
      at = (path, "SqueezeExcitation_0", ours)
      yield from tensors.weights(f"{name}.se.{layer}", at, tensors.POINTWISE, bias=True)
    for number in range(3) if network.mean_sparse else ():
      yield from tensors.mean_sparse(f"{name}.meansparse_{number}", path, f"MeanSparse_{number}")
  yield from tensors.norm("batchnorm", "BatchNorm_0")
  if network.mean_sparse:
    yield from tensors.mean_sparse("meansparse_end", "MeanSparse_0")
  yield from tensors.weights("logits", ("Dense_0",), tensors.DENSE, bias=True)


def _preact_resnet(network: DMPreActResNet, parameters: Mapping[str, Any]) -> Iterator[Entry]:
  yield from tensors.conv("conv_2d", "Conv_0")
  for stage, block, index in tensors.blocks(network.blocks):
    name, path = f"layer_{stage - 1}.{block}", f"PreActivationBlock_{index}"
    yield from _block(name, ("conv_2d_1", "conv_2d_2"), path, parameters)
  yield from tensors.norm("batchnorm", "BatchNorm_0")
  yield from tensors.weights("logits", ("Dense_0",), tensors.DENSE, bias=True)


NETWORKS: dict[type[nn.Module], Callable[..., Iterator[Entry]]] = {
  DMWideResNet: _wide_resnet,
  RaWideResNet: _wide_resnet,
  DMPreActResNet: _preact_resnet,
}


def _wide_resnet_name(shapes: Mapping[str, Shape], prefix: str) -> str:
  groups = []
  for group in range(3):
    name = f"{prefix}layer.{group}.block.{{}}.conv_0.weight"
    channels = tensors.size(shapes, name.replace("{}", "0"), 0, 4)
    groups.append((tensors.count(shapes, name), channels))
  stem, block = tensors.size(shapes, f"{prefix}init_conv.weight", 0, 4), f"{prefix}layer.0.block.0."
  family = "ra_" if f"{block}se.fc1.weight" in shapes else "dm_"
  return name_of(family, stem, tuple(groups))


def recognise(shapes: Mapping[str, Shape]) -> Recognised | None:
  """Recognises one of these networks by the names and shapes of its tensors; returns None for another network."""
  prefixes = {match[1]: match[2] for name in shapes if (match := _ANCHOR.fullmatch(name))}
  if not prefixes:
    return None
  prefix = min(prefixes, key=len)
  if prefixes[prefix].startswith("layer."):
    stem, name = f"{prefix}init_conv.weight", _wide_resnet_name(shapes, prefix)
  else:
    stem = f"{prefix}conv_2d.weight"
    counts = [tensors.count(shapes, f"{prefix}layer_{stage}.{{}}.conv_2d_1.weight") for stage in range(4)]
    width = tensors.size(shapes, stem, 0, 4)
    name = f"dm_preact_resnet{tensors.depth(counts)}" + ("" if width == 64 else f"_{width}")
  num_classes, channels = tensors.size(shapes, f"{prefix}logits.weight", 0, 2), tensors.size(shapes, stem, 1, 4)
  return Recognised(prefix, name, num_classes, channels, (8, 8))
