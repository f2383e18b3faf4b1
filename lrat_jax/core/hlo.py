"""Reading compiled programs: which computations a loop reaches, and which collectives there are."""

import collections
import re
from collections.abc import Iterable

_KINDS = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
_COLLECTIVE = re.compile(rf" ({'|'.join(_KINDS)})(?:-start)?\(")
_BODY = re.compile(r"while\([^\n]*body=%?([\w.\-]+)")


def computations(hlo: str) -> dict[str, str]:
  """Name -> body of every computation in the text of a compiled module."""
  return dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", hlo, re.MULTILINE | re.DOTALL))


def _reached(parts: dict[str, str], names: Iterable[str]) -> str:
  """The text of some computations, and of all which they call, each once."""
  seen, waiting = set(), list(names)
  while waiting:
    if (current := waiting.pop()) in parts and current not in seen:
      seen.add(current)
      waiting += re.findall(r"%([\w.\-]+)", parts[current])
  return "".join(parts[name] for name in sorted(seen))


def loop_bodies(hlo: str) -> list[str]:
  """The text of every loop's body, with that of all computations which it calls."""
  parts = computations(hlo)
  return [_reached(parts, [body]) for body in _BODY.findall(hlo)]


def inside_loops(hlo: str) -> str:
  """The text of all loops' bodies, what several reach once."""
  return _reached(computations(hlo), _BODY.findall(hlo))


def collectives(hlo: str) -> dict[str, int]:
  """How many collectives of each kind some text of a compiled module holds; kinds that it has none of are left out."""
  return dict(collections.Counter(_COLLECTIVE.findall(hlo)))
