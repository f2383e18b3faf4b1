"""XCiT in PyTorch, with tensors named as timm names them."""

import math

import torch
from torch import nn


def _conv_norm(inputs, outputs, stride):
  return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))


class _Stem(nn.Module):
  def __init__(self, width, channels, strides):
    super().__init__()
    widths = [channels, *(width // 2**halvings for halvings in reversed(range(len(strides))))]
    layers = []
    for inputs, outputs, stride in zip(widths, widths[1:], strides, strict=False):
      layers += [_conv_norm(inputs, outputs, stride), nn.GELU()]
    self.proj = nn.Sequential(*layers[:-1])


class _Positions(nn.Module):
  def __init__(self, width):
    super().__init__()
    self.token_projection = nn.Conv2d(64, width, 1)

  def forward(self, height, width):
    channels = torch.zeros(64, height, width)
    for row in range(height):
      for column in range(width):
        for index in range(32):
          wave, period = (math.cos if index % 2 else math.sin), 10000 ** (index // 2 / 16)
          channels[index, row, column] = wave(2 * math.pi * (row + 1) / (height + 1e-6) / period)
          channels[32 + index, row, column] = wave(2 * math.pi * (column + 1) / (width + 1e-6) / period)
    return self.token_projection(channels[None])


class _Mlp(nn.Module):
  def __init__(self, width):
    super().__init__()
    self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

  def forward(self, x):
    return self.fc2(nn.functional.gelu(self.fc1(x)))


class _ChannelAttention(nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
    self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

  def forward(self, x):
    heads = len(self.temperature)
    q, k, v = (part.transpose(1, 2).unflatten(1, (heads, -1)) for part in self.qkv(x).chunk(3, dim=-1))
    q, k = (nn.functional.normalize(part, dim=-1) for part in (q, k))
    attention = (q @ k.transpose(-1, -2) * self.temperature).softmax(dim=-1)
    return self.proj((attention @ v).flatten(1, 2).transpose(1, 2))


class _Local(nn.Module):
  def __init__(self, width):
    super().__init__()
    self.conv1, self.bn = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width)
    self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width)

  def forward(self, x, size):
    x = self.bn(nn.functional.gelu(self.conv1(x.transpose(1, 2).unflatten(2, size))))
    return self.conv2(x).flatten(2).transpose(1, 2)


class _Branches(nn.Module):
  def __init__(self, width, count):
    super().__init__()
    for index in range(1, count + 1):
      setattr(self, f"norm{index}", nn.LayerNorm(width, eps=1e-6))
      setattr(self, f"gamma{index}", nn.Parameter(torch.ones(width)))
    self.mlp = _Mlp(width)


class _Block(_Branches):
  def __init__(self, width, heads):
    super().__init__(width, 3)
    self.attn, self.local_mp = _ChannelAttention(width, heads), _Local(width)

  def forward(self, x, size):
    x = x + self.gamma1 * self.attn(self.norm1(x))
    x = x + self.gamma3 * self.local_mp(self.norm3(x), size)
    return x + self.gamma2 * self.mlp(self.norm2(x))


class _ClassAttention(nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

  def forward(self, x):
    split = lambda part: part.unflatten(2, (self.heads, -1)).transpose(1, 2)
    attended = nn.functional.scaled_dot_product_attention(split(self.q(x[:, :1])), split(self.k(x)), split(self.v(x)))
    return self.proj(attended.transpose(1, 2).flatten(2))


class _ClassBlock(_Branches):
  def __init__(self, width, heads, norm_all):
    super().__init__(width, 2)
    self.norm_all, self.attn = norm_all, _ClassAttention(width, heads)

  def forward(self, x):
    y = self.norm1(x)
    x = x + self.gamma1 * torch.cat([self.attn(y), y[:, 1:]], dim=1)
    x = self.norm2(x) if self.norm_all else torch.cat([self.norm2(x[:, :1]), x[:, 1:]], dim=1)
    return torch.cat([x[:, :1] + self.gamma2 * self.mlp(x[:, :1]), 2 * x[:, 1:]], dim=1)


class XCiT(nn.Module):
  """timm, models/xcit.py; with the strides (1, 1, 2, 2), as changed by RobustBench's architectures/xcit.py."""

  def __init__(self, strides, depth, width, heads, num_classes=10, channels=3, norm_all=True):
    super().__init__()
    self.patch_embed, self.pos_embed = _Stem(width, channels, strides), _Positions(width)
    self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
    self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
    self.cls_attn_blocks = nn.ModuleList(_ClassBlock(width, heads, norm_all) for _ in range(2))
    self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, num_classes)

  def forward(self, x):
    x = self.patch_embed.proj(x)
    size = x.shape[2:]
    x = (x + self.pos_embed(*size)).flatten(2).transpose(1, 2)
    for block in self.blocks:
      x = block(x, size)
    x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
    for block in self.cls_attn_blocks:
      x = block(x)
    return self.head(self.norm(x[:, 0]))
