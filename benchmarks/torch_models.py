"""Our networks in PyTorch with the same weights, for comparisons."""

import math

import jax
import numpy as np
import torch
from torch import nn

from lrat_jax.convert import torch_names
from lrat_jax.models.cnn import CNN
from lrat_jax.models.preact_resnet import PreActResNet
from lrat_jax.models.resnet import ResNet
from lrat_jax.models.wide_resnet import WideResNet
from tests import torch_definitions


class _FlattenInMemoryOrder(nn.Module):
  """Flattens features in the memory order of channels_last, which saves a copy forwards and backwards."""

  def forward(self, x):
    return x.permute(0, 2, 3, 1).flatten(1)


def _flatten_in_memory_order(network: nn.Sequential) -> None:
  """Changes the CNN's flattening, and the order of its hidden layer's inputs so that its outputs stay the same."""
  index = next(i for i, layer in enumerate(network) if isinstance(layer, nn.Flatten))
  hidden, channels = network[index + 1], network[index - 2].out_channels
  weight = hidden.weight.data.reshape(len(hidden.weight), channels, -1)
  hidden.weight.data = weight.transpose(1, 2).reshape(len(weight), -1).contiguous()
  network[index] = _FlattenInMemoryOrder()


def _network(network, found: torch_names.Recognised) -> nn.Module:
  """The PyTorch definition of one of our networks."""
  sizes = {"width": network.width, "num_classes": found.num_classes, "channels": found.channels}
  if isinstance(network, CNN):
    return torch_definitions.cnn(size=round(math.prod(found.image_size) ** 0.5), **sizes)
  if isinstance(network, WideResNet):
    return torch_definitions.WideResNet(depth=network.depth, **sizes)
  return {ResNet: torch_definitions.ResNet18, PreActResNet: torch_definitions.PreActResNet18}[type(network)](**sizes)


def classifier(model, variables, in_memory_order: bool = False) -> nn.Module:
  """A classifier of `lrat_jax.models` in PyTorch: images [batch, c, h, w] in [0, 1] -> logits.

  The CNN flattens its features as PyTorch does, channels first, or with `in_memory_order` in channels_last order.
  """
  tensors = torch_names.state_dict(model.network, jax.tree.map(np.asarray, dict(variables)))
  network = _network(model.network, torch_names.recognise({name: array.shape for name, array in tensors.items()}))
  network.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()})
  if in_memory_order:
    _flatten_in_memory_order(network)
  return torch_definitions.Normalised(network, model.mean, model.std)


def to_torch(images) -> torch.Tensor:
  """[n, h, w, c] -> [n, c, h, w] in channels_last, PyTorch's fast layout on CPU."""
  return torch_definitions.to_torch(np.array(images)).contiguous(memory_format=torch.channels_last)
