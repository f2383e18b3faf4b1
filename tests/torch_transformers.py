"""ConvNeXt, ViT and their ConvStem in PyTorch, with tensors named as timm, Singh et al. and RobustBench name them."""

import functools

import torch
from torch import nn

_norm = functools.partial(nn.LayerNorm, eps=1e-6)


class _ChannelNorm(nn.LayerNorm):
  """Layer norm over the channels of [n, c, h, w]."""

  def __init__(self, channels):
    super().__init__(channels, eps=1e-6)

  def forward(self, x):
    return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mlp(nn.Module):
  def __init__(self, channels, hidden):
    super().__init__()
    self.fc1, self.act, self.fc2 = nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels)

  def forward(self, x):
    return self.fc2(self.act(self.fc1(x)))


class MeanSparse(nn.Module):
  """RobustBench, sparsified_model.py and Meansparse_swin_L.py, over the last axis."""

  def __init__(self, width):
    super().__init__()
    for name in ("running_mean", "running_var"):
      self.register_buffer(name, torch.zeros(width))
    for name in ("threshold", "flag_update_statistics", "batch_num"):
      self.register_buffer(name, torch.tensor(0.0))

  def forward(self, x):
    is_near = (x - self.running_mean).abs() < self.threshold * self.running_var.sqrt()
    return torch.where(is_near, self.running_mean, x)


class ConvStem(nn.Module):
  """Singh et al.; `outputs` is the width of a 1x1 convolution at the end, None for no such convolution."""

  def __init__(self, channels, widths, strides, outputs=None):
    super().__init__()
    layers = []
    for width, stride in zip(widths, strides, strict=True):
      layers += [nn.Conv2d(channels, width, 3, stride, padding=1), _ChannelNorm(width), nn.GELU()]
      channels = width
    self.stem = nn.Sequential(*layers, *([] if outputs is None else [nn.Conv2d(channels, outputs, 1)]))

  def forward(self, x):
    return self.stem(x)


class _ConvNeXtBlock(nn.Module):
  def __init__(self, width, mean_sparse):
    super().__init__()
    self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
    self.norm, self.mlp, self.gamma = _norm(width), Mlp(width, 4 * width), nn.Parameter(torch.full((width,), 1e-6))
    self.drop_path = nn.Identity()
    if mean_sparse:
      self.drop_path = nn.Sequential(nn.Identity(), MeanSparse(width))
      self.mlp.act = nn.Sequential(MeanSparse(4 * width), nn.GELU())
      for layer in (self.drop_path[1], self.mlp.act[0]):
        for name in ("momentum", "epsilon"):
          layer.register_buffer(name, torch.tensor(0.1))

  def forward(self, x):
    y = self.drop_path(self.gamma * self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1))))
    return x + y.permute(0, 3, 1, 2)


class _Stage(nn.Module):
  def __init__(self, inputs, width, depth, mean_sparse):
    super().__init__()
    changes = inputs is not None
    self.downsample = nn.Sequential(*([_ChannelNorm(inputs), nn.Conv2d(inputs, width, 2, 2)] if changes else []))
    self.blocks = nn.Sequential(*(_ConvNeXtBlock(width, mean_sparse) for _ in range(depth)))

  def forward(self, x):
    return self.blocks(self.downsample(x))


class _Head(nn.Module):
  def __init__(self, width, num_classes):
    super().__init__()
    self.norm, self.fc = _norm(width), nn.Linear(width, num_classes)

  def forward(self, x):
    return self.fc(self.norm(x.mean(dim=(2, 3))))


class ConvNeXt(nn.Module):
  """timm's ConvNeXt; `stem_widths` are the widths of a ConvStem, None for a patch embedding."""

  def __init__(self, depths, widths, num_classes=1000, channels=3, patch=4, stem_widths=None, mean_sparse=False):
    super().__init__()
    if stem_widths is None:
      self.stem = nn.Sequential(nn.Conv2d(channels, widths[0], patch, patch), _ChannelNorm(widths[0]))
    else:
      self.stem = ConvStem(channels, stem_widths, (2, 2, 1)[: len(stem_widths)])
    stages = zip((None, *widths[:-1]), widths, depths, strict=True)
    self.stages, self.head = (
      nn.Sequential(*(_Stage(*stage, mean_sparse) for stage in stages)),
      _Head(widths[-1], num_classes),
    )

  def forward(self, x):
    return self.head(self.stages(self.stem(x)))


class _Attention(nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

  def forward(self, x):
    batch, tokens, width = x.shape
    query, key, value = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
    scores = (query @ key.transpose(2, 3)) / (width // self.heads) ** 0.5
    return self.proj((scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(x.shape))


class _Block(nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    self.norm1, self.attn, self.norm2 = _norm(width), _Attention(width, heads), _norm(width)
    self.mlp = Mlp(width, 4 * width)

  def forward(self, x):
    x = x + self.attn(self.norm1(x))
    return x + self.mlp(self.norm2(x))


class _PatchEmbed(nn.Module):
  def __init__(self, projection):
    super().__init__()
    self.proj = projection

  def forward(self, x):
    return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
  """timm's ViT and DeiT; `stem_width` is the width of a ConvStem's first convolution, None for a patch embedding."""

  def __init__(self, depth, width, heads, patch, size, num_classes=1000, channels=3, stem_width=None):
    super().__init__()
    if stem_width is None:
      projection = nn.Conv2d(channels, width, patch, patch)
    else:
      layers = range(patch.bit_length() - 1)
      projection = ConvStem(channels, [stem_width * 2**layer for layer in layers], [2 for _ in layers], width)
    self.patch_embed = _PatchEmbed(projection)
    self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
    self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (size // patch) ** 2, width))
    self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
    self.norm, self.head = _norm(width), nn.Linear(width, num_classes)

  def forward(self, x):
    patches = self.patch_embed(x)
    x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + self.pos_embed
    return self.head(self.norm(self.blocks(x))[:, 0])
