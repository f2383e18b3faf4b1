"""Trains a robust classifier and evaluates it; the same command again resumes.

  python -m lrat_jax.main --config=configs/lrat.py     digits, a minute or two
  python -m lrat_jax.main --config=lrat:cifar10,pgd,cw   two training attacks
  python -m lrat_jax.main --config=at:digits,suite=autoattack    AutoAttack
  python -m lrat_jax.main --config=at --model=w.pt --preprocessing=none   another model
  lrat-jax --help        the other commands: compare, report, convert

  --config=METHOD[:DATA_SET[,ATTACK...][,NORM=RADIUS...][,suite=SUITE]]
                 METHOD: at irat lrat lrat_irat max softmax eat trades mart, or
                 a file such as configs/lrat.py; DATA_SET: digits fashion_mnist
                 cifar10 cifar100 svhn tiny_imagenet imagenet;
                 SUITE: apgd (default) pgd autoattack union
                 autoattack_union full full_apgd unforeseen multirobustbench
                 corruptions lpips transfer;
                 NORM=RADIUS, such as linf=4/255: in training and evaluation
  --config.X=Y   sets any field, such as config.seed; all are in
                 lrat_jax/config/default.py
  --mode=MODE    train_and_evaluate (default), train or evaluate
  --workdir=DIR  the run's folder; default runs/NAME_seedSEED
  --model=MODEL  FILE.pt, FILE.safetensors, or PACKAGE.MODULE:FUNCTION
  --preprocessing=NAME --mean=M,M,M --std=S,S,S --activation=NAME
  --architecture=NAME --robustbench=NAME --key=NAME
                 about the file of --model; see lrat-jax convert --help
  --dry_run      estimates steps, memory and time; writes nothing
  --dry_run --topology=v5e:4x4    compiles for TPUs that are not present
  --track=LIST   also logs the run to wandb, mlflow
  --profile=DIR  writes a profiler trace, for TensorBoard or Perfetto
  --coordinator=HOST:PORT --num_processes=N --process_id=I    several processes

Exit codes: 0 done, 2 bad input, 3 a metric was not finite, 4 a file could not
be written or read, 75 stopped with everything saved.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from absl import logging

from lrat_jax.config import command_line
from lrat_jax.config.command_line import Options
from lrat_jax.core.errors import (
  CheckpointError,
  ConfigError,
  CorruptFileError,
  NonFiniteError,
  Preempted,
  UserCodeError,
)

BAD_INPUT, NOT_FINITE, FILES_FAILED, STOPPED = 2, 3, 4, 75


class _Outcome(NamedTuple):
  """How the program ended: exit code, message, and whether all processes of the run end in the same way."""

  code: int = 0
  line: str = ""
  together: bool = True


def _outcome(options: Options, stop: Callable[[], bool]) -> _Outcome:
  from rich.console import Console

  from lrat_jax.run import run  # here, so that help and flag errors do not wait for the imports of training

  again = "run the same command again to continue."
  try:
    run(options, Console(), stop)
  except (ConfigError, UserCodeError) as error:
    return _Outcome(BAD_INPUT, f"error: {error}")
  except CorruptFileError as error:
    return _Outcome(BAD_INPUT, f"error: {error}", together=False)
  except NonFiniteError as error:
    return _Outcome(NOT_FINITE, f"error: {error} The checkpoints before it are intact.")
  except CheckpointError as error:
    return _Outcome(FILES_FAILED, f"error: {error} The checkpoints before it are intact; {again}", together=False)
  except OSError as error:
    where = f": {error.filename}" if error.filename else ""
    line = f"error: {error.strerror or error}{where}. The checkpoints are intact; {again}"
    return _Outcome(FILES_FAILED, line, together=False)
  except Preempted as stopped:
    return _Outcome(STOPPED, f"{stopped}; {again}")
  return _Outcome()


@contextlib.contextmanager
def _background_failures_in_a_line() -> Iterator[None]:
  """Prints one line instead of a background thread's traceback; the run gets the error too."""

  def say(failed: threading.ExceptHookArgs) -> None:
    print(f"{failed.thread.name} failed: {' '.join(str(failed.exc_value).split())}", file=sys.stderr)

  before, threading.excepthook = threading.excepthook, say
  try:
    yield
  finally:
    threading.excepthook = before


def main(arguments: Sequence[str] | None = None, *, stop: Callable[[], bool] = lambda: False) -> int:
  """Runs the program on command-line arguments and returns its exit code; an error is printed as one line on stderr.

  Args:
    stop: called after every call of one or more training steps and after every evaluated batch; if it returns True, the
      run saves and ends, as it does after SIGTERM. Use it to stop a run in a thread, because only the main thread
      receives signals.
  """
  try:
    options = command_line.parse(sys.argv[1:] if arguments is None else arguments)
  except (ConfigError, UserCodeError) as error:
    print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT
  if options.config is None:
    print(__doc__.strip())
    return 0
  logging.set_verbosity(logging.FATAL)  # Orbax and TFDS warn about their own defaults, and also log what they raise
  with _background_failures_in_a_line():
    code, line, together = _outcome(options, stop)
  from lrat_jax.core import distributed

  if line and (distributed.is_primary() or not together):
    print(line, file=sys.stderr, flush=True)
  if not together and distributed.place().count > 1:
    os._exit(code)  # the other processes wait for this one inside a step; they notice the error only when it ends
  return code


if __name__ == "__main__":
  sys.exit(main())
