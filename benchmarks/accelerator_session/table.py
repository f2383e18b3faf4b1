"""A session's records as one page of Markdown tables, `table.md`, and as `records.json`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator_session.session import read_records

Row = dict[str, Any]


def _text(value: Any) -> str:
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, float):
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
  return str(value).replace("|", "\\|").replace("\n", " ")


def _markdown(rows: Sequence[Row]) -> str:
  columns = list(dict.fromkeys(column for row in rows for column in row))
  lines = [columns, ["---"] * len(columns), *([_text(row.get(column, "")) for column in columns] for row in rows)]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(out: Path, scratch: Path, title: str, trial: bool, status: Sequence[Row]) -> None:
  """Writes what is known so far over what was written before."""
  tables: dict[str, list[Row]] = {}
  for record in read_records(scratch):
    tables.setdefault(record["table"], []).append(record["row"])
  text = f"# {title}\n\n{_markdown(status)}"
  for name, rows in tables.items():
    text += f"\n## {name}\n\n{_markdown(rows)}"
  records = {"title": title, "trial": trial, "parts": list(status), **tables}
  for name, content in (("table.md", text), ("records.json", json.dumps(records, indent=1) + "\n")):
    partial = scratch / name
    partial.write_text(content)
    (out / f".{name}").write_bytes(partial.read_bytes())
    (out / f".{name}").rename(out / name)
