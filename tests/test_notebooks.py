"""The notebooks: executed in full on a small run, stored without outputs, and showing what their text describes."""

import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from tests.helpers import SMALL

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
OPTIONS = {name: value for name, value in SMALL.items() if name != "train.epochs"} | {"train_attacks.cw.num_steps": 2}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
  notebook = json.loads(path.read_text())
  nbformat.validate(notebook)
  assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
  assert notebook["metadata"]["language_info"] == {"name": "python"}
  code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
  assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def _with_parameters(notebook, **parameters):
  """Adds a cell with other values after the cell that is tagged "parameters"; returns the notebook."""
  (place,) = [n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
  given = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
  assert all(f"{name} = " in notebook.cells[place].source for name in parameters)
  notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(given))
  return notebook


def test_weight_distributions_runs_and_shows_its_pictures(tmp_path):
  notebook = _with_parameters(
    nbformat.read(FOLDER / "weight_distributions.ipynb", as_version=4),
    EPOCHS=2,
    WORKDIR=str(tmp_path / "run"),
    OPTIONS=[f"--config.{name}={value}" for name, value in OPTIONS.items()],
  )
  NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()
  outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
  text = "".join(output.text for output in outputs if output.output_type == "stream")
  assert "epoch   2/2" in text and "[local weights, global weights]" in text and "2 epochs, " in text
  assert "stderr" not in {output.get("name") for output in outputs}
  assert sum("image/png" in output.get("data", {}) for output in outputs) == 6
  # The numbers shown for the image whose weight moves most are those in the file.
  _, table = text.split("epoch  natural")
  index = int(text.split("image ")[1].split(",")[0])
  with np.load(tmp_path / "run" / "weights" / "epoch_0001.npz") as arrays:
    (row,) = np.flatnonzero(arrays["indices"] == index)
    expected = [arrays["natural_weights"][row], *arrays["adversarial_weights"][row], arrays["global_weights"][row]]
  np.testing.assert_allclose([float(word) for word in table.splitlines()[2].split()], [2, *expected], atol=0.006)
