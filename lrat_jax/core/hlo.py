"""Analysis of compiled programs: the computations that a loop calls, and the collectives in a program."""

import collections
import re
from collections.abc import Iterable

_KINDS = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
_COLLECTIVE = re.compile(rf" ({'|'.join(_KINDS)})(?:-start)?\(")
_BODY = re.compile(r"while\([^\n]*body=%?([\w.\-]+)")


def computations(hlo: str) -> dict[str, str]:
  """All computations in the text of a compiled module, as name -> body."""
  return dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", hlo, re.MULTILINE | re.DOTALL))


def _reached(parts: dict[str, str], names: Iterable[str]) -> str:
  """The text of some computations and of all that they call, each once."""
  seen, waiting = set(), list(names)
  while waiting:
    if (current := waiting.pop()) in parts and current not in seen:
      seen.add(current)
      waiting += re.findall(r"%([\w.\-]+)", parts[current])
  return "".join(parts[name] for name in sorted(seen))


def loop_bodies(hlo: str) -> list[str]:
  """The text of every loop's body, with the text of all computations that it calls."""
  parts = computations(hlo)
  return [_reached(parts, [body]) for body in _BODY.findall(hlo)]


def inside_loops(hlo: str) -> str:
  """The text of all loop bodies and of all computations that they call, each once."""
  return _reached(computations(hlo), _BODY.findall(hlo))


def collectives(hlo: str) -> dict[str, int]:
  """The number of collectives of each kind in the text of a compiled module; kinds that do not occur are left out."""
  return dict(collections.Counter(_COLLECTIVE.findall(hlo)))
