"""Our AutoAttack compared with the original (github.com/fra31/auto-attack, PyTorch): same weights and images, one run.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.autoattack_parity --original=PATH_TO_ITS_CLONE --workdir=runs/at_digits_seed0 --norm=linf

loads the model that `python -m lrat_jax.main` saved in the workdir, copies its weights to PyTorch, checks that both
give the same logits, and runs the parts of `standard` one by one, first the original's, then ours. Each side attacks
the images that its own earlier parts left robust, or with `--alone` all correctly classified images. Each part prints
robust accuracies and seconds (ours with compilation); `--output=FILE.json` saves them. `--parts` runs only some parts,
on the images that are robust according to the output file of an earlier call. `--whole` runs each side in one call, as
its users do; ours then compiles later parts while earlier ones run. Both sides start at random points: `--seeds 0 1 2`
repeats everything with other random numbers on both sides, and prints the means over the seeds. `--plain` gives ours
the network with `lax`'s convolutions, as in a user's own network.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
import torch
from jax.tree_util import Partial

from benchmarks import common, torch_models
from lrat_jax import attacks, data
from lrat_jax.core import sharding
from lrat_jax.core.arguments import as_number
from lrat_jax.training import experiment as experiment_lib
from lrat_jax.training import loop
from lrat_jax.training import workdir as workdir_lib

PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def _load(workdir: Path, num_images: int, plain: bool = False):
  """(logits_fn, PyTorch model, images [n, h, w, c], labels [n], microbatch size) of a workdir's best checkpoint."""
  config = workdir_lib.load_config(workdir)
  dataset = data.load_for(config.data)
  experiment = experiment_lib.build(config, dataset, sharding.make_mesh(1))
  _, state = loop.load_checkpoint(experiment, workdir)
  variables = jax.tree.map(np.asarray, dict(state.eval_variables))
  split = dataset.test.take(np.arange(min(num_images, len(dataset.test.labels))))
  model = experiment.model
  apply = common.with_plain_convolutions(model.apply) if plain else model.apply
  logits_fn = Partial(lambda variables, images: apply(variables, images), variables)
  torch_model = torch_models.classifier(model, variables).eval()
  images = np.asarray(data.to_float(split.images))
  return logits_fn, torch_model, images, np.asarray(split.labels), experiment.microbatch_size


def _to_torch(images):
  """[n, c, h, w] in PyTorch's default layout: the original uses views that channels_last does not allow."""
  return torch_models.to_torch(images).contiguous(memory_format=torch.contiguous_format)


def original(auto_attack, model, images, labels, parts, norm, epsilon, batch_size, seed, device="cpu"):
  """(bool [n] still correctly classified, seconds) for some parts of the original in its standard version."""
  start = time.perf_counter()
  attack = auto_attack(
    model, norm=NORMS[norm], eps=epsilon, seed=seed, verbose=False, version="standard", device=device
  )
  attack.attacks_to_run = list(parts)
  adversarial = attack.run_standard_evaluation(
    _to_torch(images).to(device), torch.tensor(labels).long().to(device), bs=batch_size
  )
  with torch.no_grad():
    right = model(adversarial).argmax(dim=1).cpu().numpy() == labels
  return right, time.perf_counter() - start


def _ours(logits_fn, images, labels, indices, parts, norm, epsilon, batch_size, microbatch_size, seed):
  start = time.perf_counter()
  report = attacks.autoattack(
    jax.random.key(seed), logits_fn, images, labels,
    epsilon=epsilon, norm=norm, attacks_to_run=list(parts), example_indices=indices, batch_size=batch_size,
    chunk_size=microbatch_size,
  )  # fmt: skip
  return report.robust, time.perf_counter() - start


def _one_seed(sides, right, labels, setting, options, records):
  """Runs the parts one by one, each side on its own robust images; prints and records a line for each part."""
  earlier = [r for r in records if all(r.get(k) == v for k, v in setting.items()) and not r["alone"]]
  left = {side: right.copy() for side in sides}
  if earlier and not options.alone:
    left = {side: np.isin(np.arange(len(labels)), earlier[-1][side]["robust"]) for side in sides}
  print(f"{setting}: clean {100 * right.mean():.1f} %")
  for part in options.parts:
    record = {**setting, "part": part, "alone": options.alone}
    for side, run in sides.items():
      rows = np.flatnonzero(right if options.alone else left[side])
      still, seconds = run(rows, part.split("+"), setting["seed"])
      robust = rows[still]
      left[side] = np.isin(np.arange(len(labels)), robust)
      record[side] = {"accuracy": len(robust) / len(labels), "seconds": seconds, "robust": robust.tolist()}
    line = "  ".join(f"{side} {100 * record[side]['accuracy']:.1f} % {record[side]['seconds']:.1f} s" for side in sides)
    times = record["original"]["seconds"] / record["ours"]["seconds"]
    print(f"{part:8} {line}  {times:.2f} times as fast", flush=True)
    records.append(record)
    if options.output:
      options.output.write_text(json.dumps(records))


def _print_means(records, sides, parts) -> None:
  """Prints mean and standard deviation over the seeds by part and side, and the mean of the differences."""
  print("over the seeds:")
  for part in parts:
    found = {side: 100 * np.array([r[side]["accuracy"] for r in records if r["part"] == part]) for side in sides}
    line = "  ".join(f"{side} {found[side].mean():.2f} ± {found[side].std(ddof=1):.2f} %" for side in sides)
    difference = found["ours"] - found["original"]
    error = difference.std(ddof=1) / len(difference) ** 0.5
    print(f"{part:8} {line}  ours - original {difference.mean():+.2f}, standard error {error:.2f}")


def _options() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--original", required=True, help="path of a clone of the original")
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--norm", choices=sorted(NORMS), default="linf")
  parser.add_argument("--epsilon", required=True, help="such as 8/255")
  parser.add_argument("--num_images", type=int, default=500)
  parser.add_argument("--batch_size", type=int, default=250)
  parser.add_argument("--seeds", nargs="+", type=int, default=[0])
  parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
  parser.add_argument("--whole", action="store_true", help="all parts in one call")
  parser.add_argument("--plain", action="store_true", help="ours with plain convolutions in the network")
  parser.add_argument("--alone", action="store_true", help="each part on all images that are correct when clean")
  parser.add_argument("--output", type=Path, help="a JSON file that is added to")
  options = parser.parse_args()
  try:
    options.epsilon_number = as_number(options.epsilon, "--epsilon")
    workdir_lib.load_config(options.workdir)
  except ValueError as error:
    parser.error(str(error))
  if not (Path(options.original) / "autoattack").is_dir():
    parser.error(f"--original={options.original} holds no folder autoattack; clone github.com/fra31/auto-attack.")
  return options


def main() -> None:
  options = _options()
  sys.path.insert(0, options.original)
  from autoattack import AutoAttack  # its path is known only now

  sharding.use_cpu_cores(options.batch_size - options.batch_size % 2)
  logits_fn, model, images, labels, microbatch_size = _load(options.workdir, options.num_images, options.plain)
  with torch.no_grad():
    theirs = model(_to_torch(images)).numpy()
  print(f"logits differ by {np.abs(theirs - np.asarray(logits_fn(images))).max():.2g} of {np.abs(theirs).max():.3g}")
  right = theirs.argmax(axis=1) == labels
  size = options.batch_size
  sides = {
    "original": lambda rows, parts, seed: original(
      AutoAttack, model, images[rows], labels[rows], parts, options.norm, options.epsilon_number, size, seed
    ),
    "ours": lambda rows, parts, seed: _ours(
      logits_fn,
      images[rows],
      labels[rows],
      rows,
      parts,
      options.norm,
      options.epsilon_number,
      size,
      microbatch_size,
      seed,
    ),
  }
  records = json.loads(options.output.read_text()) if options.output and options.output.exists() else []
  if options.whole:
    options.parts = ["+".join(options.parts)]
  before = len(records)
  setting = {"workdir": options.workdir.name, "norm": options.norm, "epsilon": options.epsilon, "n": len(labels)}
  setting["plain"] = options.plain
  for seed in options.seeds:
    _one_seed(sides, right, labels, {**setting, "seed": seed}, options, records)
  if len(options.seeds) > 1:
    _print_means(records[before:], sides, options.parts)


if __name__ == "__main__":
  main()
