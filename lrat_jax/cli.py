"""Command line of the installed package: `lrat-jax COMMAND ...`, or `python -m lrat_jax COMMAND ...`.

  lrat-jax train --config=lrat:cifar10       train, then evaluate; the same
                                             command again resumes
  lrat-jax evaluate --config=lrat            evaluate a trained run, or with
                                             --model=FILE any other model
  lrat-jax compare --methods=at,lrat         compare methods over several seeds
  lrat-jax report runs/lrat_digits_seed0     write an HTML report about runs
  lrat-jax convert weights.pt out.safetensors  import or export PyTorch weights

`lrat-jax COMMAND --help` explains each.
"""

import importlib
import sys
from collections.abc import Sequence

# Command -> its module, and the arguments that are put before the user's.
COMMANDS = {
  "train": ("lrat_jax.main", ()),
  "evaluate": ("lrat_jax.main", ("--mode=evaluate",)),
  "compare": ("lrat_jax.compare.__main__", ()),
  "report": ("lrat_jax.report.__main__", ()),
  "convert": ("lrat_jax.convert.__main__", ()),
}
BAD_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs a command and returns its exit code; for an unknown command, prints one line on stderr and returns 2."""
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  if not arguments or arguments[0] in ("--help", "-h", "-help"):
    print(__doc__.strip())
    return 0 if arguments else BAD_INPUT
  if arguments[0] == "--version":
    from lrat_jax.core import provenance

    print(f"lrat_jax {provenance.version()}")
    return 0
  command, *rest = arguments
  if command not in COMMANDS:
    print(f"error: {command!r} is not a command; choose from {', '.join(COMMANDS)}.", file=sys.stderr)
    return BAD_INPUT
  module, options = COMMANDS[command]
  return importlib.import_module(module).main([*options, *rest])


if __name__ == "__main__":
  sys.exit(main())
