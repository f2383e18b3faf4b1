"""Converts this project's docstrings, plain text with `code`, to reStructuredText for Sphinx."""

import re
from typing import Any

from sphinx.application import Sphinx

_SECTION = re.compile(r"(Args|Attributes|Returns|Raises):")
_CODE = re.compile(r"(`[^`]+`)")
_LIST_ITEM = re.compile(r" *- ")


def _escaped(text: str) -> str:
  """Escapes text, in which single backticks are code and no other character is markup."""
  parts = _CODE.split(text)
  plain = [re.sub(r"[*|\\]|(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
  code = [f"`{part}`" for part in parts[1::2]]
  return "".join(part for pair in zip(plain, [*code, ""], strict=True) for part in pair)


def _one_by_one(paragraph: str) -> str:
  """Splits attributes that share an explanation, `a, b: text`, into one entry each."""
  entry = re.compile(r"^  (\w+(?:, \w+)+)(:.*(?:\n    .*)*)", re.MULTILINE)
  return entry.sub(lambda m: "\n".join(f"  {name}{m[2]}" for name in m[1].split(", ")), paragraph)


def _lists_apart(text: str) -> str:
  """Inserts a blank line before a list's first item."""
  lines: list[str] = []
  for line in text.splitlines():
    if _LIST_ITEM.match(line) and lines and lines[-1] and not _in_list(lines):
      lines.append("")
    lines.append(line)
  return "\n".join(lines)


def _in_list(lines: list[str]) -> bool:
  """Whether the last of the lines belongs to an item: it is one, or is indented below one."""
  for line in reversed(lines):
    if _LIST_ITEM.match(line):
      return True
    if not line.startswith(" "):
      return False
  return False


def as_rst(docstring: str) -> str:
  """A docstring in reStructuredText. Indented paragraphs outside sections (formulas, code) are shown as they are."""
  paragraphs = []
  in_section = False
  for paragraph in docstring.split("\n\n"):
    if not paragraph.startswith(" "):
      in_section = _SECTION.match(paragraph) is not None
    if paragraph.startswith("Attributes:"):
      paragraph = _one_by_one(paragraph)
    shown = paragraph.startswith("  ") and not in_section
    paragraphs.append(f"::\n\n{paragraph}" if shown else _lists_apart(_escaped(paragraph)))
  return "\n\n".join(paragraphs)


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
  lines[:] = as_rst("\n".join(lines)).splitlines()


def _skip(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
  """Skips the fields of a NamedTuple, which are explained in its docstring."""
  return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def setup(app: Sphinx) -> dict[str, bool]:
  """Converts docstrings before napoleon reads their sections."""
  app.connect("autodoc-process-docstring", _process, priority=100)
  app.connect("autodoc-skip-member", _skip)
  return {"parallel_read_safe": True, "parallel_write_safe": True}
