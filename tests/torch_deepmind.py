"""DeepMind's networks in PyTorch (Gowal et al., arXiv:2010.03593), with tensors named as their code names them."""

from torch import nn
from torch.nn import functional


def _conv(inputs, outputs, size, stride):
  """A convolution with Haiku's padding, for images with even sides."""
  pad = nn.ZeroPad2d({(3, 1): 1, (3, 2): (0, 1, 0, 1), (1, 1): 0, (1, 2): 0}[size, stride])
  convolution = nn.Conv2d(inputs, outputs, size, stride, bias=False)
  return convolution, lambda x: convolution(pad(x))


class Block(nn.Module):
  """A pre-activation block, whose convolutions are called `names`."""

  def __init__(self, inputs, outputs, stride, activation, names=("conv_0", "conv_1"), shortcut=1):
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

  def forward(self, x):
    activated = self.activation(self.batchnorm_0(x))
    y = self.second(self.activation(self.batchnorm_1(self.first(activated))))
    return y + (x if self.project is None else self.project(x if self.of_input else activated))


def _stage(inputs, outputs, count, stride, *options):
  blocks = [Block(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1, *options) for i in range(count)]
  return nn.Sequential(*blocks)


class _Group(nn.Module):
  def __init__(self, block):
    super().__init__()
    self.block = block

  def forward(self, x):
    return self.block(x)


class WideResNet(nn.Module):
  """DMWideResNet."""

  def __init__(self, depth=28, width=10, num_classes=10, channels=3, activation=functional.silu):
    super().__init__()
    self.activation, widths, count = activation, [16, 16 * width, 32 * width, 64 * width], (depth - 4) // 6
    self.init_conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
    strides = zip(widths, widths[1:], (1, 2, 2), strict=False)
    self.layer = nn.Sequential(*(_Group(_stage(a, b, count, stride, activation)) for a, b, stride in strides))
    self.batchnorm, self.logits = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], num_classes)

  def forward(self, x):
    x = self.layer(self.init_conv(x))
    return self.logits(self.activation(self.batchnorm(x)).mean(dim=(2, 3)))


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
