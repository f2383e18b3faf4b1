"""Reads every field of a configuration from the code: type, defaults, and the comment beside it."""

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lrat_jax import attacks
from lrat_jax.attacks import registry
from lrat_jax.config import attack_entries
from lrat_jax.config import default as config_lib

# Groups whose members are attacks; their fields are the attacks' own arguments.
ATTACK_GROUPS = ("train_attacks", "validation_attack", "eval.suite")
# The attack to which an attack with a short docstring refers for its arguments.
_ARGUMENTS_OF = {"fgsm": attacks.pgd, "cw": attacks.pgd}


class Field(NamedTuple):
  """A field: its path, its type, its default in each preset, and the comment beside it in `config.default`."""

  path: str
  kind: str
  defaults: dict[str, Any]
  explanation: str


def _comments(source: str) -> dict[int, str]:
  """The comments by line number; a comment on lines of its own belongs to the line below it."""
  found: dict[int, str] = {}
  above: list[str] = []
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      text = token.string.removeprefix("#").strip()
      if token.line.strip().startswith("#"):
        above.append(text)
      else:
        found[token.start[0]] = text
    elif token.type not in (tokenize.NL, tokenize.NEWLINE) and above:
      found[token.start[0]], above = " ".join(above), []
  return found


def explanations(source: str) -> dict[str, str]:
  """The comment on each field in config/default.py, by the field's path.

  A field is an argument of `dict(...)`, as `name=value,  # explanation`. If the value is `preset["name"]`, its fields
  are in the function `_name`. The comment on a group applies to those of its fields that have none.
  """
  tree, comments = ast.parse(source), _comments(source)
  functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}

  def dict_of(node: ast.AST) -> ast.Call | None:
    calls = (n for n in ast.walk(node) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "dict")
    return next(calls, None)

  def walk(call: ast.Call, path: str, inherited: str) -> Iterable[tuple[str, str]]:
    for keyword in call.keywords:
      name, value = f"{path}{keyword.arg}", keyword.value
      yield name, comments.get(keyword.lineno, "") or inherited
      group = value if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "dict" else None
      if isinstance(value, ast.Subscript) and f"_{keyword.arg}" in functions:
        group = dict_of(functions[f"_{keyword.arg}"])
      if group is not None:
        yield from walk(group, f"{name}.", comments.get(keyword.lineno, "") or inherited)

  whole = dict_of(next(n for n in functions["default"].body if isinstance(n, ast.Return)))
  return {path: text for path, text in walk(whole, "", "") if text}


def leaves(config: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, Any]]:
  """(path, value) of every field; a group of attacks is one field."""
  for name, value in config.items():
    if isinstance(value, ConfigDict) and f"{path}{name}" not in ATTACK_GROUPS:
      yield from leaves(value, f"{path}{name}.")
    else:
      yield f"{path}{name}", value


def fields() -> list[Field]:
  """Every field except those of attacks, in the order of config/default.py; fields without a comment come first."""
  explained = explanations(inspect.getsource(config_lib))
  order = list(explained)
  presets = {preset: dict(leaves(config_lib.default("at", preset))) for preset in config_lib.PRESETS}
  (first, *_) = presets.values()
  found = [
    Field(path, type(value).__name__, {p: values[path] for p, values in presets.items()}, explained.get(path, ""))
    for path, value in first.items()
  ]
  return sorted(found, key=lambda field: order.index(field.path) if field.path in order else -1)


def argument_explanations(name: str) -> dict[str, str]:
  """The explanations of arguments in an attack's docstring; `name` is one of the registry's or "autoattack"."""
  attack = attacks.autoattack if name == attack_entries.AUTOATTACK else _ARGUMENTS_OF.get(name, registry.REGISTRY[name])
  section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.getdoc(attack) or "", re.DOTALL | re.MULTILINE)
  entries = re.findall(r"^  (\w+(?:, \w+)*): (.*(?:\n    .*)*)", section[1] if section else "", re.MULTILINE)
  return {one: " ".join(text.split()) for names, text in entries for one in names.split(", ")}


def attack_arguments(name: str) -> dict[str, tuple[Any, str]]:
  """(default, explanation) of each argument of an attack in a configuration; without a default, Parameter.empty."""
  explained = argument_explanations(name)
  if name == attack_entries.AUTOATTACK:
    given = inspect.signature(attacks.autoattack).parameters
    return {
      key: (given[key].default, explained[key]) for key in ("epsilon", "norm", "version", "attacks_to_run", "overrides")
    }
  parameters = inspect.signature(registry.REGISTRY[name]).parameters.values()
  return {p.name: (p.default, explained.get(p.name, "")) for p in parameters if p.kind is p.KEYWORD_ONLY}
