"""What an entry of a suite or of the training attacks is: its kind, its ball, its cost, and AutoAttack's arguments."""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lrat_jax import attacks
from lrat_jax.attacks import registry, stages, threat_model
from lrat_jax.core import user_code
from lrat_jax.core.arguments import as_number

AUTOATTACK = "autoattack"
# The field of an entry that names the model that is attacked, in place of the one that is evaluated.
SURROGATE = "surrogate"
_AUTOATTACK_FIELDS = ("name", "norm", "epsilon", "version", "attacks_to_run", "overrides")
# "rand" is left out: it is for models that take keys, which no other attack of a suite can pass to them.
_VERSIONS = ("standard", "plus", "apgd")


class Cost(NamedTuple):
  """The maximum cost of an attack per image: gradients of the model, and queries without a gradient."""

  gradients: int = 0
  queries: int = 0


def kinds(entry: Mapping[str, Any]) -> set[tuple[str, str]]:
  """The kinds of an attack, as (loss, ball): the same for FGSM, PGD and APGD, several for an attack in several norms.

  Two attacks of the same kind differ only in steps and radius, so training on one counts as training on the other. A
  corruption is a kind at all severities, and any other attack is a kind of its own in each ball. AutoAttack, and an
  attack on a surrogate, have none: training uses gradients of the model itself.
  """
  name = entry["name"]
  if entry.get(SURROGATE) or is_autoattack(entry):
    return set()
  if is_corruption(entry):
    return {(name, entry["kind"])}
  losses = {"cw": "cw", "fgsm": "ce", "pgd": "ce", "apgd": "ce", "msd": "ce", "unforeseen": "ce"}
  loss = entry.get("loss", losses[name]) if name in losses else name
  return {(loss, where.lower()) for where in entry.get("radii", (ball(entry),))}


def norm(entry: Mapping[str, Any]) -> str | None:
  """The norm of an entry's ball, or the one that its attack minimises, in lower case; None if it has none."""
  if given := entry.get("norm"):
    return given.lower()
  if is_autoattack(entry) or user_code.is_name(entry["name"]):
    return "linf" if "epsilon" in entry else None
  return registry.defaults(entry["name"]).get("norm")


def ball(entry: Mapping[str, Any]) -> str:
  """What an entry's epsilon is measured in: a norm, "lpips", or the kind of latent, each of which has its own ball."""
  if entry["name"] == "unforeseen":
    return entry["kind"]
  if entry["name"] == "lpips":
    return "lpips"
  return norm(entry) or "linf"


def is_autoattack(entry: Mapping[str, Any]) -> bool:
  """Whether an entry of a suite is AutoAttack, which runs on the host and not as one attack on a batch."""
  return entry.get("name") == AUTOATTACK


def is_corruption(entry: Mapping[str, Any]) -> bool:
  """Whether an entry of a suite is a common corruption, which may be read from `data.corruptions`."""
  return entry.get("name") == "corruption"


def takes_features(entry: Mapping[str, Any]) -> bool:
  """Whether an entry's attack needs the features of the model that it attacks."""
  return entry.get("name") == "lpips"


def without_surrogate(entry: Mapping[str, Any]) -> dict[str, Any]:
  """An entry of a suite as `attacks.from_config` takes it: without `surrogate`, which is no field of an attack."""
  return {field: value for field, value in entry.items() if field != SURROGATE}


def is_whole(entry: Mapping[str, Any]) -> bool:
  """Whether an AutoAttack entry runs all four attacks, as its name implies."""
  return entry.get("version", "standard") != "apgd" and not entry.get("attacks_to_run")


def autoattack_arguments(entry: Mapping[str, Any]) -> dict[str, Any]:
  """The keyword arguments of `attacks.autoattack` for an entry of a suite.

  Raises:
    ValueError: an unknown or missing argument, or a version that a suite cannot run.
  """
  arguments = {name: value for name, value in entry.items() if name != "name"}
  unknown = sorted(set(entry) - set(_AUTOATTACK_FIELDS))
  if unknown:
    raise ValueError(
      f"{unknown[0]}={entry[unknown[0]]!r} is not an argument of 'autoattack'; choose from "
      f"{sorted(_AUTOATTACK_FIELDS)}."
    )
  if "epsilon" not in arguments:
    raise ValueError("epsilon is missing for 'autoattack'.")
  if arguments.setdefault("version", "standard") not in _VERSIONS:
    raise ValueError(f"version={arguments['version']!r} is unknown; choose from {sorted(_VERSIONS)}.")
  arguments["norm"] = threat_model.norm_name(arguments.get("norm", "linf"))
  arguments["epsilon"] = as_number(arguments["epsilon"], "epsilon")
  return arguments


def changed_stages(entry: Mapping[str, Any], image_shape: tuple[int, ...], num_classes: int) -> list[attacks.Attack]:
  """The attacks of an AutoAttack entry whose arguments differ from the version's, so that they can be checked.

  Raises:
    ValueError: the entry cannot run on images [h, w, c] with `num_classes` classes.
  """
  arguments = autoattack_arguments(entry)
  threat_model.check_epsilon(arguments["epsilon"], arguments["norm"], image_shape)
  attacks_to_run, overrides = arguments.get("attacks_to_run"), arguments.get("overrides") or {}
  planned, _ = stages.stages(arguments["version"], arguments["norm"], num_classes, attacks_to_run, overrides)
  threat = {"norm": arguments["norm"], "epsilon": arguments["epsilon"]}
  built = [attacks.from_config({"name": stage.attack} | threat | dict(stage.arguments)) for stage in planned]
  return [
    functools.partial(attack, target_rank=1) if stage.targeted else attack
    for stage, attack in zip(planned, built, strict=True)
    if stage.name in overrides
  ]


def _autoattack_cost(entry: Mapping[str, Any], num_classes: int) -> Cost:
  arguments = autoattack_arguments(entry)
  overrides = arguments.get("overrides") or {}
  planned, _ = stages.stages(
    arguments["version"], arguments["norm"], num_classes, arguments.get("attacks_to_run"), overrides
  )
  queries = (cost({"name": "square"} | dict(stage.arguments)) for stage in planned if stage.attack == "square")
  gradients = sum(stage.rounds * stage.gradient_calls(arguments["norm"]) for stage in planned)
  return Cost(gradients, sum(found.queries for found in queries))


def cost(entry: Mapping[str, Any], num_classes: int = 10) -> Cost:
  """The cost of an entry of a suite, or of a training attack, for one image that stays robust.

  The one or two final queries of an attack are not counted, nor are HopSkipJump's binary searches (a tenth of its
  queries or less). A user-defined attack is assumed to take one gradient per step.
  """
  if is_autoattack(entry):
    return _autoattack_cost(entry, num_classes)
  given = registry.defaults(entry["name"]) | dict(entry)
  steps = given.get("num_steps", 0) * given.get("num_restarts", 1)
  match entry["name"]:
    case "fgsm":
      return Cost(1)
    case "apgd":
      return Cost(
        stages.apgd_gradients(given["num_steps"], threat_model.norm_name(given["norm"])) * given["num_restarts"]
      )
    case "fab":
      return Cost(steps * num_classes)
    case "carlini_wagner":
      return Cost(steps * given["binary_search_steps"])
    case "msd":
      return Cost(steps, queries=steps * len(given["radii"]))
    case "ead":
      return Cost(*2 * [steps * given["binary_search_steps"]])
    case "deepfool":
      return Cost(steps * (min(given["candidates"], num_classes) - 1))
    case "spsa":
      return Cost(queries=steps * (2 * given["num_samples"] + 1))
    case "hop_skip_jump":
      counts = (given["initial_num_evals"] * math.sqrt(step + 1) for step in range(steps))
      return Cost(queries=sum(min(int(count), given["max_num_evals"]) for count in counts))
    case "lpips":
      rounds = steps * given["num_rounds"]
      return Cost(rounds, queries=rounds)
    case "square":
      return Cost(queries=given["num_queries"])
    case "spatial":
      return Cost(queries=given["num_rotations"] * given["num_translations"] ** 2)
  return Cost(steps)


def radius(entry: Mapping[str, Any]) -> float | None:
  """An entry's epsilon as a number; None if it has none."""
  return as_number(entry["epsilon"], "epsilon") if "epsilon" in entry else None


def threat(entry: Mapping[str, Any]) -> str:
  """The threat model of an entry, as readable text: "linf 8/255, 20 steps of 2/255", "fog, severity 3"."""
  words = [f"{ball(entry)} {entry['epsilon']}"] if "epsilon" in entry else []
  words += [f"{norm} {radius}" for norm, radius in entry.get("radii", {}).items()]
  if user_code.is_name(entry["name"]):  # its author defines its fields
    return ", ".join(words + [f"{k} {v}" for k, v in entry.items() if k not in ("name", "norm", "epsilon")])
  if entry.get(SURROGATE):
    words.append(f"made on {entry[SURROGATE]}")
  if "severity" in entry:
    return f"{entry['kind']}, severity {entry['severity']}"
  if "step_size" in entry:
    words.append(f"{entry['num_steps']} steps of {entry['step_size']}")
  elif "num_steps" in entry:
    words.append(f"{entry['num_steps']} steps")
  if "version" in entry:
    words.append(f"{entry['version']} version")
  if "max_rotation" in entry:
    words.append(f"{entry['max_rotation']:g} degrees, {entry.get('max_translation', 3.0):g} pixels")
  return ", ".join(words)
