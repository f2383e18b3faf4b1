"""The whole of AutoAttack on the first trained network: seconds by attack, compared with the original's."""

import multiprocessing
import sys
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks import autoattack_parity
from benchmarks.accelerator_session import images, weights
from benchmarks.accelerator_session.session import Session
from lrat_jax import attacks, data
from lrat_jax.config import default as config_lib
from lrat_jax.core.arguments import as_number

TABLE = "AutoAttack in the standard version"


def _epsilon(session: Session) -> float:
  return as_number(config_lib.PRESETS[session.preset]["budget"]["linf"][0], "epsilon")


def _ours(session: Session, model, pixels: np.ndarray, labels: np.ndarray, run: str) -> None:
  start = time.perf_counter()
  report = attacks.autoattack(
    jax.random.key(0), model.logits_fn, pixels, labels, epsilon=_epsilon(session), batch_size=len(labels),
    on_stage=lambda stage: session.record(
      TABLE,
      side=f"lrat_jax, {run}", attack=stage.name, seconds=stage.seconds,
      **{"robust %": 100 * stage.robust_accuracy}, images=stage.attacked,
    ),
  )  # fmt: skip
  session.record(
    TABLE,
    side=f"lrat_jax, {run}",
    attack="all four",
    seconds=time.perf_counter() - start,
    **{"robust %": 100 * report.robust_accuracy},
    images=len(labels),
  )


def _original(session: Session, method: str, pixels: np.ndarray, labels: np.ndarray) -> None:
  """The original, attack by attack, each on the images that are still robust; runs in its own process."""
  import torch

  from benchmarks import torch_models

  sys.path.insert(0, session.auto_attack)
  from autoattack import AutoAttack

  device = "cuda" if torch.cuda.is_available() else "cpu"
  jax.config.update("jax_platforms", "cpu")  # JAX only loads the weights
  loaded = weights.load(Path(session.scratch) / "weights", method)
  model = torch_models.classifier(loaded.module, loaded.variables).eval().to(device)
  with torch.no_grad():
    logits = [model(torch_models.to_torch(part).to(device)) for part in np.array_split(pixels, -(-len(pixels) // 500))]
  robust = torch.cat(logits).argmax(dim=1).cpu().numpy() == labels
  total = 0.0
  for part in autoattack_parity.PARTS:
    rows = np.flatnonzero(robust)
    if not len(rows):
      break
    still, seconds = autoattack_parity.original(
      AutoAttack, model, pixels[rows], labels[rows], [part], "linf", _epsilon(session), len(labels), 0, device
    )
    robust[rows[~still]] = False
    total += seconds
    about = {"robust %": 100 * float(robust.mean()), "images": len(rows)}
    session.record(TABLE, side="the original, PyTorch", attack=part, seconds=seconds, **about)
  about = {"robust %": 100 * float(robust.mean()), "images": len(labels)}
  session.record(TABLE, side="the original, PyTorch", attack="all four", seconds=total, **about)


def run(session: Session) -> None:
  folder = Path(session.scratch) / "weights"
  names = weights.names(folder)
  if not names:
    raise SystemExit("left out: no network was trained")
  model = weights.load(folder, names[0])
  test = images.load(session).test.take(np.arange(session.scale.autoattack_images))
  pixels = np.asarray(data.to_float(test.images))
  session.attempt("our AutoAttack", _ours, session, model, pixels, test.labels, "compilation included")
  if session.auto_attack:
    process = multiprocessing.get_context("spawn").Process(
      target=_original, args=(session, names[0], pixels, test.labels), daemon=True
    )
    process.start()
    process.join()
    if process.exitcode:
      session.record(TABLE, side="the original, PyTorch", attack=f"failed with exit code {process.exitcode}")
  session.attempt("our AutoAttack", _ours, session, model, pixels, test.labels, "programs compiled before")
