"""Trains and evaluates the methods of a comparison, and writes one table and one plot.

  python -m lrat_jax.compare --methods=at,irat,lrat,lrat_irat --seeds=0,1,2
  python -m lrat_jax.compare --methods=at,lrat:pgd+cw,irat@global_weights.kind=mail --data=fashion_mnist

  --methods=METHOD,METHOD...     NAME[:ATTACK+ATTACK][@FIELD=VALUE...]: a file in configs/ (or a path), its training
                           attacks, and fields for this method only; the others are compared with the first
  --seeds=N,N...           default 0,1,2
  --data=PRESET[,NORM=RADIUS...]   digits (default), fashion_mnist, cifar10, svhn,
                           cifar100, tiny_imagenet, imagenet; with other radii, such as linf=4/255
  --suite=SUITE            evaluates all methods; default full
  --config.FIELD=VALUE     sets any field, for every method
  --workdir=DIR            the folder of the runs and the result; default runs/compare_PRESET
  --jobs=N                 number of runs at the same time, which share the CPU's cores; default 1
  --track=wandb,mlflow     also logs the runs to these services

Runs that are finished are not repeated; the same command again resumes. The result is comparison.md, comparison.json
and comparison.png in the workdir.
Exit codes: 0 done, 1 a run failed, 2 bad input, 3 a run had a metric that was not finite.
"""

import signal
import sys
from collections.abc import Sequence

from lrat_jax.compare.options import BAD_INPUT, NOT_FINITE, parse
from lrat_jax.core.errors import ConfigError, CorruptFileError

__all__ = ["BAD_INPUT", "NOT_FINITE", "main", "parse"]


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the program on command-line arguments and returns its exit code; bad input is one line on stderr."""
  arguments = sys.argv[1:] if arguments is None else arguments
  try:
    options = parse(arguments)
    if options is None:
      print(__doc__.strip())
      return 0
    from lrat_jax.compare import runner

    return runner.run(options, arguments)
  except (ConfigError, CorruptFileError) as error:
    print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  sys.exit(main())
