"""The PyTorch side of the speed table: the same train steps, channels_last and autocast, eager or compiled."""

import time

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import step_speed
from benchmarks.accelerator_session.session import NUM_CLASSES, Setting
from tests import torch_definitions

_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def _network(name: str) -> torch.nn.Module:
  sizes = [int(size) for size in name.split("_") if size.isdigit()]
  if name.startswith("wide_resnet"):
    return torch_definitions.WideResNet(*sizes, NUM_CLASSES)
  if name.startswith("cnn"):
    return torch_definitions.cnn(*sizes or [32], NUM_CLASSES)
  return torch_definitions.ResNet18(*sizes or [64], NUM_CLASSES)


class Side:
  """One network in PyTorch with an optimiser; `step` runs a train step."""

  def __init__(self, setting: Setting, num_steps: int, compiled: bool):
    torch.backends.cudnn.benchmark = True
    self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = torch_definitions.Normalised(_network(setting.network), _MEAN, _STD)
    self._network = network.to(self._device, memory_format=torch.channels_last)
    self._model = torch.compile(self._network) if compiled else self._network
    self._optimizer = torch.optim.SGD(self._network.parameters(), 0.01, 0.9, weight_decay=5e-4)
    generator = np.random.default_rng(0)
    images = generator.uniform(size=(setting.batch_size, 32, 32, 3)).astype(np.float32)
    images = torch_definitions.to_torch(images).contiguous(memory_format=torch.channels_last)
    self._images = images.to(self._device)
    self._labels = torch.arange(setting.batch_size, device=self._device) % NUM_CLASSES
    self._num_steps = num_steps

  def _logits(self, images):
    with torch.autocast(self._device.type, dtype=torch.bfloat16):
      return self._model(images).float()

  def _attack(self):
    images, epsilon = self._images, step_speed.EPSILON
    x = (images + torch.empty_like(images).uniform_(-epsilon, epsilon)).clamp(0, 1)
    for _ in range(self._num_steps):
      x.requires_grad_()
      loss = F.cross_entropy(self._logits(x), self._labels, reduction="sum")
      (gradient,) = torch.autograd.grad(loss, x)
      x = x.detach() + step_speed.STEP_SIZE * gradient.sign()
      x = torch.min(torch.max(x, images - epsilon), images + epsilon).clamp(0, 1)
    return x

  def step(self, method: str) -> None:
    """One step of "at" or "lrat"."""
    self._network.eval()
    adversarial = self._attack()
    self._network.train()
    if method == "at":
      loss = F.cross_entropy(self._logits(adversarial), self._labels)
    else:
      natural, logits = self._logits(torch.cat([self._images, adversarial])).chunk(2)
      loss = step_speed.torch_lrat_loss(natural, logits, self._labels)
    self._optimizer.zero_grad()
    loss.backward()
    self._optimizer.step()

  def time(self, method: str, steps: int) -> float:
    """Seconds per step, averaged over `steps`."""
    start = time.perf_counter()
    for _ in range(steps):
      self.step(method)
    if self._device.type == "cuda":
      torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps

  def peak_gib(self) -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if self._device.type == "cuda" else 0.0


def serve(pipe, setting: Setting, num_steps: int, compiled: bool) -> None:
  """In its own process, answers (method, steps) with (seconds per step, peak GiB); an error is sent as text."""
  try:
    side = Side(setting, num_steps, compiled)
    while True:
      pipe.send((side.time(*pipe.recv()), side.peak_gib()))
  except Exception as error:  # any error of PyTorch is shown in the table
    pipe.send(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
