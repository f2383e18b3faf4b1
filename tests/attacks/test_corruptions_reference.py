"""Corruptions compared with the code that made CIFAR-10-C, on the same image with the same random draws.

corruptions_golden.npz is written by benchmarks/attack_references/corruptions.py; its docstring has the command.
"""

import argparse
import os

import numpy as np
import pytest

from benchmarks.attack_references import corruptions as reference
from lrat_jax.attacks import corruptions

# In units of 1 / 255. The original rounds glass and motion blur down to bytes; there is no other difference.
TOLERANCES = {"glass_blur": 1.01, "motion_blur": 1.01, "snow": 0.01}


@pytest.fixture(scope="module")
def golden():
  """kind -> the original's results at severities 1..5, float [5, 8, 8, 3]: every fourth pixel."""
  with np.load(reference.GOLDEN) as archive:
    return dict(archive)


@pytest.mark.parametrize("severity", reference.SEVERITIES)
@pytest.mark.parametrize("kind", [*reference.SHARED, "defocus_blur", "zoom_blur", "saturate"])
def test_a_corruption_is_the_originals(kind, severity, golden):
  (image,) = reference.images(1)
  found = reference.ours(kind, severity, image)[:: reference.STRIDE, :: reference.STRIDE]
  assert 255 * np.abs(found - golden[kind][severity - 1]).max() < TOLERANCES.get(kind, 0.01)


@pytest.mark.slow
def test_rows_of_the_original_itself():
  for package in ("cv2", "skimage"):
    pytest.importorskip(package)
  if not (path := os.environ.get("MAKE_CIFAR_C", "")):
    pytest.skip("MAKE_CIFAR_C does not name the original's make_cifar_c.py")
  rows = reference.rows(argparse.Namespace(make_cifar_c=path, num_images=100))
  kinds = {row["attack"].removeprefix("corruption ") for row in rows}
  assert kinds >= set(corruptions.CORRUPTIONS) - {"motion_blur", "snow"}  # these need ImageMagick
  for row in rows:
    if row["measure"].startswith("mean change"):
      # Both draw random numbers, and frost has no photographs here.
      tolerance = 0.1 if "frost" in row["attack"] else 0.06
      assert abs(row["ours"] / row["theirs"] - 1) < tolerance, row
    elif "jpeg" not in row["attack"]:
      assert row["ours"] < 1.01, row


def test_without_the_original_there_are_no_rows():
  assert reference.rows(argparse.Namespace(make_cifar_c="", num_images=1)) == []
