"""A session's records as one page of Markdown tables, `table.md`, and as `records.json`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator_session.session import read_records

Row = dict[str, Any]

# Explanations of the tables, by the beginning of a table's name.
_NOTES = {
  "Attacks on": "One trained network, the same images and keys everywhere; the verdict on every result is the CPU's in "
  'float32. "float32" computes products in full precision, "default" in JAX\'s default (TF32 on NVIDIA cards).',
  "Train steps": 'The "alone" rows are timed by themselves. Of the others, each PyTorch row and the lrat_jax row above '
  "it are timed in turn. Operations are those of the network's convolutions and matrix products. PyTorch's compile "
  "time is that of its first steps. Memory is that of the compiled program (lrat_jax) or the most allocated (PyTorch).",
  "Longest kernels": "From a profiler's trace; the share is of the time of all kernels.",
  "Training": "Reweighting begins after half of the epochs. The best epoch in robust validation accuracy is kept.",
  "AutoAttack": "Each attack runs on the images that those before it left; accuracies are of all images.",
}


def _text(value: Any) -> str:
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, float):
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
  return str(value).replace("|", "\\|").replace("\n", " ")


def markdown(rows: Sequence[Row]) -> str:
  """A table with a column for every key."""
  columns = list(dict.fromkeys(column for row in rows for column in row))
  lines = [columns, ["---"] * len(columns), *([_text(row.get(column, "")) for column in columns] for row in rows)]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(out: Path, scratch: Path, title: str, trial: bool, status: Sequence[Row]) -> None:
  """Writes the records so far, in place of earlier files."""
  tables: dict[str, list[Row]] = {}
  for record in read_records(scratch):
    tables.setdefault(record["table"], []).append(record["row"])
  text = f"# {title}\n\n{markdown(status)}"
  for name, rows in tables.items():
    note = next((note + "\n\n" for start, note in _NOTES.items() if name.startswith(start)), "")
    text += f"\n## {name}\n\n{note}{markdown(rows)}"
  records = {"title": title, "trial": trial, "parts": list(status), **tables}
  for name, content in (("table.md", text), ("records.json", json.dumps(records, indent=1) + "\n")):
    partial = scratch / name
    partial.write_text(content)
    (out / f".{name}").write_bytes(partial.read_bytes())
    (out / f".{name}").rename(out / name)
