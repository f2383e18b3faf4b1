"""Trains a robust classifier and evaluates it; the same command again resumes.

  python -m lrat_jax.main --config=configs/lrat.py     digits, a minute or two
  python -m lrat_jax.main --config=lrat:cifar10,pgd,cw   two training attacks
  python -m lrat_jax.main --config=at:digits,suite=autoattack    AutoAttack
  python -m lrat_jax.main --config=at --model=w.pt --preprocessing=none   another model
  lrat-jax --help        the other commands: compare, report, convert

  --config=METHOD[:DATA_SET[,ATTACK...][,suite=SUITE]]
                 METHOD: at irat lrat lrat_irat max softmax eat trades mart, or
                 a file such as configs/lrat.py; DATA_SET: digits fashion_mnist
                 cifar10 cifar100 svhn tiny_imagenet imagenet;
                 SUITE: apgd (if not given) pgd autoattack union
                 autoattack_union full full_apgd unforeseen multirobustbench
                 corruptions lpips transfer
  --config.X=Y   any field, as config.seed; lrat_jax/config/default.py explains them
  --mode=MODE    train_and_evaluate (default), train or evaluate
  --workdir=DIR  where the run lives; default runs/NAME_seedSEED
  --model=MODEL  FILE.pt, FILE.safetensors, or PACKAGE.MODULE:FUNCTION
  --preprocessing=NAME --mean=M,M,M --std=S,S,S --activation=NAME
  --architecture=NAME --robustbench=NAME --key=NAME
                 of the file of --model: lrat-jax convert --help
  --dry_run      prints steps, memory and time; writes nothing
  --dry_run --topology=v5e:4x4    compiles for TPUs that are not there
  --track=LIST   logs the run to wandb, mlflow as well
  --profile=DIR  a trace of where the time goes, for TensorBoard or Perfetto
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
  """How the program ended: its exit code, the line that says why, and whether all processes of the run end so."""

  code: int = 0
  line: str = ""
  together: bool = True


def _outcome(options: Options, stop: Callable[[], bool]) -> _Outcome:
  from rich.console import Console

  from lrat_jax.run import run  # here, so that help and a wrong flag need not wait for what training imports

  again = "the same command goes on there."
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
  """In place of a background thread's traceback: what ended it reaches the run as an error too."""

  def say(failed: threading.ExceptHookArgs) -> None:
    print(f"{failed.thread.name} failed: {' '.join(str(failed.exc_value).split())}", file=sys.stderr)

  before, threading.excepthook = threading.excepthook, say
  try:
    yield
  finally:
    threading.excepthook = before


def main(arguments: Sequence[str] | None = None, *, stop: Callable[[], bool] = lambda: False) -> int:
  """Runs the program on command-line arguments and returns its exit code; what went wrong is one line on stderr.

  Args:
    stop: asked after every step and every evaluated batch; where it returns True, the run saves and ends, as it does
      after SIGTERM. The way to stop a run in a thread, which hears no signals.
  """
  try:
    options = command_line.parse(sys.argv[1:] if arguments is None else arguments)
  except (ConfigError, UserCodeError) as error:
    print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT
  if options.config is None:
    print(__doc__.strip())
    return 0
  logging.set_verbosity(logging.FATAL)  # Orbax and TFDS warn of their own defaults, and log what they raise anyway
  with _background_failures_in_a_line():
    code, line, together = _outcome(options, stop)
  from lrat_jax.core import distributed

  if line and (distributed.is_primary() or not together):
    print(line, file=sys.stderr, flush=True)
  if not together and distributed.place().count > 1:
    os._exit(code)  # the others wait for this process in the middle of a step; its end is how they learn of it
  return code


if __name__ == "__main__":
  sys.exit(main())
