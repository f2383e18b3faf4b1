"""Robust accuracy of the trained networks, from their stored weights: PGD-20, CW-20, APGD-CE + APGD-T, and Square."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.accelerator_session import images, weights
from benchmarks.accelerator_session.session import METHODS, Scale, Session
from lrat_jax import data
from lrat_jax.config import default as config_lib
from lrat_jax.config.suites import SUITES
from lrat_jax.convert import exchange
from lrat_jax.core import sharding
from lrat_jax.evaluation import evaluate

TABLE = "Robust accuracy in %, from the stored weights in float32"
BATCH_SIZE = 500


def suite(scale: Scale, preset: str, methods: Iterable[str]) -> dict[str, tuple[int, dict]]:
  """The attacks in order: name -> (number of test images, its configuration).

  APGD in L2 and L1 is among them if one of the methods trains on a union of norms.
  """
  budget = config_lib.PRESETS[preset]["budget"]
  pgd, epsilon = SUITES["pgd"](budget), budget["linf"][0]
  steps = {name: {"num_steps": scale.apgd_steps} for name in ("apgd-ce", "apgd-t")}
  apgd = {entry["norm"]: entry | {"overrides": steps} for entry in SUITES["union"](budget).values()}
  square = {"name": "square", "norm": "linf", "epsilon": epsilon, "num_queries": scale.square_queries}
  found = {
    "pgd20": (scale.evaluated_images, pgd["pgd20"]),
    "cw20": (scale.evaluated_images, pgd["cw20"]),
    "apgd-ce + apgd-t": (scale.evaluated_images, apgd["linf"]),
    "square": (scale.square_images, square),
  }
  if any(METHODS[method].attacks == "union" for method in methods):
    found |= {f"apgd-ce + apgd-t, {norm}": (scale.square_images, apgd[norm]) for norm in ("l2", "l1")}
  return found


def accuracy(model: exchange.Model, test: data.Split, count: int, name: str, entry: dict) -> dict[str, float]:
  """ "clean" and "robust" accuracy in percent and "n", on the first `count` images."""
  split = test.take(np.arange(min(count, len(test.labels))))
  found = evaluate.run_suite(
    model.logits_fn, split, {name: entry}, batch_size=BATCH_SIZE, mesh=sharding.make_mesh(1), seed=0
  ).summary
  return {"clean": 100 * found["clean"], "robust": 100 * found["robust"][name], "n": found["n"]}


def run(session: Session) -> None:
  folder = Path(session.scratch) / "weights"
  models = {name: weights.load(folder, name) for name in weights.names(folder)}
  if not models:
    raise SystemExit("left out: no network was trained")
  test = images.load(session).test
  for attack, (count, entry) in suite(session.scale, session.preset, models).items():
    for method, model in models.items():
      found = session.attempt(f"{attack} on {method}", accuracy, model, test, count, attack, entry)
      session.record(TABLE, method=method, attack=attack, **(found or {}))
