"""The attacks of an evaluation: the suites that a configuration can name, and AutoAttack as an entry of a suite."""

import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from lrat_jax import attacks
from lrat_jax.attacks import corruptions, latents, registry, stages, threat_model
from lrat_jax.core import user_code
from lrat_jax.core.arguments import as_number

AUTOATTACK = "autoattack"
_AUTOATTACK_FIELDS = ("name", "norm", "epsilon", "version", "attacks_to_run", "overrides")
# A few of the noise, blur, weather and digital corruptions, for a suite with one severity of each.
_FEW_CORRUPTIONS = (
  "gaussian_noise",
  "impulse_noise",
  "gaussian_blur",
  "brightness",
  "contrast",
  "pixelate",
  "jpeg_compression",
)
# "rand" is left out: it is for models that take keys, which no other attack of a suite can pass to them.
_VERSIONS = ("standard", "plus", "apgd")


class Cost(NamedTuple):
  """The maximum cost of an attack per image: gradients of the model, and queries without a gradient."""

  gradients: int = 0
  queries: int = 0


Budget = Mapping[str, Any]
Suite = dict[str, dict[str, Any]]


NORMS = ("linf", "l2", "l1")
# The field of an entry that names the model that is attacked, in place of the one that is evaluated.
SURROGATE = "surrogate"
# Radii of LPIPS, measured with a model's own features; the paper trains with 0.5.
_LPIPS = ("0.25", "0.5", "1")


def iterated(budget: Budget, norm: str, num_steps: int, **arguments: Any) -> dict[str, Any]:
  """An iterative attack with a preset's radius and step size in a norm."""
  epsilon, step_size = budget[norm]
  return dict(norm=norm, epsilon=epsilon, step_size=step_size, num_steps=num_steps, num_restarts=1, **arguments)


def _times(length: str, factor: float) -> str:
  numerator, _, denominator = length.partition("/")
  return f"{float(numerator) * factor:.6g}" + (f"/{denominator}" if denominator else "")


def with_radius(budget: Budget, norm: str, radius: str) -> Budget:
  """A preset's budget with another radius in a norm; the step size stays the same share of the radius.

  Raises:
    ValueError: the radius is not a number above 0.
  """
  old_radius, old_step_size = budget[norm]
  if as_number(radius, norm) <= 0:
    raise ValueError(f"{norm}={radius} must be above 0.")
  share = as_number(old_step_size, "step_size") / as_number(old_radius, "epsilon")
  return {**budget, norm: (radius, _times(radius, share))}


def _autoattack(budget: Budget, version: str, norm: str = "linf") -> dict[str, Any]:
  return dict(name=AUTOATTACK, norm=norm, epsilon=budget[norm][0], version=version)


def _pgd(budget: Budget) -> Suite:
  """A quick evaluation: FGSM, and 20 steps of a tenth of the radius on each of two losses."""
  epsilon = budget["linf"][0]
  fine = dict(budget, linf=(epsilon, _times(epsilon, 0.1)))
  return {
    "fgsm": dict(name="fgsm", norm="linf", epsilon=epsilon, loss="ce"),
    "pgd20": iterated(fine, "linf", 20, name="pgd", loss="ce", random_start="uniform"),
    "cw20": iterated(fine, "linf", 20, name="cw", random_start="uniform"),
  }


def _other_norms(budget: Budget) -> Suite:
  """Attacks in norms that training does not use by default, and one without a norm."""
  apgd = dict(name="apgd", loss="ce", num_steps=100, num_restarts=1)
  rotation, translation = budget["spatial"]
  return {
    "apgd_l2": dict(apgd, norm="l2", epsilon=budget["l2"][0]),
    "apgd_l1": dict(apgd, norm="l1", epsilon=budget["l1"][0]),
    "spatial": dict(name="spatial", max_rotation=rotation, max_translation=translation),
  }


def _latent(kind: str, strength: float) -> dict[str, Any]:
  return dict(name="unforeseen", kind=kind, epsilon=f"{strength:g}", num_steps=20, loss="ce", num_restarts=1)


def _unforeseen(budget: Budget) -> Suite:
  """AutoAttack, and attacks that are not used in training: in other norms, and without a norm."""
  search = dict(binary_search_steps=6, num_steps=200, learning_rate=0.02, initial_const=0.1)
  return {
    AUTOATTACK: _autoattack(budget, "standard"),
    "carlini_wagner": dict(name="carlini_wagner", norm="l2", epsilon=budget["l2"][0], **search),
    **_other_norms(budget),
    **{kind: _latent(kind, found.strengths[(len(found.strengths) - 1) // 2]) for kind, found in latents.KINDS.items()},
    **{kind: dict(name="corruption", kind=kind, severity=3) for kind in _FEW_CORRUPTIONS},
  }


def _lpips(budget: Budget) -> Suite:
  """Balls of LPIPS, measured with the model's own features; the same for every data set."""
  entry = dict(name="lpips", num_steps=40, num_rounds=5)
  return {f"lpips@{level}": dict(entry, epsilon=epsilon) for level, epsilon in enumerate(_LPIPS, 1)}


def _transfer(budget: Budget) -> Suite:
  """PGD with momentum on another model, which `surrogate` must name, with steps of a tenth of the radius."""
  epsilon = budget["linf"][0]
  fine = dict(budget, linf=(epsilon, _times(epsilon, 0.1)))
  options = dict(random_start="none", gradient_transform="momentum")
  return {"transfer": iterated(fine, "linf", 20, name="pgd", loss="ce", surrogate="", **options)}


def _corruptions(budget: Budget) -> Suite:
  """The fifteen kinds of the mean corruption accuracy, at all severities; the same for every data set."""
  severities = range(1, corruptions.SEVERITIES + 1)
  return {
    f"{kind}@{severity}": dict(name="corruption", kind=kind, severity=severity)
    for kind in corruptions.STANDARD
    for severity in severities
  }


def _multirobustbench(budget: Budget) -> Suite:
  """MultiRobustBench's families, except LPIPS, at five evenly spaced strengths: `NAME@1` to `NAME@5`.

  Norms: from half the preset's radius to two and a half times it. Others: every fourth of the twenty strengths.
  """
  apgd = dict(name="apgd", loss="ce", num_steps=100, num_restarts=1)
  radii = {norm: budget[norm][0] for norm in NORMS}
  ladders = {
    f"apgd_{norm}": [dict(apgd, norm=norm, epsilon=_times(radius, level / 2)) for level in range(1, 6)]
    for norm, radius in radii.items()
  }
  for kind in ("stadv", "elastic", "recolor", "jpeg_linf", "jpeg_l1"):
    ladders[kind] = [_latent(kind, strength) for strength in latents.KINDS[kind].strengths[3::4]]
  return {f"{name}@{level}": entry for name, ladder in ladders.items() for level, entry in enumerate(ladder, 1)}


def _apgd(budget: Budget) -> Suite:
  """The default: 20 steps on two losses, and APGD-CE + APGD-T, whose robust accuracy is close to AutoAttack's."""
  pgd = _pgd(budget)
  return {"pgd20": pgd["pgd20"], "cw20": pgd["cw20"], "apgd": _autoattack(budget, "apgd")}


def _full(budget: Budget, name: str = AUTOATTACK, version: str = "standard") -> Suite:
  """The default of `lrat_jax.compare`: PGD, which most training uses, other attacks, and all of AutoAttack."""
  pgd = _pgd(budget)
  square = dict(name="square", norm="linf", epsilon=budget["linf"][0], num_queries=1000)
  return {
    "pgd20": pgd["pgd20"],
    "cw20": pgd["cw20"],
    "square": square,
    **_other_norms(budget),
    name: _autoattack(budget, version),
  }


SUITES: dict[str, Callable[[Budget], Suite]] = {
  "pgd": _pgd,
  "apgd": _apgd,
  "autoattack": lambda budget: {"autoattack": _autoattack(budget, "standard")},
  "unforeseen": _unforeseen,
  "multirobustbench": _multirobustbench,
  "corruptions": _corruptions,
  "lpips": _lpips,
  "transfer": _transfer,
  "union": lambda budget: {f"apgd_{norm}": _autoattack(budget, "apgd", norm) for norm in NORMS},
  "autoattack_union": lambda budget: {f"autoattack_{norm}": _autoattack(budget, "standard", norm) for norm in NORMS},
  "full": _full,
  "full_apgd": functools.partial(_full, name="apgd", version="apgd"),  # if four attacks would take too long
}
DEFAULT = "apgd"


def kinds(entry: Mapping[str, Any]) -> set[tuple[str, str]]:
  """The kinds of an attack, as (loss, ball): the same for FGSM, PGD and APGD; empty if it maximises no loss in a ball.

  Two attacks of the same kind differ only in steps and radius, so training on one counts as training on the other. A
  user-defined attack is a kind of its own.
  """
  if entry.get(SURROGATE):  # training uses gradients of the model itself
    return set()
  if user_code.is_name(entry["name"]):
    return {(entry["name"], entry.get("norm", "linf"))}
  losses = {"cw": "cw", "fgsm": "ce", "pgd": "ce", "apgd": "ce", "msd": "ce", "unforeseen": "ce"}
  if entry["name"] not in losses:
    return set()
  loss = entry.get("loss", losses[entry["name"]])
  return {(loss, where) for where in entry.get("radii", (ball(entry),))}


def ball(entry: Mapping[str, Any]) -> str:
  """What an entry's epsilon is measured in: a norm, "lpips", or the kind of latent, each of which has its own ball."""
  if entry["name"] == "unforeseen":
    return entry["kind"]
  if entry["name"] == "lpips":
    return "lpips"
  own = is_autoattack(entry) or user_code.is_name(entry["name"])
  return entry.get("norm") or ("linf" if own else registry.defaults(entry["name"]).get("norm", "linf"))


def trained_on(suite: Mapping[str, Mapping[str, Any]], train_attacks: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """The attacks of a suite that have the same kind as a training attack."""
  trained = set().union(*map(kinds, train_attacks.values()))
  return [name for name, entry in suite.items() if kinds(entry) & trained]


def held_out(suite: Mapping[str, Mapping[str, Any]], trained: Collection[str]) -> list[str]:
  """The attacks of a suite that are not in `trained`, without AutoAttack, which has attacks of several kinds."""
  return [name for name, entry in suite.items() if name not in trained and not is_autoattack(entry)]


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
  gradients = sum(stage.rounds * stage.gradient_calls() for stage in planned)
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
      return Cost(steps + given["num_restarts"])
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


def robustbench_name(suite: Mapping[str, Mapping[str, Any]]) -> str | None:
  """The first entry of a suite that RobustBench accepts: AutoAttack's standard version, complete and unchanged."""
  for name, entry in suite.items():
    standard = is_autoattack(entry) and is_whole(entry) and entry.get("version", "standard") == "standard"
    if standard and not entry.get("overrides"):
      return name
  return None
