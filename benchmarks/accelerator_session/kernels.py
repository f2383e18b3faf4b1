"""The kernels that take the most time on the device in a few calls, from a profiler's trace."""

import collections
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax


def longest(call: Callable[[], object], most: int = 10) -> list[dict[str, object]]:
  """The kernels with the longest total time during `call`: name, number of runs, milliseconds, share of all kernels."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      jax.block_until_ready(call())
    (path,) = Path(folder).rglob("*.xplane.pb")
    profile = jax.profiler.ProfileData.from_file(str(path))
    devices = [plane for plane in profile.planes if "/device:" in plane.name] or [
      plane for plane in profile.planes if plane.name == "/host:CPU"
    ]
    seconds, times = collections.Counter(), collections.Counter()
    for plane in devices:
      for line in plane.lines:
        if "Stream" not in line.name and "XLA" not in line.name.upper():
          continue
        for event in line.events:
          seconds[event.name] += event.duration_ns / 1e9
          times[event.name] += 1
  total = sum(seconds.values())
  return [
    {"kernel": name, "times": times[name], "ms": 1e3 * spent, "share %": 100 * spent / total}
    for name, spent in seconds.most_common(most)
  ]
