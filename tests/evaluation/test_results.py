"""The table at the end of an evaluation: the content of its rows."""

import io

from rich.console import Console

from lrat_jax.evaluation import results

PGD = {"name": "pgd", "norm": "linf", "epsilon": "0.1", "step_size": "0.01", "num_steps": 20}


def _table(robust, held_out):
  said = {"name": "a run", "n": 1000, "split": "test", "clean": 0.9, "union": min(robust.values()), "robust": robust}
  said |= {"suite": dict.fromkeys(robust, PGD), "held_out": held_out, "warnings": ["[red] is no colour here"]}
  console = Console(file=io.StringIO(), width=120)
  results.print_table(console, said, dict.fromkeys(["clean", *robust], 1.25))
  return console.file.getvalue()


def test_one_held_out_attack_has_one_row_and_several_have_three():
  one = _table({"a": 0.25}, {"attacks": ["a"], "mean": 0.25, "union": 0.25, "lowest": 0.25})
  assert "a run on 1,000 test images" in one and "90.00" in one and "warning: [red] is no colour here" in one
  assert "over 1 attack of kinds not trained on" in one and one.count("held out") == 1
  two = _table({"a": 0.25, "b": 0.5}, {"attacks": ["a", "b"], "mean": 0.375, "union": 0.125, "lowest": 0.25})
  assert "over 2 attacks of kinds not trained on" in two
  rows = [line for line in two.splitlines() if "held out" in line]
  assert [row.split("│")[2].strip() for row in rows] == ["37.50", "12.50", "25.00"]
