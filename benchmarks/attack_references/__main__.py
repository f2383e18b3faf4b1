"""Our attacks compared with other implementations: same networks, images, steps and constants, one table at a time.

    python -m benchmarks.attack_references --table=minimum_norm
    python -m benchmarks.attack_references --table=gradient --output=gradient.json
    python -m benchmarks.attack_references --table=latent --peers=DIR
    python -m benchmarks.attack_references --table=corruptions --make_cifar_c=PATH

The first lines of a table's module here list the packages that it needs.
"""

import argparse
import importlib
from pathlib import Path

from benchmarks import common

TABLES = ("minimum_norm", "gradient", "latent", "corruptions")


def main() -> None:
  options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  options.add_argument("--table", choices=TABLES, required=True)
  options.add_argument("--num_images", type=int, default=100)
  options.add_argument("--peers", type=Path, help="latent: the folder with the clones")
  options.add_argument("--make_cifar_c", type=Path, help="corruptions: the file of that name")
  options.add_argument("--output", type=Path, help="a JSON file for the table")
  arguments = options.parse_args()
  if arguments.table == "corruptions" and arguments.make_cifar_c is None:
    options.error("--table=corruptions needs --make_cifar_c=PATH.")
  if arguments.table == "latent" and arguments.peers is None:
    options.error("--table=latent needs --peers=DIR.")
  module = importlib.import_module(f"benchmarks.attack_references.{arguments.table}")
  common.report(arguments.table, module.rows(arguments), arguments.output)


if __name__ == "__main__":
  main()
