"""Our targeted and transferred attacks compared with torchattacks and Foolbox, on the same networks and images.

    pip install foolbox==3.3.4
    pip install --no-deps torchattacks==3.5.1

`rows` trains two small networks on digits, enlarged and in three equal channels (torchattacks' TI-FGSM takes three):
one is attacked, the other is evaluated on the same adversarial images. Both are copied to PyTorch. Steps, radius and
constants are the same on both sides. Attacks without random numbers should give the same images except for the sign of
gradients that are nearly 0. For random attacks, shares are means over seeds: in DI-FGSM, torchattacks draws one size
and position per step for the whole batch, and ours one for each image, including positions at the far edges.
"""

import argparse
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import torch_models
from benchmarks.attack_references.twins import Twin, timed, trained
from lrat_jax import attacks, data
from lrat_jax.attacks import transforms

_SEEDS = 3
_TRAINING_STEPS = 200
_EPSILON, _STEP_SIZE, _NUM_STEPS = 0.1, 0.02, 10
_KERNEL = 15
# Pixels agree if they differ by less than this; steps with opposite signs differ by 0.04.
_SAME = 1e-4


class Pair(NamedTuple):
  """An attack of ours and its reference; `drawn`: both draw random numbers, so that images differ."""

  name: str
  reference: str
  targeted: bool
  drawn: bool
  ours: Callable[..., attacks.AttackResult]
  theirs: Callable[[torch.nn.Module, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _enlarged(images: np.ndarray) -> np.ndarray:
  """[n, 8, 8, 1] -> [n, 24, 24, 3]."""
  return np.asarray(images, np.float32).repeat(3, axis=1).repeat(3, axis=2).repeat(3, axis=3)


def _torchattacks() -> Iterator[Pair]:
  import torchattacks as theirs  # here, so that the other reference runs without it

  shared = {"eps": _EPSILON, "alpha": _STEP_SIZE, "steps": _NUM_STEPS}

  def run(make, targeted, network, images, labels, targets):
    attack = make(network, **shared)
    if targeted:
      attack.set_mode_targeted_by_label(quiet=True)
    return attack(images, targets if targeted else labels)

  tim = {"len_kernel": _KERNEL, "diversity_prob": 0.0}
  yield from (
    Pair(
      name, "torchattacks", targeted, drawn, functools.partial(attacks.pgd, **ours), functools.partial(run, *reference)
    )
    for name, targeted, drawn, ours, reference in (
      ("PGD", True, False, {}, (functools.partial(theirs.PGD, random_start=False), True)),
      ("PGD, random start", True, True, {"random_start": "uniform"}, (theirs.PGD, True)),
      ("MI-FGSM", False, False, {"gradient_transform": "momentum"}, (theirs.MIFGSM, False)),
      ("MI-FGSM", True, False, {"gradient_transform": "momentum"}, (theirs.MIFGSM, True)),
      ("NI-FGSM", False, False, {"gradient_transform": "nesterov"}, (theirs.NIFGSM, False)),
      (
        "TI-FGSM",
        False,
        False,
        {"gradient_transform": "translation"},
        (functools.partial(theirs.TIFGSM, **tim), False),
      ),
      (
        "TI-MI-FGSM",
        False,
        False,
        {"gradient_transform": ("translation", "momentum")},
        (functools.partial(theirs.TIFGSM, decay=1.0, **tim), False),
      ),
      ("DI-FGSM", False, True, {"gradient_transform": "diversity"}, (theirs.DIFGSM, False)),
      (
        "DI-MI-FGSM, probability 1, rate 0.7",
        False,
        True,
        {"gradient_transform": transforms.chain(transforms.diversity(1.0, 0.7), transforms.momentum())},
        (functools.partial(theirs.DIFGSM, decay=1.0, diversity_prob=1.0, resize_rate=0.7), False),
      ),
    )
  )


def _foolbox() -> Iterator[Pair]:
  import foolbox

  def run(attack, network, images, labels, targets):
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    return attack(model, images, foolbox.criteria.TargetedMisclassification(targets), epsilons=_EPSILON)[1]

  for name, start in (("PGD", False), ("PGD, random start", True)):
    attack = foolbox.attacks.LinfPGD(abs_stepsize=_STEP_SIZE, steps=_NUM_STEPS, random_start=start)
    ours = functools.partial(attacks.pgd, random_start="uniform" if start else "none")
    yield Pair(name, "Foolbox", True, start, ours, functools.partial(run, attack))


def _run(pair: Pair, twin: Twin, images: np.ndarray, labels: np.ndarray, targets: np.ndarray, seed: int):
  """Both sides' images [n, h, w, c], and seconds: ours without compilation, and theirs."""
  shared = {"epsilon": _EPSILON, "step_size": _STEP_SIZE, "num_steps": _NUM_STEPS, "random_start": "none"}
  fields = shared | pair.ours.keywords | ({"targets": jnp.asarray(targets)} if pair.targeted else {})
  attack = jax.jit(lambda images: attacks.pgd(jax.random.key(seed), twin.logits_fn, images, labels, **fields).images)
  timed(lambda: attack(images))  # compiles
  ours, seconds_ours = timed(lambda: attack(images))
  torch.manual_seed(seed)
  tensors = [torch.tensor(values).long() for values in (labels, targets)]
  pixels = torch_models.to_torch(images).contiguous(memory_format=torch.contiguous_format)
  theirs, seconds_theirs = timed(lambda: pair.theirs(twin.network, pixels, *tensors).detach())
  return (np.asarray(ours), theirs.permute(0, 2, 3, 1).numpy()), {
    "seconds_ours": seconds_ours, "seconds_theirs": seconds_theirs,
  }  # fmt: skip


def rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
  """Rows for each attack and reference, on the first `arguments.num_images` that both networks classify correctly.

  Measures in percent: the share of images on which an attack succeeds (another class, or the target), on the attacked
  network and on the other one; and the share of pixels on which both sides' images agree.
  """
  digits = data.load("digits")
  twin, other = (
    trained(name, _enlarged(digits.train.images), digits.train.labels, _TRAINING_STEPS, seed)
    for name, seed in (("cnn_16", 0), ("cnn_12", 1))
  )
  images, labels = _enlarged(digits.test.images), np.asarray(digits.test.labels)
  right = np.logical_and(*(np.asarray(side.logits_fn(images)).argmax(axis=1) == labels for side in (twin, other)))
  chosen = np.flatnonzero(right)[: arguments.num_images]
  images, labels = images[chosen], labels[chosen]
  targets = (labels + 1) % digits.num_classes
  found = []
  for pair in (*_torchattacks(), *_foolbox()):
    runs = [_run(pair, twin, images, labels, targets, seed) for seed in range(_SEEDS if pair.drawn else 1)]
    seconds = {side: float(np.mean([taken[side] for _, taken in runs])) for side in ("seconds_ours", "seconds_theirs")}
    about = {"attack": pair.name + (", targeted" if pair.targeted else ""), "reference": pair.reference}
    for where, network in (("", twin), (" on another network", other)):
      answers = np.array([[network.logits_fn(side).argmax(axis=1) for side in results] for results, _ in runs])
      ours, theirs = 100 * np.mean(answers == targets if pair.targeted else answers != labels, axis=(0, 2))
      shares = {"ours": float(ours), "theirs": float(theirs)}
      found.append(about | {"measure": f"success{where}, %"} | shares | seconds)
    if not pair.drawn:
      mine, other_side = runs[0][0]
      same = 100 * float(np.mean(np.abs(mine - other_side) < _SAME))
      found.append(about | {"measure": "pixels that agree, %", "ours": same, "theirs": 100.0} | seconds)
  return found
