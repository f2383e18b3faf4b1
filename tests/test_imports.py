"""Modules of the package import only from lower layers; attacks and weights need only the core and convolutions."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "lrat_jax"
# From the lowest layer up. A part imports from itself and from lower layers, not from other parts of its own layer.
LAYERS = (
  ("core",),
  ("convolutions",),
  ("attacks", "data", "models", "reweighting", "objectives"),
  ("config",),
  ("evaluation",),
  ("training",),
  ("analysis",),
  ("compare", "convert", "report"),
  ("run",),
  ("main",),
  ("cli",),
  ("__main__",),
)
RANKS = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
# Exceptions: part -> the parts of its own layer that it may import.
BESIDE = {"objectives": {"attacks"}, "report": {"compare"}}


def _name(path):
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def _imports(text):
  """The modules of the package that a source text imports, also inside functions."""
  found = set()
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.ImportFrom):
      assert node.level == 0, "relative imports are not followed here"
      names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    else:
      continue
    found |= {name.removeprefix("lrat_jax.") for name in names if name.startswith("lrat_jax.")}
  return found & set(MODULES)


def _part(module):
  return module.partition(".")[0]


def _allowed(importer, imported):
  ours, theirs = _part(importer), _part(imported)
  return ours == theirs or RANKS[theirs] < RANKS[ours] or theirs in BESIDE.get(ours, ())


def test_every_module_has_a_layer():
  assert {_part(module) for module in MODULES if module} == set(RANKS)


def test_imports_are_found_in_all_their_forms():
  text = (
    "import lrat_jax.main\nfrom lrat_jax import attacks\ndef f():\n  from lrat_jax.core import files, errors as e\n"
  )
  assert _imports(text) == {"main", "attacks", "core", "core.files", "core.errors"}


@pytest.mark.parametrize("module", sorted(module for module in MODULES if module))
def test_a_module_imports_from_lower_layers(module):
  wrong = {imported for imported in _imports(MODULES[module].read_text()) if not _allowed(module, imported)}
  assert not wrong, f"lrat_jax.{module} imports {sorted(wrong)}"


@pytest.mark.parametrize("part", ["attacks", "reweighting"])
def test_attacks_and_weights_stand_alone(part):
  for module, path in MODULES.items():
    if _part(module) == part:
      assert {_part(imported) for imported in _imports(path.read_text())} <= {part, "core", "convolutions"}, module


def test_nothing_imports_itself_by_a_detour():
  graph = {module: _imports(path.read_text()) for module, path in MODULES.items()}
  state = {}

  def visit(module, trail):
    assert state.get(module) != "open", " -> ".join([*trail, module])
    if module not in state:
      state[module] = "open"
      for imported in graph[module]:
        if not f"{module}.".startswith(f"{imported}."):  # a package is already imported before its modules
          visit(imported, [*trail, module])
      state[module] = "done"

  for module in graph:
    visit(module, [])
