"""Common networks of this field in PyTorch, with the tensor names of TRADES, RobustBench, Rice et al. and torchvision.

After the last stage comes a mean over the whole image, which at 32x32 is their pooling and also fits small test images.
"""

import functools

import numpy as np
import torch
from torch import nn

from tests import torch_deepmind


def _conv(inputs, outputs, size=3, stride=1):
  return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def _stages(make_block, stem, widths, counts):
  """An nn.Sequential for each stage; all but the first stage begin with stride 2."""
  stages, inputs = [], stem
  for index, (outputs, count) in enumerate(zip(widths, counts, strict=True)):
    blocks = []
    for block in range(count):
      blocks.append(make_block(inputs, outputs, 2 if index > 0 and block == 0 else 1))
      inputs = outputs
    stages.append(nn.Sequential(*blocks))
  return stages


class BasicBlock(nn.Module):
  """TRADES, models/resnet.py; torchvision calls the shortcut "downsample"."""

  def __init__(self, inputs, outputs, stride, shortcut="shortcut"):
    super().__init__()
    self.conv1, self.bn1 = _conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs)
    self.conv2, self.bn2 = _conv(outputs, outputs), nn.BatchNorm2d(outputs)
    changes = stride != 1 or inputs != outputs
    layers = (_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)) if changes else ()
    self.add_module(shortcut, nn.Sequential(*layers))
    self.name = shortcut

  def forward(self, x):
    y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
    return torch.relu(y + self.get_submodule(self.name)(x))


class Bottleneck(nn.Module):
  """RobustBench, architectures/resnet.py; torchvision's wide ResNets have `widening` times the channels inside."""

  def __init__(self, inputs, outputs, stride, shortcut="shortcut", widening=1):
    super().__init__()
    inner = widening * outputs // 4
    self.conv1, self.bn1 = _conv(inputs, inner, 1), nn.BatchNorm2d(inner)
    self.conv2, self.bn2 = _conv(inner, inner, stride=stride), nn.BatchNorm2d(inner)
    self.conv3, self.bn3 = _conv(inner, outputs, 1), nn.BatchNorm2d(outputs)
    changes = stride != 1 or inputs != outputs
    layers = (_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)) if changes else ()
    self.add_module(shortcut, nn.Sequential(*layers))
    self.name = shortcut

  def forward(self, x):
    y = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
    return torch.relu(self.bn3(self.conv3(y)) + self.get_submodule(self.name)(x))


class ResNet(nn.Module):
  """TRADES, models/resnet.py; RobustBench, architectures/resnet.py."""

  def __init__(self, block, counts, width=64, num_classes=10, channels=3, head="linear", make_block=None):
    super().__init__()
    self.conv1, self.bn1 = self._stem(channels, width), nn.BatchNorm2d(width)
    widths = [width * 2**stage * (1 if block is BasicBlock else 4) for stage in range(4)]
    self.layer1, self.layer2, self.layer3, self.layer4 = _stages(make_block or block, width, widths, counts)
    self.add_module(head, nn.Linear(widths[-1], num_classes))
    self.name = head

  def _stem(self, channels, width):
    return _conv(channels, width)

  def _pool(self, x):
    return x

  def forward(self, x):
    x = self._pool(torch.relu(self.bn1(self.conv1(x))))
    x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
    return self.get_submodule(self.name)(x.mean(dim=(2, 3)))


class TorchvisionResNet(ResNet):
  """torchvision, models/resnet.py."""

  def __init__(self, block, counts, width=64, num_classes=10, channels=3, **options):
    block_of = functools.partial(block, shortcut="downsample", **options)
    super().__init__(block, counts, width, num_classes, channels, head="fc", make_block=block_of)

  def _stem(self, channels, width):
    return nn.Conv2d(channels, width, 7, 2, padding=3, bias=False)

  def _pool(self, x):
    return nn.functional.max_pool2d(x, 3, 2, padding=1)


class ResNet18(ResNet):
  """The most frequently used ResNet."""

  def __init__(self, width=64, num_classes=10, channels=3):
    super().__init__(BasicBlock, (2, 2, 2, 2), width, num_classes, channels)


class PreActBlock(nn.Module):
  """Rice et al., preactresnet.py (RobustBench's PreActBlockV2); with `of_input`, Wong et al. (its PreActBlock)."""

  def __init__(self, inputs, outputs, stride, of_input=False):
    super().__init__()
    self.of_input = of_input
    self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, outputs, stride=stride)
    self.bn2, self.conv2 = nn.BatchNorm2d(outputs), _conv(outputs, outputs)
    if stride != 1 or inputs != outputs:
      self.shortcut = nn.Sequential(_conv(inputs, outputs, 1, stride))

  def forward(self, x):
    activated = torch.relu(self.bn1(x))
    shortcut = self.shortcut(x if self.of_input else activated) if hasattr(self, "shortcut") else x
    return self.conv2(torch.relu(self.bn2(self.conv1(activated)))) + shortcut


class PreActResNet18(nn.Module):
  """Rice et al., preactresnet.py."""

  def __init__(self, width=64, num_classes=10, channels=3):
    super().__init__()
    self.conv1 = _conv(channels, width)
    widths = [width * 2**stage for stage in range(4)]
    self.layer1, self.layer2, self.layer3, self.layer4 = _stages(PreActBlock, width, widths, (2, 2, 2, 2))
    self.bn, self.linear = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], num_classes)

  def forward(self, x):
    x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
    return self.linear(torch.relu(self.bn(x)).mean(dim=(2, 3)))


class WongPreActResNet18(nn.Module):
  """Wong et al., as RobustBench defines it: PreActResNet with PreActBlock."""

  def __init__(self, width=64, num_classes=10, channels=3):
    super().__init__()
    self.conv1 = _conv(channels, width)
    widths, block = [width * 2**stage for stage in range(4)], functools.partial(PreActBlock, of_input=True)
    self.layer1, self.layer2, self.layer3, self.layer4 = _stages(block, width, widths, (2, 2, 2, 2))
    self.linear = nn.Linear(widths[-1], num_classes)

  def forward(self, x):
    x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
    return self.linear(x.mean(dim=(2, 3)))


class WideBlock(nn.Module):
  """The BasicBlock of TRADES, models/wideresnet.py."""

  def __init__(self, inputs, outputs, stride):
    super().__init__()
    self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, outputs, stride=stride)
    self.bn2, self.conv2 = nn.BatchNorm2d(outputs), _conv(outputs, outputs)
    self.convShortcut = None if inputs == outputs else _conv(inputs, outputs, 1, stride)

  def forward(self, x):
    activated = torch.relu(self.bn1(x))
    shortcut = x if self.convShortcut is None else self.convShortcut(activated)
    return self.conv2(torch.relu(self.bn2(self.conv1(activated)))) + shortcut


class _Group(nn.Module):
  def __init__(self, blocks):
    super().__init__()
    self.layer = blocks

  def forward(self, x):
    return self.layer(x)


class WideResNet(nn.Module):
  """TRADES, models/wideresnet.py; with `sub_block1`, also the blocks that are declared there but never used."""

  def __init__(self, depth=34, width=10, num_classes=10, channels=3, sub_block1=False):
    super().__init__()
    self.conv1 = _conv(channels, 16)
    widths, counts = [16 * width, 32 * width, 64 * width], [(depth - 4) // 6] * 3
    self.block1, self.block2, self.block3 = map(_Group, _stages(WideBlock, 16, widths, counts))
    if sub_block1:
      self.sub_block1 = _Group(_stages(WideBlock, 16, widths[:1], counts[:1])[0])
    self.bn1, self.fc = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], num_classes)

  def forward(self, x):
    x = self.block3(self.block2(self.block1(self.conv1(x))))
    return self.fc(torch.relu(self.bn1(x)).mean(dim=(2, 3)))


class RobustWideResNet(nn.Module):
  """Huang et al., RobustBench's robust_wide_resnet.py."""

  def __init__(self, stem, widths, counts, num_classes=10, channels=3):
    super().__init__()
    self.stem_conv = _conv(channels, stem)
    self.blocks = nn.Sequential(*map(_Group, _stages(WideBlock, stem, widths, counts)))
    self.bn1, self.fc = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], num_classes)

  def forward(self, x):
    return self.fc(torch.relu(self.bn1(self.blocks(self.stem_conv(x)))).mean(dim=(2, 3)))


def cnn(width=32, num_classes=10, channels=3, size=32):
  """The small CNN of lrat_jax for images of size x size."""
  places = (-(-size // 4)) ** 2
  return nn.Sequential(
    nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(),
    nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU(),
    nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(),
    nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), nn.ReLU(),
    nn.Flatten(), nn.Linear(2 * width * places, 4 * width), nn.ReLU(), nn.Linear(4 * width, num_classes),
  )  # fmt: skip


class Normalised(nn.Module):
  """A network after a normalisation of its inputs: images in [0, 1] -> logits; the buffers are called `names`."""

  def __init__(self, network, mean, std, names=("mean", "std")):
    super().__init__()
    self.network, self.names = network, names
    for name, values in zip(names, (mean, std), strict=True):
      self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1))

  def forward(self, images):
    mean, std = (getattr(self, name) for name in self.names)
    return self.network((images - mean) / std)


def to_torch(images):
  """[n, h, w, c] -> [n, c, h, w]."""
  return torch.tensor(images).permute(0, 3, 1, 2)


def spread(network, images, seed=0):
  """Returns the network in evaluation mode with weights that resemble trained weights, not initial ones.

  Batch norms get random scales and offsets and slightly changed statistics of the images; logits are of order 1.
  """
  generator = torch.Generator().manual_seed(seed)
  uniform = lambda like, low, high: torch.rand(like.shape, generator=generator) * (high - low) + low
  norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
  with torch.no_grad():
    for parameter in network.parameters():
      fan = parameter[0].numel() if parameter.dim() > 1 else 4
      parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / fan) ** 0.5)
    for norm in norms:
      norm.weight.copy_(uniform(norm.weight, 0.5, 1.5))
      norm.bias.copy_(uniform(norm.bias, -0.3, 0.3))
      norm.momentum = None  # the statistics are the mean over all batches
    network.train()(to_torch(images))
    for norm in norms:
      norm.running_mean += 0.1 * uniform(norm.running_mean, -1, 1)
      norm.running_var *= uniform(norm.running_var, 0.8, 1.25)
  return network.eval()


# By their names in lrat_jax: seven classes, three channels, images of 8x8.
SMALL = {
  "resnet18_4": lambda: ResNet18(4, 7),
  "resnet50_2": lambda: ResNet(Bottleneck, (3, 4, 6, 3), 2, 7),
  "imagenet_resnet18_4": lambda: TorchvisionResNet(BasicBlock, (2, 2, 2, 2), 4, 7),
  "imagenet_wide_resnet50_2_2": lambda: TorchvisionResNet(Bottleneck, (3, 4, 6, 3), 2, 7, widening=2),
  "preact_resnet18_4": lambda: PreActResNet18(4, 7),
  "wong_preact_resnet18_4": lambda: WongPreActResNet18(4, 7),
  "dm_preact_resnet18_4": lambda: torch_deepmind.PreActResNet18(4, 7),
  "dm_wide_resnet_10_2": lambda: torch_deepmind.WideResNet((1, 1, 1), (32, 64, 128), 7),
  "dm_wide_resnet_10_1_mean_sparse": lambda: torch_deepmind.WideResNet((1, 1, 1), (16, 32, 64), 7, sparse=True),
  "ra_wide_resnet_6_2x8_1x12_1x20": lambda: torch_deepmind.WideResNet((2, 1, 1), (8, 12, 20), 7, 6, squeeze=True),
  "robust_wide_resnet_16_1x20_2x24_1x12": lambda: RobustWideResNet(16, (20, 24, 12), (1, 2, 1), 7),
  "wide_resnet_10_1": lambda: WideResNet(10, 1, 7),
  "wide_resnet_16_2": lambda: WideResNet(16, 2, 7),
  "cnn_4": lambda: cnn(4, 7, 3, 8),
}


def pictures():
  """float32 [16, 8, 8, 3] in [0, 1]."""
  return np.random.default_rng(0).uniform(size=(16, 8, 8, 3)).astype(np.float32)


@functools.cache
def trained(name):
  """A network of SMALL with the weights from `spread`; it is cached and must not be changed."""
  return spread(SMALL[name](), pictures())


def logits(network, images):
  """float32 [n, classes] for images [n, h, w, c]."""
  with torch.no_grad():
    return network(to_torch(images)).numpy()
