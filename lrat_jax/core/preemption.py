"""Stopping a run gracefully: how a request to stop is received, and at which step all processes stop."""

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from jax.experimental import multihost_utils

from lrat_jax.core import distributed


class Watch:
  """A context that receives SIGTERM and Ctrl-C. Calling it returns whether the run should stop.

  Outside the main thread no signals are received, and only `asked` decides when to stop.

  Call it at the same points of every process. With several processes, JAX's preemption service listens for SIGTERM on
  each, and selects the call that returns True on all, so that all save the same step. A second Ctrl-C ends the process
  at once; only unsaved work is lost.

  Args:
    asked: also called at every call; with several processes, it must return the same on each.
  """

  def __init__(self, asked: Callable[[], bool] = lambda: False):
    self._asked = False
    self._asked_by_caller = asked
    self._calls = 0
    self._before: dict[signal.Signals, Any] = {}

  def __enter__(self) -> "Watch":
    if threading.current_thread() is not threading.main_thread():
      return self
    handlers = {signal.SIGINT: self._hear_ctrl_c}
    if distributed.place().count == 1:
      handlers[signal.SIGTERM] = self._hear
    self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    return self

  def __exit__(self, *_: Any) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _hear(self, number: int, frame: FrameType | None) -> None:
    self._asked = True

  def _hear_ctrl_c(self, number: int, frame: FrameType | None) -> None:
    print("Stopping as soon as the current work is saved; Ctrl-C again stops at once.", file=sys.stderr, flush=True)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTERM)

  def __call__(self) -> bool:
    self._calls += 1
    return self._asked or self._asked_by_caller() or multihost_utils.reached_preemption_sync_point(self._calls)
