"""ResNets with torchvision's definition and tensor names, which most checkpoints for ImageNet use."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flax import linen as nn

from lrat_jax.convert import small_images, tensors
from lrat_jax.convert.tensors import Entry, Recognised, Shape, UnknownNetworkError
from lrat_jax.models.resnet import TorchvisionResNet

# A tensor that the networks for small images also have, and one that they do not have.
_ANCHOR, _HEAD = re.compile(r"((?:.+\.)?)layer1\.0\.conv1\.weight"), "fc.weight"


def _resnet(network: TorchvisionResNet, parameters: Mapping[str, Any]) -> Iterator[Entry]:
  return small_images.resnet(network, parameters, shortcut="downsample", head="fc")


NETWORKS: dict[type[nn.Module], Callable[..., Iterator[Entry]]] = {TorchvisionResNet: _resnet}


def _name(shapes: Mapping[str, Shape], prefix: str) -> str:
  depth, bottleneck = small_images.resnet_depth(shapes, prefix)
  stem = f"{prefix}conv1.weight"
  width, kernel = (tensors.size(shapes, stem, axis, 4) for axis in (0, 2))
  if kernel != 7:
    raise UnknownNetworkError(f"{stem} is {kernel}x{kernel}; the stem of torchvision's ResNets is 7x7.")
  widening = tensors.size(shapes, f"{prefix}layer1.0.conv1.weight", 0, 4) // width if bottleneck else 1
  name = f"imagenet_resnet{depth}" if widening == 1 else f"imagenet_wide_resnet{depth}_{widening}"
  return name if width == 64 else f"{name}_{width}"


def recognise(shapes: Mapping[str, Shape]) -> Recognised | None:
  """Recognises one of these networks by the names and shapes of its tensors; returns None for another network."""
  matches = (match for name in shapes if (match := _ANCHOR.fullmatch(name)))
  prefixes = [match[1] for match in matches if match[1] + _HEAD in shapes]
  if not prefixes:
    return None
  prefix = min(prefixes, key=len)
  num_classes = tensors.size(shapes, prefix + _HEAD, 0, 2)
  channels = tensors.size(shapes, f"{prefix}conv1.weight", 1, 4)
  # ReLU is hard-coded in torchvision's definition.
  return Recognised(prefix, _name(shapes, prefix), num_classes, channels, (64, 64), activation="relu")
