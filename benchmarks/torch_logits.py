"""Differences between logits of converted networks and PyTorch's, at full width on 32x32 images, in both directions.

    pip install torch
    python -m benchmarks.torch_logits --model wide_resnet_34_10

"in": weights that PyTorch wrote as a .pt file, loaded here. "out": random weights made here, written as safetensors and
loaded in PyTorch with strict=True. In both, batch norms have scales, offsets and statistics as after training.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np
import safetensors.torch
import torch

from benchmarks import common
from lrat_jax import models
from lrat_jax.convert import exchange
from tests import torch_definitions as definitions

NETWORKS = {
  "resnet18": definitions.ResNet18,
  "preact_resnet18": definitions.PreActResNet18,
  "wide_resnet_28_10": lambda: definitions.WideResNet(28, 10),
  "wide_resnet_34_10": lambda: definitions.WideResNet(34, 10),
}


def _row(name: str, direction: str, theirs: np.ndarray, ours: np.ndarray) -> dict:
  difference, largest = float(np.abs(theirs - ours).max()), float(np.abs(theirs).max())
  same = int((theirs.argmax(axis=1) == ours.argmax(axis=1)).sum())
  texts = {"largest logit": f"{largest:.2f}", "largest difference": f"{difference:.1e}"}
  return {"model": name, "direction": direction, **texts, "same answers": f"{same} of {len(ours)}"}


def compare(name: str, images: np.ndarray, folder: Path) -> list[dict]:
  """A row for each direction."""
  network = definitions.spread(NETWORKS[name](), images)
  torch.save(network.state_dict(), folder / "in.pt")
  loaded = exchange.load(folder / "in.pt", mean=(0.0,), std=(1.0,))
  rows = [_row(name, "in", definitions.logits(network, images), np.asarray(loaded.logits_fn(images)))]
  # Random weights: those of the other direction, each times a random number near 1, so that sizes stay realistic.
  generator = np.random.default_rng(1)
  move = lambda leaf: np.asarray(leaf) * generator.uniform(0.9, 1.1, leaf.shape).astype(np.float32)
  variables = jax.tree.map(move, loaded.variables)
  mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
  model = exchange.Model(models.create(name, 10, mean=mean, std=std), variables)
  exchange.save(folder / "out.safetensors", *model)
  network = NETWORKS[name]().eval()
  network.load_state_dict(safetensors.torch.load_file(folder / "out.safetensors"), strict=True)
  theirs = definitions.logits(definitions.Normalised(network, mean, std), images)
  return [*rows, _row(name, "out", theirs, np.asarray(model.logits_fn(images)))]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", choices=NETWORKS, action="append", help="again for another; all if not given")
  parser.add_argument("--num_images", type=int, default=8)
  parser.add_argument("--output", type=Path, help="a JSON file for the table")
  options = parser.parse_args()
  images = np.random.default_rng(0).uniform(size=(options.num_images, 32, 32, 3)).astype(np.float32)
  rows = []
  for name in options.model or NETWORKS:
    with tempfile.TemporaryDirectory() as folder:
      rows += compare(name, images, Path(folder))
  common.report(f"Logits on {options.num_images} images, PyTorch's beside ours", rows, options.output)


if __name__ == "__main__":
  main()
