"""Every wrong argument of every public attack, `autoattack` and `benchmark` gives a one-line error that names it."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrat_jax
from lrat_jax import attacks
from lrat_jax.attacks import registry, sanity_checks

KEY, CLASSES = jax.random.key(0), 3
IMAGES = np.random.default_rng(0).uniform(size=(4, 6, 6, 1)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(36, CLASSES)).astype(np.float32)


def _logits(images):
  return images.reshape(len(images), -1) @ WEIGHTS


LABELS = np.asarray(_logits(IMAGES).argmax(axis=1))
GOOD = {"key": KEY, "logits_fn": _logits, "images": IMAGES, "labels": LABELS}
CHEAP = {
  "pgd": {"epsilon": 0.1, "step_size": 0.05, "num_steps": 1},
  "cw": {"epsilon": 0.1, "step_size": 0.05, "num_steps": 1},
  "fgsm": {"epsilon": 0.1},
  "msd": {"radii": {"linf": 0.1, "l1": 2.0}, "step_sizes": {"linf": 0.05, "l1": 1.0}, "num_steps": 1},
  "apgd": {"epsilon": 0.1, "num_steps": 1},
  "fab": {"epsilon": 0.1, "num_steps": 1},
  "square": {"epsilon": 0.1, "num_queries": 1},
  "carlini_wagner": {"num_steps": 1, "binary_search_steps": 1},
  "ddn": {"num_steps": 1},
  "fmn": {"num_steps": 1},
  "deepfool": {"num_steps": 1},
  "ead": {"num_steps": 1, "binary_search_steps": 1},
  "hop_skip_jump": {"num_steps": 1, "initial_num_evals": 1},
  "spsa": {"epsilon": 0.1, "num_steps": 1, "num_samples": 1},
  "spatial": {"num_rotations": 1, "num_translations": 1},
  "corruption": {"kind": "contrast", "severity": 1},
  "unforeseen": {"kind": "stadv", "epsilon": 0.1, "num_steps": 1},
}
ENTRIES = {name: registry.REGISTRY[name] for name in CHEAP} | {
  "autoattack": attacks.autoattack,
  "benchmark": lrat_jax.benchmark,
  "watch_gradients": sanity_checks.watch_gradients,
}
CHEAP |= {
  "autoattack": {"epsilon": 0.1, "version": "apgd"},
  "benchmark": {"epsilon": 0.1, "version": "apgd"},
  "watch_gradients": {"epsilon": 0.1, "num_steps": 1},
}

NO_COUNT = (-1, 1.5, "many", None, True, math.nan, math.inf, np.array([1, 2]), [1], 10**9, np.float32(2))
NO_NUMBER = (
  "much",
  "8/0",
  "",
  None,
  True,
  math.nan,
  -1.0,
  -math.inf,
  np.array([0.1, 0.2]),
  [0.1],
  {},
  1j,
  1e300,
  object(),
)
NO_CHOICE = ("other", 3, None, ["linf"], {}, np.array(["linf", "l2"]), "", b"linf", ("l2",))


def _put(value, place):
  """The model, with the logits at `place` replaced by `value`."""
  return lambda images: jnp.asarray(_logits(images)).at[place].set(value)


WRONG = {
  "key": (0, None, "key", jax.random.PRNGKey(0), np.zeros(2, np.uint32), jax.random.split(KEY, 3), [KEY], 1.5),
  "logits_fn": (
    None, 3, "model", _logits(IMAGES),
    lambda x: {"logits": _logits(x)}, lambda x: (_logits(x), None), lambda x: None, lambda x: [_logits(x)],
    lambda x: _logits(x)[:, 0], lambda x: _logits(x)[..., None], lambda x: _logits(x)[:, :1], lambda x: _logits(x)[:1],
    lambda x: _logits(x).argmax(axis=1), lambda x: jnp.round(_logits(x)).astype(int), lambda x: _logits(x) > 0,
    lambda x: 1.0, lambda x: "cat", lambda x: _logits(x) + 1j, lambda x: _logits(x).sum(), lambda x: _logits(x)[:, :0],
    _put(jnp.nan, (2, 1)), _put(jnp.inf, (2, 1)), _put(-jnp.inf, (slice(None), LABELS[0])), _put(-jnp.inf, 1),
    _put(jnp.nan, 3),
  ),
  "images": (
    None, 3, "images", [*IMAGES.tolist(), 3], IMAGES[0], IMAGES[..., None], IMAGES[:0], IMAGES[:, :0],
    (255 * IMAGES).astype(np.int32), IMAGES > 0.5, IMAGES.astype(complex), IMAGES.astype(str), 2 * IMAGES, IMAGES - 1,
    255 * IMAGES, np.where(IMAGES > 0.9, np.nan, IMAGES), np.where(IMAGES > 0.9, np.inf, IMAGES), {}, object(),
    [IMAGES[0], IMAGES[0, 1:]],
  ),
  "labels": (
    None, 3, "cats", LABELS[:3], LABELS[:0], LABELS[:, None], LABELS.astype(float), np.eye(CLASSES)[LABELS],
    LABELS > 0, LABELS + CLASSES, LABELS - CLASSES, np.where(np.arange(4) == 2, -1, LABELS), [0, 1, "2", 3], object(),
  ),
  "epsilon": (*NO_NUMBER, 1.5e3, "1e4"),
  "step_size": (*NO_NUMBER, 2e6),
  "radii": (
    0.1, None, "linf", {}, [0.1], {"l0": 0.1, "l1": 2.0}, {"linf": 0.1}, {3: 0.1}, ("linf",),
    *({"linf": value, "l1": 2.0} for value in (*NO_NUMBER, 1.5)),
  ),
  "step_sizes": (
    0.1, None, "linf", {}, [0.1], {"l0": 0.1, "l1": 2.0}, {"linf": 0.1}, {3: 0.1}, ("linf",),
    *({"linf": value, "l1": 2.0} for value in (*NO_NUMBER, 2e6)),
  ),
  "sparsity": (*NO_NUMBER, 1.5),
  "norm": NO_CHOICE,
  "threat_model": NO_CHOICE,
  "loss": (*NO_CHOICE, "kl-divergence"),
  "random_start": NO_CHOICE,
  "decision_rule": NO_CHOICE,
  "kind": NO_CHOICE,
  "version": NO_CHOICE,
  **{
    name: NO_COUNT
    for name in (
      "num_steps", "num_restarts", "num_queries", "eot_iter", "binary_search_steps", "num_rotations",
      "num_translations", "candidates", "initial_num_evals", "max_num_evals", "num_samples", "batch_size",
      "num_sanity_examples", "severity",
    )
  },
  **{
    name: NO_NUMBER
    for name in (
      "p_init", "alpha_max", "overshoot", "backward", "learning_rate", "initial_const", "confidence", "max_rotation",
      "max_translation", "gamma", "init_norm", "alpha_init", "alpha_final", "gamma_init", "gamma_final", "beta",
      "delta",
    )
  },
  "chunk_size": [value for value in (0, *NO_COUNT) if value is not None],
  "early_stop": (None, 1, "yes", np.array([True]), 0.0),
  "shorten": (1, "yes", np.array([True]), 0.0),
  "target_rank": (0, -1, CLASSES, 1.5, "first", [1], np.array([1, 2]), True),
  "targets": (
    3, "cats", [0, 1, 2, 0], LABELS[:2], LABELS.astype(float), LABELS, LABELS + CLASSES, LABELS - CLASSES, {},
  ),
  "label_distributions": (
    3, "cats", [[1.0, 0.0]], LABELS, np.eye(CLASSES)[:2], np.eye(CLASSES, dtype=int)[LABELS],
    np.full((4, CLASSES), 0.5), np.full((4, CLASSES), np.nan), {},
  ),
  "gradient_transform": ("momentun", 3, {}, ["momentum", "none"], [None], np.zeros(2), lambda x: x, object()),
  "devices": ((), [], 3, "cpu", [0], [None], jax.devices()[0]),
  "example_indices": (3, "first", LABELS[:2], LABELS.astype(float), LABELS[:, None], object(), [[0], [1, 2]]),
  "attacks_to_run": ("apgd-ce", [], ["square"], 3, [3], [["apgd-ce"]], {}, object()),
  "overrides": (
    "square", 3, [1], {"fab-t": {}}, {"apgd-ce": 3}, {"apgd-ce": {"num_stepz": 3}}, {"apgd-ce": {"num_steps": -1}},
    {"apgd-ce": {"loss": "none"}}, {3: {}},
  ),
  "on_stage": (None, 3, "print"),
  "on_progress": (None, 3, "print"),
  "store": (3, "directory", object()),
}  # fmt: skip
# Other words that the message may contain instead: arguments inside the value.
SAID_OF = {"overrides": ("overrides", "num_step", "loss")}


def cases():
  """(entry, argument, value) for every argument of every entry."""
  for entry, function in ENTRIES.items():
    for argument in inspect.signature(function).parameters:
      for value in WRONG[argument]:
        may_be_none = inspect.signature(function).parameters[argument].default is None
        if not (value is None and may_be_none):
          yield entry, argument, value


def refusal(entry, argument, value):
  """The exception that a call raises, None if it succeeds."""
  good = GOOD | CHEAP[entry]
  if argument in ("targets", "target_rank") and entry == "apgd":
    good |= {"loss": "margin_targeted"}
  try:
    ENTRIES[entry](**good | {argument: value})
  except Exception as error:  # the test checks that it is a ValueError
    return error
  return None


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_wrong_is_one_line_that_names_it(entry):
  tried, bad = 0, []
  for name, argument, value in cases():
    if name == entry:
      error, tried = refusal(name, argument, value), tried + 1
      says = str(error)
      named = any(word in says for word in SAID_OF.get(argument, (argument,)))
      if not isinstance(error, ValueError) or "\n" in says or len(says) > 400 or not named:
        bad.append(f"{argument}={value!r:.60}: {type(error).__name__} {says[:200]!r}")
  assert tried > 50 and not bad, f"{len(bad)} of {tried}:\n" + "\n".join(bad)


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
def test_what_means_the_same_is_taken(entry):
  """Lengths as text, scalars of NumPy and JAX, and arrays of JAX or of other integer types."""
  good = GOOD | CHEAP[entry]
  same = {
    "epsilon": ("0.1", "1/10", np.float64(0.1), jnp.float32(0.1), np.array(0.1)),
    "num_steps": (np.int64(1), jnp.int32(1), np.array(1)),
    "labels": (jnp.asarray(LABELS), LABELS.astype(np.uint8), LABELS.astype(np.int16)),
    "images": (jnp.asarray(IMAGES),),
  }
  expected = ENTRIES[entry](**good)
  for argument in same.keys() & CHEAP[entry].keys() | {"labels", "images"}:
    for value in same[argument]:
      found = ENTRIES[entry](**good | {argument: value})
      for field in ("images", "success", "robust"):
        if hasattr(expected, field):
          np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
