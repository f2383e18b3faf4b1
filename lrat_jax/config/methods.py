"""The methods by name. Each sets a few fields of plain adversarial training: `--config=NAME` and configs/NAME.py.

`--config=lrat:cifar10,pgd,cw` is `lrat("cifar10,pgd,cw")`: the data set's preset, the training attacks and the suite
(`default.default` explains them). Methods for several norms: `at:digits,union` is AVG, `at:digits,msd` is MSD; the
others are `max`, `softmax`, `eat` and `lrat:digits,union`.
"""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from lrat_jax.config import default as base


def at(arg: str | None = None) -> ConfigDict:
  """Adversarial training (Madry et al., arXiv:1706.06083): all variants have equal weight, natural images none."""
  return base.default("at", arg)


def irat(arg: str | None = None) -> ConfigDict:
  """IRAT: global weights across the pairs, GAIRAT's (arXiv:2010.01736), or MAIL's with global_weights.kind=mail."""
  config = base.default("irat", arg)
  config.global_weights.kind = "gairat"
  return config


def lrat(arg: str | None = None) -> ConfigDict:
  """LRAT (arXiv:2106.15776): weight moves inside each pair of a natural image and its variants, never across pairs."""
  config = base.default("lrat", arg)
  config.local_weights.kind = "lrat"
  return config


def lrat_irat(arg: str | None = None) -> ConfigDict:
  """LRAT and IRAT together: local weights inside the pairs, global weights across them."""
  config = base.default("lrat_irat", arg)
  config.local_weights.kind = "lrat"
  config.global_weights.kind = "gairat"
  return config


def max_(arg: str | None = None) -> ConfigDict:
  """MAX (Tramer & Boneh, arXiv:1904.13000): trains only on the most vulnerable of the variants in several norms."""
  config = base.default("max", arg, attack="union")
  config.local_weights.kind = "max"
  config.local_weights.begin_fraction = 0.0
  return config


def softmax(arg: str | None = None) -> ConfigDict:
  """Between AVG (`at` with several attacks) and MAX: variants in several norms, weighted by a softmax."""
  config = base.default("softmax", arg, attack="union")
  config.local_weights.kind = "softmax"
  config.local_weights.begin_fraction = 0.0
  return config


def eat(arg: str | None = None) -> ConfigDict:
  """E-AT (Croce & Hein, arXiv:2105.12508): one norm per batch, drawn in proportion to its robust error."""
  config = base.default("eat", arg, attack="union")
  config.train.variants = base.SAMPLED
  return config


def trades(arg: str | None = None) -> ConfigDict:
  """TRADES (arXiv:1901.08573): cross-entropy on natural images plus beta times the divergence of the variants."""
  config = base.default("trades", arg, attack="kl")
  config.objective = "trades"
  config.beta = 6.0
  return config


def mart(arg: str | None = None) -> ConfigDict:
  """MART (Wang et al., ICLR 2020): boosted cross-entropy plus a divergence weighted by natural confidence."""
  config = base.default("mart", arg)
  config.objective = "mart"
  config.beta = 5.0
  return config


METHODS: dict[str, Callable[[str | None], ConfigDict]] = {
  "at": at,
  "irat": irat,
  "lrat": lrat,
  "lrat_irat": lrat_irat,
  "max": max_,
  "softmax": softmax,
  "eat": eat,
  "trades": trades,
  "mart": mart,
}


def of_run(preset: str, suite: str = "") -> ConfigDict | None:
  """The configuration of a run made with `--config=PRESET`, without overrides; with `suite`, if it is given.

  None if PRESET is a user's file, which is not executed, or contains a name that this version does not know.
  """
  file, _, argument = preset.partition(":")
  path = Path(file)
  name = path.stem if path.suffix == ".py" and path.parent.name == "configs" else file
  if suite:
    kept = [part for part in (argument or "digits").split(",") if not part.startswith("suite=")]
    argument = ",".join([*kept, f"suite={suite}"])
  try:
    return METHODS[name](argument or None)
  except (KeyError, ValueError):
    return None


def get_config(arg: str) -> ConfigDict:
  """The configuration of "NAME" or "NAME:ARG"; `--config=NAME:ARG` loads this file and calls it. Raises ValueError."""
  name, _, rest = arg.partition(":")
  return METHODS[name](rest or None)
