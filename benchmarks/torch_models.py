"""Our networks in PyTorch with the same weights, written the plain way, for comparisons side by side."""

import jax
import numpy as np
import torch
from torch import nn


def _tensor(array) -> torch.Tensor:
  return torch.tensor(np.array(array))


def _conv(parameters, stride: int, padding: int) -> nn.Conv2d:
  kernel = _tensor(parameters["kernel"]).permute(3, 2, 0, 1).contiguous()
  outputs, inputs, size, _ = kernel.shape
  layer = nn.Conv2d(inputs, outputs, size, stride, padding, bias="bias" in parameters)
  layer.weight.data = kernel
  if "bias" in parameters:
    layer.bias.data = _tensor(parameters["bias"])
  return layer


def _conv_norm(parameters, stats, stride: int = 1) -> nn.Sequential:
  conv = _conv(parameters["Conv_0"], stride, parameters["Conv_0"]["kernel"].shape[0] // 2)
  norm = nn.BatchNorm2d(conv.out_channels)
  norm.weight.data, norm.bias.data = (_tensor(parameters["BatchNorm_0"][name]) for name in ("scale", "bias"))
  norm.running_mean, norm.running_var = (_tensor(stats["BatchNorm_0"][name]) for name in ("mean", "var"))
  return nn.Sequential(conv, norm)


def _dense(parameters) -> nn.Linear:
  layer = nn.Linear(*parameters["kernel"].shape)
  layer.weight.data, layer.bias.data = _tensor(parameters["kernel"]).T.contiguous(), _tensor(parameters["bias"])
  return layer


class _Block(nn.Module):
  def __init__(self, parameters, stats, stride):
    super().__init__()
    self.first = _conv_norm(parameters["ConvNorm_0"], stats["ConvNorm_0"], stride)
    self.second = _conv_norm(parameters["ConvNorm_1"], stats["ConvNorm_1"])
    has_shortcut = "ConvNorm_2" in parameters
    shortcut = _conv_norm(parameters["ConvNorm_2"], stats["ConvNorm_2"], stride) if has_shortcut else nn.Identity()
    self.shortcut = shortcut

  def forward(self, x):
    return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class _ResNet(nn.Module):
  def __init__(self, parameters, stats):
    super().__init__()
    stem = _conv_norm(parameters["ConvNorm_0"], stats["ConvNorm_0"])
    names = [f"BasicBlock_{index}" for index in range(8)]
    strides = [2 if index in (2, 4, 6) else 1 for index in range(8)]
    blocks = [_Block(parameters[name], stats[name], stride) for name, stride in zip(names, strides, strict=True)]
    self.features = nn.Sequential(stem, nn.ReLU(), *blocks)
    self.head = _dense(parameters["Dense_0"])

  def forward(self, x):
    return self.head(self.features(x).mean(dim=(2, 3)))


class _CNN(nn.Module):
  def __init__(self, parameters, in_memory_order):
    super().__init__()
    self.in_memory_order = in_memory_order
    convs = [_conv(parameters[f"Conv_{index}"], stride, 1) for index, stride in enumerate((1, 2, 1, 2))]
    self.features = nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU())))
    self.hidden, self.head = _dense(parameters["Dense_0"]), _dense(parameters["Dense_1"])
    if not in_memory_order:  # our dense layer takes its features with channels last, PyTorch's flatten has them first
      units, channels = self.hidden.weight.shape[0], convs[-1].out_channels
      weight = self.hidden.weight.data.reshape(units, -1, channels)
      self.hidden.weight.data = weight.transpose(1, 2).reshape(units, -1).contiguous()

  def forward(self, x):
    x = self.features(x)
    x = x.permute(0, 2, 3, 1) if self.in_memory_order else x
    return self.head(torch.relu(self.hidden(x.flatten(1))))


class Classifier(nn.Module):
  """A CNN or ResNet of `lrat_jax.models` behind its normalisation: images [batch, c, h, w] in [0, 1] -> logits.

  The CNN flattens its features as PyTorch does, channels first, or with `in_memory_order` as they lie in channels_last,
  which spares a copy there and back.
  """

  def __init__(self, variables, mean=(0.0,), std=(1.0,), in_memory_order=False):
    super().__init__()
    variables = jax.tree.map(np.asarray, dict(variables))
    parameters, stats = variables["params"]["network"], variables.get("batch_stats", {}).get("network", {})
    self.network = _ResNet(parameters, stats) if "BasicBlock_0" in parameters else _CNN(parameters, in_memory_order)
    for name, value in (("mean", mean), ("std", std)):
      self.register_buffer(name, torch.tensor(value).reshape(1, -1, 1, 1))

  def forward(self, images):
    return self.network((images - self.mean) / self.std)


def to_torch(images) -> torch.Tensor:
  """[n, h, w, c] -> [n, c, h, w] in channels_last, PyTorch's fast layout on CPU."""
  return torch.tensor(np.array(images)).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
