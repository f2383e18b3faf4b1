"""Evaluates the weights of a session again, on any machine: accuracies from its files beside those that it recorded."""

import json
import tempfile
from pathlib import Path

from benchmarks.accelerator_session import evaluation, images, table, weights
from benchmarks.accelerator_session.session import Session

_COLUMNS = {"images": "n", "clean %": "clean", "robust %": "robust"}


def evaluate(folder: Path, data_dir: str, attacks: list[str], num_images: int) -> None:
  """Prints a row for each network and attack.

  Args:
    folder: a session's `--out`.
    data_dir: where TFDS keeps CIFAR-10; empty for a trial on digits.
    attacks: names in the session's table; empty means all.
    num_images: the number of images to attack, from the first one; 0 means as many as in the session.
  """
  records = json.loads((folder / "records.json").read_text())
  trial = records["trial"]
  source = "tfds:cifar10" if data_dir else "digits"
  rows = []
  with tempfile.TemporaryDirectory() as scratch:
    session = Session("reload", str(folder), scratch, source, data_dir, trial, float("inf"), "")
    test = images.load(session).test
  recorded = {(row["method"], row["attack"]): row for row in records.get(evaluation.TABLE, [])}
  for name in weights.names(folder):
    model = weights.load(folder, name)
    for attack, (count, entry) in evaluation.suite(session.scale, session.preset, weights.names(folder)).items():
      if attacks and attack not in attacks:
        continue
      found = evaluation.accuracy(model, test, num_images or count, attack, entry)
      before = recorded.get((name, attack), {})
      row = {"network": name, "attack": attack}
      for side, figures in (("", found), ("session: ", before)):
        row |= {f"{side}{what}": figures.get(key, "") for what, key in _COLUMNS.items()}
      rows.append(row)
  print(table.markdown(rows))
