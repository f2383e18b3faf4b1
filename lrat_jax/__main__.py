"""`python -m lrat_jax COMMAND ...`, the same as the console script `lrat-jax`."""

import sys

from lrat_jax.cli import main

if __name__ == "__main__":
  sys.exit(main())
