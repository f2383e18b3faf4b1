"""`attacks.unforeseen` and `attacks.lpips` compared with their references: same network, images, radius and steps.

    pip install torch torchvision recoloradv perceptual-advex
    git clone https://github.com/ddkang/advex-uar PEERS/advex-uar
    git clone https://github.com/centerforaisafety/adversarial-corruptions PEERS/adversarial-corruptions
    python -m benchmarks.attack_references --table=latent --peers=PEERS

The network is small, trained here on scikit-learn's digits in random colours at 32x32, and has a twin in PyTorch.
For StAdv and ReColorAdv, the reference is the attack of MultiRobustBench: 20 steps of Adam on the margin, with a
penalty on rough flows and colour maps, which ours does not have. The other references take steps of epsilon / sqrt(20),
as ours. Robust accuracies are means over seeds if the attack is random, and seconds are those of the last seed. LPIPS
uses the network's own activations on both sides.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from sklearn import datasets

from benchmarks.attack_references import latent_peers
from benchmarks.attack_references.latent_peers import NUM_STEPS
from benchmarks.attack_references.twins import Twin, timed, trained
from lrat_jax import attacks, models

_SEEDS = 3
_TRAINING_IMAGES, _TRAINING_STEPS = 1500, 300
# The number of copies of each training image, and the standard deviation of the noise on each copy.
_COPIES, _NOISE = 4, 0.05
_MULTIROBUSTBENCH, _UAR, _CORRUPTIONS = "recoloradv (MultiRobustBench)", "advex-uar", "adversarial-corruptions"
_NETWORK, _NUM_CLASSES = "cnn_8", 10
# kind -> (radius, reference).
STRENGTHS = {
  "stadv": (0.05, _MULTIROBUSTBENCH),
  "elastic": (0.5, _UAR),
  "recolor": (0.05, _MULTIROBUSTBENCH),
  "jpeg_linf": (0.1, _UAR),
  "jpeg_l1": (10.0, _UAR),
  "hsv": (0.03, _CORRUPTIONS),
  "pixel": (5.0, _CORRUPTIONS),
  "gabor": (0.03, _CORRUPTIONS),
  "fog": (0.4, _CORRUPTIONS),
  "glitch": (0.05, _CORRUPTIONS),
  "lpips": (0.2, "perceptual-advex"),
}


def _coloured_digits() -> tuple[np.ndarray, np.ndarray]:
  """scikit-learn's digits at 32x32, each in two random colours: images [n, 32, 32, 3] and labels."""
  found = datasets.load_digits()
  generator = np.random.default_rng(0)
  order = generator.permutation(len(found.target))
  shares = (found.images[order] / 16).repeat(4, axis=1).repeat(4, axis=2)[..., None]
  back, front = (generator.uniform(low, high, (len(order), 1, 1, 3)) for low, high in ((0.0, 0.45), (0.55, 1.0)))
  return (back + shares * (front - back)).astype(np.float32), found.target[order].astype(np.int32)


def _trained(images: np.ndarray, labels: np.ndarray) -> Twin:
  """A small network, trained on these digits."""
  images = np.concatenate([images] * _COPIES)
  noise = np.random.default_rng(1).normal(0, _NOISE, images.shape).astype(np.float32)
  return trained(_NETWORK, np.clip(images + noise, 0, 1), np.concatenate([labels] * _COPIES), _TRAINING_STEPS)


def _attack(kind: str, epsilon: float, twin: Twin) -> attacks.Attack:
  if kind != "lpips":
    return functools.partial(attacks.unforeseen, kind=kind, epsilon=epsilon, num_steps=NUM_STEPS)
  features_fn = functools.partial(models.features, models.create(_NETWORK, _NUM_CLASSES), twin.logits_fn.args[0])
  return functools.partial(attacks.lpips, epsilon=epsilon, features_fn=features_fn, num_steps=NUM_STEPS)


def _ours(kind: str, epsilon: float, twin: Twin, images: np.ndarray, labels: np.ndarray) -> tuple[list[float], float]:
  """The robust accuracy by seed, and the seconds of a call."""
  found = _attack(kind, epsilon, twin)
  attack = jax.jit(lambda keys, x, y: found(keys, twin.logits_fn, x, y).success)
  left = []
  for seed in range(_SEEDS):
    keys = attacks.example_keys(jax.random.key(seed), np.arange(len(labels)))
    success, seconds = timed(lambda keys=keys: attack(keys, images, labels))
    left.append(1 - float(success.mean()))
  return left, seconds


def _theirs(
  attack: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
  twin: Twin,
  images: np.ndarray,
  labels: np.ndarray,
  num_seeds: int,
) -> tuple[list[float], float]:
  """The same for a reference."""
  inputs, targets = latent_peers.to_torch(images), torch.tensor(labels).long()
  left = []
  for seed in range(num_seeds):
    torch.manual_seed(seed)
    adversarial, seconds = timed(lambda: attack(inputs.clone(), targets).detach())
    left.append(float((twin.network(adversarial).argmax(1) == targets).float().mean()))
  return left, seconds


def rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
  """For each kind, the robust accuracies under our attack and under the reference, and seconds per call.

  Args:
    arguments: `peers`, the folder with the clones, and `num_images`.
  """
  images, labels = _coloured_digits()
  twin = _trained(images[:_TRAINING_IMAGES], labels[:_TRAINING_IMAGES])
  chosen = slice(_TRAINING_IMAGES, _TRAINING_IMAGES + arguments.num_images)
  images, labels = images[chosen], labels[chosen]
  found = []
  for kind, (epsilon, reference) in STRENGTHS.items():
    ours, seconds = _ours(kind, epsilon, twin, images, labels)
    num_seeds = 1 if reference == _MULTIROBUSTBENCH else _SEEDS  # it is deterministic
    with latent_peers.on_cpu(arguments.peers):
      attack = latent_peers.peer(kind, reference, twin.network, epsilon)
      theirs, their_seconds = _theirs(attack, twin, images, labels, num_seeds)
    found.append(
      {
        "attack": kind,
        "reference": reference,
        "measure": f"robust accuracy at {epsilon:g}, {NUM_STEPS} steps, {len(labels)} images",
        "ours": float(np.mean(ours)),
        "theirs": float(np.mean(theirs)),
        "seconds_ours": seconds,
        "seconds_theirs": their_seconds,
      }
    )
  return found
