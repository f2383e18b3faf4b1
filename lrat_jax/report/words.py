"""Descriptions of configurations in words, and one-line explanations of the terms of the page."""

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from lrat_jax.config import attack_entries

_NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}
_OBJECTIVES = {"ce": "Adversarial training", "trades": "TRADES", "mart": "MART"}
_LOCAL = {"lrat": "LRAT", "max": "MAX", "softmax": "softmax"}
_GLOBAL = {"gairat": "GAIRAT", "mail": "MAIL"}

_ATTACKS = {
  "fgsm": "One gradient step to the edge of the ball.",
  "pgd": "Projected gradient descent: gradient steps on a loss, each projected back into the ball.",
  "cw": "Projected gradient descent on the margin between the largest wrong logit and the true one.",
  "msd": "Gradient steps in several norms at once: each step is in the norm that raises the loss most.",
  "apgd": "PGD that adapts its own step size, with restarts from the best point found.",
  "square": "A search by random squares that needs no gradients, only the model's outputs.",
  "fab": "A search for the nearest point beyond the decision boundary.",
  "carlini_wagner": "A search for the smallest change (in L2) that fools the model.",
  "ddn": "A search for the smallest change (in L2), on a sphere that shrinks while the model is wrong.",
  "fmn": "A search for the smallest change, in a ball that shrinks while the model is wrong.",
  "deepfool": "Steps onto the nearest decision boundary of the linearised model, until the model is wrong.",
  "ead": "A search for a small change in L1 that fools the model.",
  "hop_skip_jump": "A walk along the decision boundary towards the image, using only the model's predictions.",
  "spsa": "Gradient ascent with gradients that are estimated from the model's outputs.",
  "spatial": "The worst of a grid of rotations and shifts.",
  "corruption": "A corruption such as blur, noise or JPEG, which does not depend on the model.",
  "unforeseen": "Gradient steps on a latent that moves, recolours or covers an image, such as a flow of its pixels.",
  "lpips": "Gradient steps among images whose activations in the model are close to the original's.",
  "autoattack": "A fixed ensemble of attacks (APGD-CE, APGD-T, FAB-T, Square), the usual standard.",
}
_TERMS = {
  "Clean accuracy": "The share of the images that the model classifies correctly without an attack.",
  "Robust accuracy": "The share that the model classifies correctly when clean and also under an attack.",
  "Union": "The share that the model classifies correctly when clean and under every attack of the suite.",
  "Radius": "The largest distance by which an attack may change an image; pixels are in [0, 1].",
  "L∞, L2, L1": "How distance is measured: the largest change of a pixel, the root of the sum of squares, the sum.",
  "Vulnerability": "The largest probability of a wrong class minus that of the true one, in [-1, 1]; above 0: fooled.",
  "Pair, variant": "A training image together with its adversarial variants, one for each training attack.",
  "Local weights": "How the weight of a pair is divided between the image and its variants (LRAT).",
  "Global weight": "The weight of a whole pair relative to other pairs (GAIRAT, MAIL); 1 on average.",
  "Wilson interval": "Contains the true share with 95 % confidence, if the images are a random sample.",
  "Paired bootstrap": "The middle 95 % of the difference over random draws of seeds and images, the same for both.",
  "Rank correlation": "1 if two attacks rank the images in the same order by vulnerability, 0 if there is no relation.",
  "Validation": "Training images held out to select the best epoch; the test images are not used for this.",
}


def threat(entry: Mapping[str, Any]) -> str:
  """What an attack may do, as in `attack_entries.threat`; a norm such as L∞ and its radius have a no-break space."""

  def part(text: str) -> str:
    first, _, rest = text.partition(" ")
    return f"{_NORMS[first]}\u00a0{rest}" if first in _NORMS else text

  return ", ".join(map(part, attack_entries.threat(entry).split(", ")))


def _share(share: float) -> str:
  return f"{100 * share:.3g} % of the epochs"


def _idle(config: ConfigDict) -> bool:
  """Whether all training attacks have radius 0."""
  entries = config.train_attacks.to_dict().values()
  return all(attack_entries.radius(entry) == 0 for entry in entries)


def method(config: ConfigDict) -> str:
  """What was trained, and how, in two sentences."""
  against = "" if _idle(config) else f" against {training_attacks(config)}"
  return (
    f"A {config.model.name} trained on {config.data.source} for {config.train.epochs} epochs{against}. {_how(config)}"
  )


def _how(config: ConfigDict) -> str:
  if _idle(config):
    return "Training on natural images: the training attacks have radius 0."
  sentence = _OBJECTIVES.get(config.objective, config.objective)
  if config.objective != "ce":
    sentence += f" (β = {config.beta:g})"
  weights = []
  if config.local_weights.kind != "none":
    kind = _LOCAL.get(config.local_weights.kind, config.local_weights.kind)
    weights.append(f"local weights inside each pair ({kind}), after {_share(config.local_weights.begin_fraction)}")
  if config.global_weights.kind != "none":
    kind = _GLOBAL.get(config.global_weights.kind, config.global_weights.kind)
    weights.append(f"global weights across pairs ({kind}), after {_share(config.global_weights.begin_fraction)}")
  sentence += f" with {' and '.join(weights)}" if weights else ", with equal weights for all images and variants"
  if config.logit_pairing.weight:
    sentence += f"; logit pairing with the variants of {config.logit_pairing.attack} ({config.logit_pairing.weight:g})"
  if config.awp.gamma:
    sentence += f"; adversarial weight perturbation of {config.awp.gamma:g}"
  if config.train.ema_decay:
    sentence += f"; an average of the weights is evaluated (decay {config.train.ema_decay:g})"
  return f"{sentence}."


def training_attacks(config: ConfigDict) -> str:
  """The training attacks and what each may do."""
  entries = config.train_attacks.to_dict()
  return "; ".join(f"{name} ({threat(entry)})" for name, entry in entries.items())


def glossary(attacks: Iterable[str]) -> dict[str, str]:
  """The terms of the page and the attacks that it names, with their explanations."""
  return _TERMS | {name: _ATTACKS[name] for name in sorted(set(attacks)) if name in _ATTACKS}
