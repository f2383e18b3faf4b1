"""Our minimum-norm, decision- and score-based attacks compared with adversarial-library, Foolbox and torchattacks.

    pip install adv-lib foolbox==3.3.4
    pip install --no-deps torchattacks==3.5.1

`rows` trains a small network on digits, copies its weights to PyTorch, and runs each attack and its reference on the
same images, with the same steps and constants. Norms are medians over the images that the network classifies correctly;
an image without an adversarial example counts as inf. Ours is timed once with compilation and once without.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import torch_models
from benchmarks.attack_references.twins import Twin, timed, trained
from lrat_jax import attacks, data

_TRAINING_STEPS = 400
_JUMPS = 20
_EPSILON, _SPSA_STEPS, _SAMPLES, _LEARNING_RATE = 0.1, 20, 64, 0.02


class Sides(NamedTuple):
  """A network on both sides, and images [n, h, w, c] that it classifies correctly, with their labels [n]."""

  twin: Twin
  images: np.ndarray
  labels: np.ndarray


def _sides(num_images: int) -> Sides:
  digits = data.load("digits")
  twin = trained("cnn_16", digits.train.images, digits.train.labels, _TRAINING_STEPS)
  images, labels = np.asarray(digits.test.images), np.asarray(digits.test.labels)
  right = np.flatnonzero(np.asarray(twin.logits_fn(jnp.asarray(images))).argmax(axis=1) == labels)[:num_images]
  return Sides(twin, images[right], labels[right])


class Pair(NamedTuple):
  """An attack of ours, its reference, and the norm they minimise; None for attacks in a ball, compared by accuracy."""

  name: str
  reference: str
  norm: str | None
  ours: Callable[..., attacks.AttackResult]
  theirs: Callable[[torch.nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]  # images, labels -> adversarial images


_ORDERS = {"l0": 0, "l1": 1, "l2": 2, "linf": float("inf")}


def _adversarial_library() -> Iterator[Pair]:
  import adv_lib.attacks as theirs  # here, so that the other references run without it

  name = "adversarial-library"
  for steps in (100, 1000):
    ours, run = functools.partial(attacks.ddn, num_steps=steps), functools.partial(theirs.ddn, steps=steps, levels=None)
    yield Pair(f"ddn, {steps} steps", name, "l2", ours, run)
  for steps, (norm, order) in itertools.product((100, 1000), _ORDERS.items()):
    ours = functools.partial(attacks.fmn, norm=norm, num_steps=steps)
    yield Pair(f"fmn, {steps} steps", name, norm, ours, functools.partial(theirs.fmn, norm=order, steps=steps))
  for norm in ("l2", "linf"):
    ours = functools.partial(attacks.deepfool, norm=norm, num_steps=50)
    run = functools.partial(theirs.df, norm=_ORDERS[norm], steps=50)
    yield Pair("deepfool, 50 steps", name, norm, ours, run)


def _with_foolbox(attack: Any) -> Callable[..., torch.Tensor]:
  import foolbox

  return lambda network, images, labels: attack.run(
    foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu"), images, foolbox.criteria.Misclassification(labels)
  )


def _foolbox() -> Iterator[Pair]:
  import foolbox

  theirs, name = foolbox.attacks, "Foolbox"
  for norm, attack in (("l2", theirs.L2DeepFoolAttack), ("linf", theirs.LinfDeepFoolAttack)):
    ours = functools.partial(attacks.deepfool, norm=norm, num_steps=50)
    yield Pair("deepfool, 50 steps", name, norm, ours, _with_foolbox(attack(steps=50)))
  search = {"binary_search_steps": 6, "initial_const": 0.1, "confidence": 0.0}
  run = theirs.L2CarliniWagnerAttack(steps=200, stepsize=0.02, abort_early=False, **search)
  ours = functools.partial(attacks.carlini_wagner, num_steps=200, learning_rate=0.02, **search)
  yield Pair("carlini_wagner, 6 x 200 steps", name, "l2", ours, _with_foolbox(run))
  for rule in ("EN", "L1"):
    run = theirs.EADAttack(
      steps=200, initial_stepsize=0.01, regularization=0.01, decision_rule=rule, abort_early=False, **search
    )
    ours = functools.partial(attacks.ead, num_steps=200, decision_rule=rule.lower(), **search)
    yield Pair(f"ead ({rule}), 6 x 200 steps", name, "l1", ours, _with_foolbox(run))
  for norm in ("l2", "linf"):
    run = theirs.HopSkipJumpAttack(steps=_JUMPS, constraint=norm)
    ours = functools.partial(attacks.hop_skip_jump, norm=norm, num_steps=_JUMPS)
    yield Pair(f"hop_skip_jump, {_JUMPS} steps", name, norm, ours, _with_foolbox(run))


def _torchattacks() -> Iterator[Pair]:
  import torchattacks

  def run(network, images, labels):
    attack = torchattacks.SPSA(
      network, eps=_EPSILON, delta=0.01, lr=_LEARNING_RATE, nb_iter=_SPSA_STEPS, nb_sample=_SAMPLES
    )
    return attack(images, labels)

  ours = functools.partial(
    attacks.spsa, epsilon=_EPSILON, num_steps=_SPSA_STEPS, num_samples=_SAMPLES, learning_rate=_LEARNING_RATE
  )
  yield Pair(f"spsa, {_SPSA_STEPS} steps of {_SAMPLES} pairs", "torchattacks", None, ours, run)


def _measured(pair: Pair, images: np.ndarray, adversarial: np.ndarray, success: np.ndarray) -> float:
  """The median norm, with inf for images on which the attack fails; or robust accuracy in percent."""
  if pair.norm is None:
    assert np.abs(adversarial - images).max() <= _EPSILON + 1e-6
    return 100 * float(1 - success.mean())
  lengths = np.linalg.norm((adversarial - images).reshape(len(images), -1), ord=_ORDERS[pair.norm], axis=1)
  return float(np.median(np.where(success, lengths, np.inf)))


def _run_ours(pair: Pair, sides: Sides) -> tuple[float, float, float]:
  """(measured value, seconds with compilation, seconds without)."""
  attack = jax.jit(lambda key, images, labels: pair.ours(key, sides.twin.logits_fn, images, labels))
  arguments = jax.random.key(0), jnp.asarray(sides.images), jnp.asarray(sides.labels)
  _, first = timed(lambda: attack(*arguments))
  result, second = timed(lambda: attack(*arguments))
  return _measured(pair, sides.images, np.asarray(result.images), np.asarray(result.success)), first, second


def _run_theirs(pair: Pair, sides: Sides) -> tuple[float, float]:
  torch.manual_seed(0)
  images = torch_models.to_torch(sides.images).contiguous(memory_format=torch.contiguous_format)
  labels = torch.tensor(sides.labels).long()
  found, seconds = timed(lambda: pair.theirs(sides.twin.network, images, labels).detach())
  with torch.no_grad():
    success = (sides.twin.network(found).argmax(dim=1) != labels).numpy()
  return _measured(pair, sides.images, found.permute(0, 2, 3, 1).numpy(), success), seconds


def rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
  """A row for each attack and reference, on the first `arguments.num_images` that the network classifies correctly."""
  sides, found = _sides(arguments.num_images), []
  for pair in itertools.chain(_adversarial_library(), _foolbox(), _torchattacks()):
    ours, first, second = _run_ours(pair, sides)
    theirs, seconds = _run_theirs(pair, sides)
    measure = f"robust accuracy, linf {_EPSILON}" if pair.norm is None else f"median {pair.norm} norm"
    found.append(
      {
        "attack": pair.name,
        "reference": pair.reference,
        "measure": measure,
        "ours": ours,
        "theirs": theirs,
        "seconds_ours": second,
        "seconds_ours_compiling": first,
        "seconds_theirs": seconds,
      }
    )
  return found
