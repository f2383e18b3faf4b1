"""Swin in PyTorch, with tensors named as in timm since 0.9, or as in the original and in older versions of timm."""

import torch
from torch import nn

from tests.torch_transformers import MeanSparse


class _Attention(nn.Module):
  def __init__(self, width, heads, window):
    super().__init__()
    places = [(row, column) for row in range(window) for column in range(window)]
    index = [[(a - c + window - 1) * (2 * window - 1) + b - d + window - 1 for c, d in places] for a, b in places]
    self.register_buffer("relative_position_index", torch.tensor(index))
    self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
    self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

  def forward(self, x, mask):
    """x: [n, windows, places, width]; mask: [windows, places, places], added to the scores of all heads."""
    heads = self.relative_position_bias_table.shape[1]
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(-2, -3) for part in self.qkv(x).chunk(3, dim=-1))
    bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias + mask[:, None]
    return self.proj((scores.softmax(dim=-1) @ v).transpose(-2, -3).flatten(-2))


def _sparse(width, mean_sparse):
  return MeanSparse(width) if mean_sparse else nn.Identity()


class _Mlp(nn.Module):
  def __init__(self, width, mean_sparse):
    super().__init__()
    self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    self.meansparse1, self.meansparse2 = _sparse(4 * width, mean_sparse), _sparse(width, mean_sparse)

  def forward(self, x):
    return self.meansparse2(self.fc2(nn.functional.gelu(self.meansparse1(self.fc1(x)))))


class _Block(nn.Module):
  def __init__(self, width, size, window, shift, epsilon, mean_sparse):
    super().__init__()
    self.window, self.shift = window, shift
    self.norm1, self.norm2 = nn.LayerNorm(width, eps=epsilon), nn.LayerNorm(width, eps=epsilon)
    self.attn, self.mlp = _Attention(width, width // 32, window), _Mlp(width, mean_sparse)
    self.meansparse1, self.meansparse2 = _sparse(width, mean_sparse), _sparse(width, mean_sparse)
    self.register_buffer("attn_mask", self._mask(size))

  def _windows(self, x):
    """[n, h, w, ...] -> [n, windows, places, ...]."""
    cut = [line.split(self.window, dim=2) for line in x.split(self.window, dim=1)]
    return torch.stack([window.flatten(1, 2) for line in cut for window in line], dim=1)

  def _mask(self, size):
    """[windows, places, places]: -100 between places that the shift joined from opposite ends of the image, else 0."""
    wrapped = (torch.arange(size) >= size - self.shift).int() if self.shift else torch.zeros(size).int()
    parts = self._windows((2 * wrapped[:, None] + wrapped[None, :])[None])[0]
    return (parts[:, :, None] != parts[:, None, :]) * -100.0

  def forward(self, x):
    n, h, w, width = x.shape
    shifted = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
    y = self.attn(self._windows(shifted), self.attn_mask)
    y = y.reshape(n, h // self.window, w // self.window, self.window, self.window, width)
    y = y.transpose(2, 3).reshape(x.shape)
    x = self.meansparse1(x + torch.roll(y, (self.shift, self.shift), (1, 2)))
    return self.meansparse2(x + self.mlp(self.norm2(x)))


class _Merging(nn.Module):
  def __init__(self, width, epsilon):
    super().__init__()
    self.norm, self.reduction = nn.LayerNorm(4 * width, eps=epsilon), nn.Linear(4 * width, 2 * width, bias=False)

  def forward(self, x):
    quarters = x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]
    return self.reduction(self.norm(torch.cat(quarters, dim=-1)))


class _Stage(nn.Module):
  def __init__(self, blocks, merging, is_first):
    super().__init__()
    self.blocks, self.is_first = nn.Sequential(*blocks), is_first
    if merging is not None:
      self.downsample = merging

  def forward(self, x):
    merge = getattr(self, "downsample", nn.Identity())
    return self.blocks(merge(x)) if self.is_first else merge(self.blocks(x))


class _Embedding(nn.Module):
  def __init__(self, channels, width, patch, epsilon):
    super().__init__()
    self.proj, self.norm = nn.Conv2d(channels, width, patch, patch), nn.LayerNorm(width, eps=epsilon)

  def forward(self, x):
    return self.norm(self.proj(x).permute(0, 2, 3, 1))


class _Head(nn.Module):
  def __init__(self, width, num_classes):
    super().__init__()
    self.fc = nn.Linear(width, num_classes)

  def forward(self, x):
    return self.fc(x)


class Swin(nn.Module):
  """timm, models/swin_transformer.py; `old` is Microsoft's, which RobustBench's MIMIR_swin_transformer.py follows.

  With `old`, patches are merged at the end of a stage instead of at the beginning of the next one, and the head is one
  layer. With `mean_sparse` it is RobustBench's Meansparse_swin_L.py.
  """

  def __init__(
    self, depths, width, patch, window, size, num_classes=10, channels=3, epsilon=1e-5, old=False, mean_sparse=False
  ):
    super().__init__()
    self.patch_embed = _Embedding(channels, width, patch, epsilon)
    stages = []
    for stage, depth in enumerate(depths):
      features, places = width * 2**stage, size // patch // 2**stage
      side = min(window, places)
      shifts = [side // 2 if places > side and block % 2 else 0 for block in range(depth)]
      blocks = [_Block(features, places, side, shift, epsilon, mean_sparse) for shift in shifts]
      merges = stage < len(depths) - 1 if old else stage > 0
      merging = _Merging(features if old else features // 2, epsilon) if merges else None
      stages.append(_Stage(blocks, merging, is_first=not old))
    self.layers = nn.Sequential(*stages)
    features = width * 2 ** (len(depths) - 1)
    self.norm = nn.LayerNorm(features, eps=epsilon)
    self.head = nn.Linear(features, num_classes) if old else _Head(features, num_classes)

  def forward(self, x):
    return self.head(self.norm(self.layers(self.patch_embed(x))).mean(dim=(1, 2)))
