"""Judging a model: a suite of attacks on a whole split, every image once, sharded over the devices."""

import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from lrat_jax import attacks, data, files, reweighting, sharding
from lrat_jax.train_step import Variables, logits_fn

Judge = Callable[[Variables, data.Split, Array], dict[str, np.ndarray]]


def make_judge(model: nn.Module, attack: attacks.Attack | None, batch_size: int, mesh: Mesh) -> Judge:
  """A function (variables, split, key) -> {"correct" [n] bool, "vulnerabilities" [n] float} under one attack.

  `attack` None judges the clean images. An image's attack depends on its index under `key` alone, so batch size and
  device count change nothing; the last batch is padded and masked. Compiled once, for every call.
  """

  def judge_shard(variables: Variables, key: Array, batch: dict[str, Array]) -> tuple[Array, Array]:
    logits = logits_fn(model, variables)
    images, labels = data.to_float(batch["images"]), batch["labels"]
    if attack is not None:
      images = attack(attacks.example_keys(key, batch["indices"]), logits, images, labels).images
    answers = logits(images)
    return jnp.argmax(answers, axis=-1) == labels, reweighting.vulnerability(answers, labels)

  judge_batch = jax.jit(
    jax.shard_map(
      judge_shard,
      mesh=mesh,
      in_specs=(sharding.REPLICATED, sharding.REPLICATED, sharding.BATCHED),
      out_specs=sharding.BATCHED,
    )
  )

  def judge(variables: Variables, split: data.Split, key: Array) -> dict[str, np.ndarray]:
    results = []
    key = sharding.replicate(mesh, key)
    for batch in data.eval_batches(split, batch_size):
      batch = sharding.shard_batch(mesh, batch)
      results.append((*judge_batch(variables, key, batch), batch["mask"]))
    correct, vulnerabilities, mask = (np.concatenate(x) for x in zip(*sharding.fetch(results), strict=True))
    return {"correct": correct[mask], "vulnerabilities": vulnerabilities[mask]}

  return judge


def run_suite(
  model: nn.Module,
  variables: Variables,
  split: data.Split,
  suite: Mapping[str, Mapping[str, Any]],
  *,
  batch_size: int,
  mesh: Mesh,
  seed: int,
  on_attack: Callable[[str, float, float], None] = lambda name, accuracy, seconds: None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Clean accuracy and robust accuracy under each attack of a suite, on every image of a split.

  An image counts as robust to an attack if the model is right on it clean and attacked, and as robust in the worst case
  if that holds for all attacks of the suite.

  Args:
    suite: name -> an attack's configuration, as `attacks.from_config` takes it.
    on_attack: told each attack's name, robust accuracy and seconds as it ends ("clean" first).

  Returns:
    (summary, per_example): the summary {"clean", "robust": {name: accuracy}, "worst_case", "n", "seconds",
    "attack_seconds"} is plain data; per_example maps names to arrays [n]: "indices", "labels", "clean_correct",
    "robust/NAME" (bool), and "vulnerability/NAME".
  """
  start = time.perf_counter()
  per_example = {"indices": split.indices, "labels": split.labels}
  robust, seconds = {}, {}
  key = jax.random.key(seed)
  for name, config in {"clean": None, **suite}.items():
    attack_start = time.perf_counter()
    attack = None if config is None else attacks.from_config(config)
    result = make_judge(model, attack, batch_size, mesh)(variables, split, key)
    if config is None:
      clean_correct = per_example["clean_correct"] = result["correct"]
    else:
      per_example[f"robust/{name}"] = result["correct"] & clean_correct
      robust[name] = float(np.mean(per_example[f"robust/{name}"]))
    per_example[f"vulnerability/{name}"] = result["vulnerabilities"]
    seconds[name] = time.perf_counter() - attack_start
    on_attack(name, robust.get(name, float(np.mean(clean_correct))), seconds[name])
  worst = np.logical_and.reduce([clean_correct, *(per_example[f"robust/{name}"] for name in robust)])
  summary = {
    "clean": float(np.mean(clean_correct)),
    "robust": robust,
    "worst_case": float(np.mean(worst)),
    "n": len(split.labels),
    "seconds": time.perf_counter() - start,
    "attack_seconds": seconds,
  }
  return summary, per_example


def environment() -> dict[str, Any]:
  """What a number depends on besides the code: versions and devices."""
  return {
    "python": platform.python_version(),
    "jax": jax.__version__,
    "device": jax.devices()[0].device_kind,
    "num_devices": jax.device_count(),
  }


def write_results(workdir: Path, results: dict[str, Any], per_example: dict[str, np.ndarray]) -> None:
  """results.json (strict JSON: NaN is a ValueError) and per_example.npz, each put in its place whole."""
  text = json.dumps(results, indent=2, allow_nan=False) + "\n"
  with files.replacing(workdir / "per_example.npz") as file:
    np.savez_compressed(file, **per_example)
  with files.replacing(workdir / "results.json") as file:
    file.write(text.encode())


def print_table(console: Console, results: Mapping[str, Any], suite: Mapping[str, Mapping[str, Any]]) -> None:
  """The closing table: accuracy in percent, clean, under each attack and in the worst case."""
  table = Table(title=f"{results['name']} on {results['n']:,} test images", title_style="bold", title_justify="left")
  table.add_column("")
  table.add_column("accuracy %", justify="right")
  table.add_column("threat")
  table.add_column("seconds", justify="right")
  table.add_row("clean", f"{100 * results['clean']:.2f}", "", f"{results['attack_seconds']['clean']:.1f}")
  for name, accuracy in results["robust"].items():
    config = suite[name]
    threat = f"{config.get('norm', 'linf')} {config['epsilon']}"
    if "num_steps" in config:
      threat += f", {config['num_steps']} steps of {config['step_size']}"
    table.add_row(name, f"{100 * accuracy:.2f}", threat, f"{results['attack_seconds'][name]:.1f}")
  table.add_row(
    "worst case", f"{100 * results['worst_case']:.2f}", "right under all of the above", "", end_section=True
  )
  console.print(table)
