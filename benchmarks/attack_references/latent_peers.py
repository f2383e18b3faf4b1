"""The references of `latent`: their code on a CPU, and their attacks as functions of (images, labels).

The elastic attack was written for a `grid_sample` that aligns corners, PyTorch's default then; it is given that one.
"""

import contextlib
import functools
import math
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

NUM_STEPS = 20
SIDE = 32


@contextlib.contextmanager
def on_cpu(peers: Path) -> Iterator[None]:
  """Makes the clones importable, and keeps on the CPU what they would put on a GPU."""
  import torch
  from torch.overrides import TorchFunctionMode

  class OnCPU(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
      kwargs = dict(kwargs or {})
      if kwargs.get("device") == "cuda":
        kwargs["device"] = "cpu"
      return args[0] if function is torch.Tensor.cuda else function(*args, **kwargs)

  added = [str(peers / name) for name in ("advex-uar", "adversarial-corruptions")]
  with mock.patch.object(sys, "path", [*added, *sys.path]), OnCPU():
    import config  # of adversarial-corruptions, read as its modules are imported

    config.device = "cpu"
    yield


@contextlib.contextmanager
def aligned_corners() -> Iterator[None]:
  import torch.nn.functional as F

  sample = F.grid_sample
  with mock.patch.object(F, "grid_sample", lambda *args, **options: sample(*args, **options | {"align_corners": True})):
    yield


@contextlib.contextmanager
def _without_a_shift() -> Iterator[None]:
  """Corrects glitch's sampling positions by half a pixel; otherwise the image moves by that, even at radius 0."""
  import torch.nn.functional as F
  from attacks import glitch

  shifted = lambda images, places, **options: F.grid_sample(images, places + 1 / SIDE, **options)
  # Patches only the module's F: a patched torch.nn.functional would be called twice under `on_cpu`.
  with mock.patch.object(glitch, "F", types.SimpleNamespace(grid_sample=shifted, cross_entropy=F.cross_entropy)):
    yield


def to_torch(array: np.ndarray):
  """[n, h, w, c] -> [n, c, h, w]."""
  import torch

  return torch.tensor(np.asarray(array)).permute(0, 3, 1, 2).contiguous()


def _multirobustbench(kind: str, network, epsilon: float):
  """StAdv or ReColorAdv as MultiRobustBench calls them."""
  import torch
  from recoloradv import color_spaces, color_transformers, perturbations
  from recoloradv.mister_ed import adversarial_attacks, adversarial_perturbations, loss_functions, spatial_transformers

  bound = {"lp_style": "inf", "lp_bound": epsilon}
  if kind == "stadv":
    penalty = 0.0025
    options = bound | {"xform_class": spatial_transformers.FullSpatial, "use_stadv": True}
    threat = adversarial_perturbations.ThreatModel(adversarial_perturbations.ParameterizedXformAdv, options)
  else:
    penalty = 0.0036
    sizes = {"resolution_x": 16, "resolution_y": 32, "resolution_z": 32}
    space = {"cspace": color_spaces.CIELUVColorSpace(), "xform_params": sizes, "use_smooth_loss": True}
    options = bound | space | {"xform_class": color_transformers.FullSpatial}
    threat = adversarial_perturbations.ThreatModel(perturbations.ReColorAdv, options)
  normal = torch.nn.Identity()
  parts = {
    "cw": loss_functions.CWLossF6(network, normal, kappa=float("inf")),
    "pert": loss_functions.PerturbationNormLoss(lp=2),
  }
  loss = loss_functions.RegularizedLoss(parts, {"cw": 1.0, "pert": penalty / epsilon}, negate=True)
  attack = adversarial_attacks.PGD(network, normal, threat, loss, manual_gpu=False)
  steps = {"optimizer": torch.optim.Adam, "optimizer_kwargs": {"lr": epsilon / (NUM_STEPS - 2)}, "signed": False}
  run = functools.partial(attack.attack, num_iterations=NUM_STEPS, verbose=False, **steps)
  return lambda images, labels: run(images, labels).adversarial_tensors()


def _advex_uar(kind: str, network, epsilon: float):
  import torch
  from advex_uar.attacks import attacks, elastic_attack, jpeg_attack

  step = epsilon / math.sqrt(NUM_STEPS)
  if kind == "elastic":
    attack = elastic_attack.ElasticAttack(
      NUM_STEPS, epsilon, step, SIDE, kernel_size=5, kernel_std=3 / 224 * SIDE, scale_each=True
    )
  else:
    attack = jpeg_attack.JPEGAttack(NUM_STEPS, epsilon, step, SIDE, opt=kind.removeprefix("jpeg_"), scale_each=True)
  back = attacks.InverseImagenetTransform(SIDE)

  class Times(torch.nn.Module):
    def __init__(self, factor):
      super().__init__()
      self.factor = factor

    def forward(self, x):
      return self.factor * x

  class Normalised(torch.nn.Module):
    def forward(self, x):
      return network(back(x) / 255)

  attack.transform, attack.inverse_transform = Times(1 / 255), Times(255)

  run = lambda images, labels: attack(Normalised().eval(), images, labels, scale_eps=False, avoid_target=True)

  def aligned(images, labels):
    with aligned_corners():
      return run(images, labels)

  return aligned if kind == "elastic" else run


def _adversarial_corruptions(kind: str, network, epsilon: float):
  from attacks import fog, gabor, glitch, hsv, pixel

  steps = {"epsilon": epsilon, "num_steps": NUM_STEPS, "step_size": epsilon / math.sqrt(NUM_STEPS)}
  # The constants of its attack_params_cifar10_default.conf.
  attack = {
    "hsv": lambda: hsv.HSVAdversary(**steps, distance_metric="linf", kernel_size=3, sigma=3.0),
    "pixel": lambda: pixel.PixelAdversary(**steps, distance_metric="l2", pixel_size=4),
    "gabor": lambda: gabor.GaborAdversary(
      **steps, distance_metric="linf", kernel_size=23, sides=3, sigma=3, weight_density=0.1
    ),
    "fog": lambda: fog.FogAdversary(**steps, distance_metric="linf", wibbledecay=3),
    "glitch": lambda: glitch.GlitchAdversary(**steps, num_lines=16, grey_strength=0),
  }[kind]()

  def run(images, labels):
    with _without_a_shift() if kind == "glitch" else contextlib.nullcontext():
      return attack(network, images, labels)

  return run


def _perceptual(kind: str, network, epsilon: float):
  """LPA with the network's own activations and the constants of its authors."""
  import torch
  from perceptual_advex import models, perceptual_attacks

  class WithFeatures(models.FeatureModel):
    def features_logits(self, x):
      found, x = [], (x - network.mean) / network.std
      for layer in network.network:
        x = layer(x)
        if isinstance(layer, torch.nn.ReLU) and x.ndim == 4:
          found.append(x)
      return tuple(found), x

    def features(self, x):
      return self.features_logits(x)[0]

    def forward(self, x):
      return network(x)

  return perceptual_attacks.LagrangePerceptualAttack(WithFeatures(), bound=epsilon, num_iterations=NUM_STEPS)


def peer(kind: str, reference: str, network: Any, epsilon: float) -> Callable[[Any, Any], Any]:
  """A reference's attack of that kind on a PyTorch network: (images [n, c, h, w], labels [n]) -> adversarial images."""
  maker = {
    "recoloradv (MultiRobustBench)": _multirobustbench,
    "advex-uar": _advex_uar,
    "perceptual-advex": _perceptual,
  }
  return maker.get(reference, _adversarial_corruptions)(kind, network, epsilon)
