"""A directive for the tables on the page about configurations, which are made from the code."""

import inspect
import re
import runpy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from docs.extensions import config_fields
from lrat_jax.attacks import registry
from lrat_jax.config import attack_entries, suites, train_attacks
from lrat_jax.config import default as config_lib

_CONFIGS = Path(__file__).parents[2] / "configs"


def _plain(text: str) -> str:
  return re.sub(r"[|*<]", r"\\\g<0>", text)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
  lines = [list(head), ["---"] * len(list(head)), *map(list, rows)]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _code(value: Any) -> str:
  return f"`{list(value) if isinstance(value, tuple) else value!r}`"


def _by_preset(values: Mapping[str, str]) -> str:
  """One text if all presets agree, else each text with the presets that have it."""
  groups: dict[str, list[str]] = {}
  for preset, text in values.items():
    groups.setdefault(text, []).append(preset)
  return next(iter(groups)) if len(groups) == 1 else "; ".join(f"{t} {', '.join(p)}" for t, p in groups.items())


def _fields_text() -> str:
  found, text = config_fields.fields(), ""
  for group in dict.fromkeys(field.path.rpartition(".")[0] for field in found):
    rows = [
      (
        f"`{field.path}`",
        _plain(field.explanation),
        _by_preset({p: _code(v) for p, v in field.defaults.items()}),
        field.kind,
      )
      for field in found
      if field.path.rpartition(".")[0] == group and field.path not in config_fields.ATTACK_GROUPS
    ]
    text += (
      f"### {f'`{group}`' if group else 'The run'}\n\n{_table(('field', 'what it is', 'default', 'type'), rows)}\n"
    )
  return text


def _entries(configs: Mapping[str, Mapping[str, Any]]) -> str:
  """A table of the attacks in a group of the configuration, with the threat model of each in each preset."""
  names = dict.fromkeys(name for group in configs.values() for name in group)
  rows = []
  for name in names:
    entries = {preset: group[name] for preset, group in configs.items()}
    (first, *_) = entries.values()
    words = [first["name"], *(f"{key} {first[key]}" for key in ("loss", "random_start") if key in first)]
    rows.append((f"`{name}`", ", ".join(words), _by_preset({p: attack_entries.threat(e) for p, e in entries.items()})))
  return _table(("entry", "attack", "what it may do"), rows)


def _training_attacks_text() -> str:
  argument = ",".join(train_attacks.by_name(config_lib.PRESETS["digits"]["budget"]))
  return _entries({p: config_lib.default("at", f"{p},{argument}").train_attacks for p in config_lib.PRESETS})


def _suites_text() -> str:
  text = f"The default is `suite={suites.DEFAULT}`.\n\n"
  for suite in suites.SUITES:
    configs = {p: config_lib.default("at", f"{p},suite={suite}").eval.suite for p in config_lib.PRESETS}
    text += f"### `suite={suite}`\n\n{_entries(configs)}\n"
  return text


def _arguments_text() -> str:
  text = ""
  for name in [*registry.REGISTRY, attack_entries.AUTOATTACK]:
    rows = [
      (f"`{key}`", _plain(explanation), "" if default is inspect.Parameter.empty else _code(default))
      for key, (default, explanation) in config_fields.attack_arguments(name).items()
    ]
    text += f"### `name={name}`\n\n{_table(('argument', 'what it is', 'default'), rows)}\n"
  return text


def _methods_text() -> str:
  """A table of the fields that each file in configs/ sets differently from configs/at.py."""
  files = {path.stem: runpy.run_path(str(path))["get_config"]() for path in sorted(_CONFIGS.glob("*.py"))}
  plain = dict(config_fields.leaves(files["at"]))
  rows = []
  for name, config in files.items():
    others = {path: value for path, value in config_fields.leaves(config) if value != plain[path] and path != "name"}
    words = [
      f"`train_attacks={','.join(value)}`" if path == "train_attacks" else f"`{path}={value}`"
      for path, value in others.items()
    ]
    rows.append((f"`configs/{name}.py`", "<br>".join(words) or "the defaults below"))
  return _table(("file", "sets"), rows)


_TABLES: dict[str, Callable[[], str]] = {
  "methods": _methods_text,
  "fields": _fields_text,
  "training-attacks": _training_attacks_text,
  "suites": _suites_text,
  "arguments": _arguments_text,
}


class ConfigTables(SphinxDirective):
  """```{config-tables} fields```, or another of `_TABLES`."""

  required_arguments = 1

  def run(self) -> list[nodes.Node]:
    self.env.note_reread()  # the code may have changed although the page has not
    return self.parse_text_to_nodes(_TABLES[self.arguments[0]](), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
  """Adds the directive."""
  app.add_directive("config-tables", ConfigTables)
  return {"parallel_read_safe": True, "parallel_write_safe": True}
