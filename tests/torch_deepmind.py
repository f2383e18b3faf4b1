"""DeepMind's networks in PyTorch (Gowal et al., arXiv:2010.03593), with tensors named as in their code."""

import torch
from torch import nn
from torch.nn import functional


def _conv(inputs, outputs, size, stride):
  """A convolution with Haiku's padding, for images with even sides."""
  pad = nn.ZeroPad2d({(3, 1): 1, (3, 2): (0, 1, 0, 1), (1, 1): 0, (1, 2): 0}[size, stride])
  convolution = nn.Conv2d(inputs, outputs, size, stride, bias=False)
  return convolution, lambda x: convolution(pad(x))


class MeanSparse(nn.Module):
  """Amini et al.: values within `threshold` standard deviations of the mean are replaced by the mean."""

  def __init__(self, channels):
    super().__init__()
    generator = torch.Generator().manual_seed(channels)
    self.register_buffer("running_mean", 0.3 * torch.randn(channels, generator=generator))
    self.register_buffer("running_var", torch.rand(channels, generator=generator) + 0.5)
    self.register_buffer("threshold", torch.tensor(0.3))

  def forward(self, x):
    mean, deviation = (buffer[:, None, None] for buffer in (self.running_mean, self.running_var.sqrt()))
    return torch.where((x - mean).abs() < self.threshold * deviation, mean, x)


class SqueezeExcitation(nn.Module):
  """torchvision.ops.misc."""

  def __init__(self, channels):
    super().__init__()
    self.fc1, self.fc2 = nn.Conv2d(channels, round(channels / 4), 1), nn.Conv2d(round(channels / 4), channels, 1)

  def forward(self, x):
    return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))))


class Block(nn.Module):
  """A pre-activation block; its convolutions are called `names`."""

  def __init__(
    self, inputs, outputs, stride, activation, names=("conv_0", "conv_1"), shortcut=1, squeeze=False, sparse=False
  ):
    super().__init__()
    self.activation, self.of_input = activation, shortcut == 3
    self.batchnorm_0, self.batchnorm_1 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
    first, self.first = _conv(inputs, outputs, 3, stride)
    second, self.second = _conv(outputs, outputs, 3, 1)
    self.add_module(names[0], first)
    self.add_module(names[1], second)
    self.project = None
    if inputs != outputs:
      self.shortcut, self.project = _conv(inputs, outputs, shortcut, stride)
    self.se = SqueezeExcitation(outputs) if squeeze else None
    for index, channels in enumerate((inputs, outputs, outputs)):
      self.add_module(f"meansparse_{index}", MeanSparse(channels) if sparse else nn.Identity())

  def forward(self, x):
    activated = self.activation(self.meansparse_0(self.batchnorm_0(x)))
    y = self.second(self.activation(self.meansparse_1(self.batchnorm_1(self.first(activated)))))
    y = y if self.se is None else self.se(y)
    return self.meansparse_2(y + (x if self.project is None else self.project(x if self.of_input else activated)))


def _stage(inputs, outputs, count, stride, *options, **more):
  firsts = [(inputs, stride), *[(outputs, 1)] * (count - 1)]
  return nn.Sequential(*(Block(channels, outputs, step, *options, **more) for channels, step in firsts))


class _Group(nn.Module):
  def __init__(self, block):
    super().__init__()
    self.block = block

  def forward(self, x):
    return self.block(x)


class WideResNet(nn.Module):
  """DMWideResNet; with `squeeze`, NormalizedWideResNet of Peng et al.; with `sparse`, the network of MeanSparse."""

  def __init__(
    self, counts, widths, num_classes=10, stem=16, channels=3, activation=functional.silu, squeeze=False, sparse=False
  ):
    super().__init__()
    self.activation, inputs = activation, (stem, *widths[:-1])
    self.init_conv = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
    sizes = zip(inputs, widths, counts, (1, 2, 2), strict=True)
    self.layer = nn.Sequential(*(_Group(_stage(*size, activation, squeeze=squeeze, sparse=sparse)) for size in sizes))
    self.batchnorm, self.logits = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], num_classes)
    self.meansparse_end = MeanSparse(widths[-1]) if sparse else nn.Identity()

  def forward(self, x):
    x = self.layer(self.init_conv(x))
    return self.logits(self.activation(self.meansparse_end(self.batchnorm(x))).mean(dim=(2, 3)))


class PreActResNet18(nn.Module):
  """DMPreActResNet."""

  def __init__(self, width=64, num_classes=10, channels=3, activation=functional.silu):
    super().__init__()
    self.activation, widths = activation, [width, width, 2 * width, 4 * width, 8 * width]
    self.conv_2d = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    for index, stride in enumerate((1, 2, 2, 2)):
      stage = _stage(widths[index], widths[index + 1], 2, stride, activation, ("conv_2d_1", "conv_2d_2"), 3)
      self.add_module(f"layer_{index}", stage)
    self.batchnorm, self.logits = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], num_classes)

  def forward(self, x):
    x = self.layer_3(self.layer_2(self.layer_1(self.layer_0(self.conv_2d(x)))))
    return self.logits(self.activation(self.batchnorm(x)).mean(dim=(2, 3)))
