"""Copies of a small finished run, which tests may change."""

import json
import shutil

import numpy as np
import pytest


@pytest.fixture
def copy(finished, tmp_path):
  """A function that copies the run to a folder and changes the copy's results and configuration."""

  def make(name="run", results=(), config=(), flip=None):
    workdir = tmp_path / name
    shutil.copytree(finished, workdir, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    found = json.loads((workdir / "results.json").read_text()) | dict(results)
    plain = json.loads((workdir / "config.json").read_text())
    for path, value in dict(config).items():
      for tree in (plain, found["config"]):
        *parents, leaf = path.split(".")
        for parent in parents:
          tree = tree[parent]
        tree[leaf] = value
    if flip is not None:  # one image more or less is robust
      arrays = dict(np.load(workdir / "per_example.npz"))
      arrays[f"robust/{flip}"] = arrays[f"robust/{flip}"] ^ (np.arange(found["n"]) == 3)
      np.savez(workdir / "per_example.npz", **arrays)
    (workdir / "results.json").write_text(json.dumps(found))
    (workdir / "config.json").write_text(json.dumps(plain))
    return workdir

  return make
