"""Output of an evaluation: results and timings, per_example.npz, adversarials, final table, RobustBench's JSON."""

import json
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from lrat_jax.config import attack_entries, suites
from lrat_jax.core import files


def environment() -> dict[str, Any]:
  """What results depend on besides the code: versions and devices."""
  return {
    "python": platform.python_version(),
    **{package: metadata.version(package) for package in ("jax", "jaxlib", "flax", "numpy")},
    "device": jax.devices()[0].device_kind,
    "num_devices": jax.device_count(),
  }


def radii(suite: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
  """The radius of each attack that has one, {"norm", "text", "value"}: as given ("text") and as a number ("value").

  For an attack on a latent, "norm" is its kind.
  """
  return {
    name: {"norm": attack_entries.ball(entry), "text": str(entry["epsilon"]), "value": attack_entries.radius(entry)}
    for name, entry in suite.items()
    if "epsilon" in entry
  }


def write_json(path: Path, content: Any) -> None:
  """Writes strict JSON atomically. Raises ValueError for NaN, and then writes nothing."""
  text = json.dumps(content, indent=2, allow_nan=False) + "\n"
  with files.replacing(path) as file:
    file.write(text.encode())


def write_results(
  workdir: Path, results: dict[str, Any], timings: dict[str, Any], per_example: dict[str, np.ndarray]
) -> None:
  """Writes results.json (strict JSON: ValueError for NaN), timings.json and per_example.npz, each atomically.

  Timings are in a separate file, so that the other files are equal to the byte for equal evaluations.
  """
  json.dumps(results, allow_nan=False)
  write_json(workdir / "timings.json", timings)
  files.write_arrays(workdir / "per_example.npz", per_example)
  write_json(workdir / "results.json", results)


def write_worst_examples(workdir: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes worst_examples.npz, from `examples.to_arrays`."""
  files.write_arrays(workdir / "worst_examples.npz", arrays)


def write_images(workdir: Path, images: Mapping[str, np.ndarray], indices: np.ndarray) -> None:
  """Writes adversarials/NAME.npz per attack: "images" float32 [n, h, w, c] and "indices" [n] in the source's split."""
  (workdir / "adversarials").mkdir(exist_ok=True)
  for name, array in images.items():
    with files.replacing(workdir / "adversarials" / f"{name}.npz") as file:
      np.savez_compressed(file, images=array, indices=indices)


def robustbench_entry(
  results: Mapping[str, Any],
  *,
  dataset: str,
  architecture: str,
  name: str | None = None,
  link: str = "",
  authors: str = "",
  venue: str = "",
  additional_data: bool = False,
  number_forward_passes: int = 1,
) -> dict[str, Any]:
  """A model's entry in RobustBench's format (model_info/*.json), from results with AutoAttack's standard version.

  Fields that are not in the results, such as the paper's link and authors, are empty unless given; accuracies are
  strings in percent.

  Raises:
    ValueError: the results contain no AutoAttack of the standard version.
  """
  found = suites.robustbench_name(results["suite"])
  if found is None:
    raise ValueError(
      f"results contain no standard AutoAttack, only {sorted(results['suite'])}; evaluate with it first."
    )
  percent = lambda accuracy: f"{100 * accuracy:.2f}"
  autoattack = percent(results["robust"][found])
  return {
    "link": link,
    "name": results["name"] if name is None else name,
    "authors": authors,
    "additional_data": additional_data,
    "number_forward_passes": number_forward_passes,
    "dataset": dataset,
    "venue": venue,
    "architecture": architecture,
    "eps": str(results["suite"][found]["epsilon"]),
    "clean_acc": percent(results["clean"]),
    "reported": autoattack,
    "autoattack_acc": autoattack,
  }


def write_robustbench(workdir: Path, results: Mapping[str, Any], **fields: Any) -> None:
  """Writes robustbench.json, from `robustbench_entry`."""
  write_json(workdir / "robustbench.json", robustbench_entry(results, **fields))


def _metric_rows(results: Mapping[str, Any]) -> Iterator[tuple[str, float, str]]:
  """(name, share, explanation) of each metric over several attacks, from `metrics.summary`."""
  if held := results.get("held_out"):
    count = len(held["attacks"])
    yield "held out, mean", held["mean"], f"over {count} attack{'s' * (count > 1)} of kinds not trained on"
    if count > 1:
      yield "held out, union", held["union"], "right under all of these"
      yield "held out, lowest", held["lowest"], "of these"
  for name, share in results.get("areas", {}).items():
    yield f"{name}, area", share, "mean over strengths from 0"
  if corrupted := results.get("corruptions"):
    yield "corruptions, mean", corrupted["mean"], f"over {len(corrupted['kinds'])} kinds, even if wrong when clean"
  if known := results.get("competitiveness"):
    yield "competitiveness", known["mean"], f"relative to the best known under {len(known['references'])} attacks"


def print_table(console: Console, results: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
  """Prints the final table: accuracy in percent, clean, under each attack and under their union; then the warnings."""
  title = f"{results['name']} on {results['n']:,} {results['split']} images"
  table = Table(title=title, title_style="bold", title_justify="left")
  table.add_column("")
  table.add_column("accuracy %", justify="right")
  table.add_column("threat")
  table.add_column("seconds", justify="right")
  table.add_row("clean", f"{100 * results['clean']:.2f}", "", f"{seconds['clean']:.1f}")
  for name, accuracy in results["robust"].items():
    threat = attack_entries.threat(results["suite"][name])
    table.add_row(name, f"{100 * accuracy:.2f}", threat, f"{seconds[name]:.1f}")
  table.add_row("union", f"{100 * results['union']:.2f}", "right under all of the above", "", end_section=True)
  for name, share, said in _metric_rows(results):
    table.add_row(name, f"{100 * share:.2f}", said, "")
  console.print(table)
  for line in results.get("warnings", []):
    console.print(f"warning: {line}", highlight=False, markup=False, soft_wrap=True)
