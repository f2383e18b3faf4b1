"""Reading compiled programs: which computations a loop reaches, and how many collectives there are."""

import re

_COLLECTIVE = re.compile(r" (?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def computations(hlo: str) -> dict[str, str]:
  """Name -> body of every computation in the text of a compiled module."""
  return dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", hlo, re.MULTILINE | re.DOTALL))


def loop_bodies(hlo: str) -> list[str]:
  """The text of every loop's body, with that of all computations which it calls."""
  parts = computations(hlo)
  bodies = []
  for body in re.findall(r"while\([^\n]*body=%?([\w.\-]+)", hlo):
    seen, waiting = set(), [body]
    while waiting:
      if (current := waiting.pop()) in parts and current not in seen:
        seen.add(current)
        waiting += re.findall(r"%([\w.\-]+)", parts[current])
    bodies.append("".join(parts[name] for name in sorted(seen)))
  return bodies


def collectives(hlo: str) -> int:
  """How many collectives some text of a compiled module holds."""
  return len(_COLLECTIVE.findall(hlo))
