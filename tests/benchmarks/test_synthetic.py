"""The generator of synthetic images: it recovers a Gaussian that it is fitted on, and its images match their labels."""

import numpy as np

from benchmarks import synthetic
from lrat_jax import data
from tests.helpers import make_split


def test_a_gaussian_is_found_again():
  random = np.random.default_rng(0)
  labels = random.integers(0, 2, 4000)
  spread = np.array([[0.06, 0.02, 0.0], [0.0, 0.05, 0.03], [0.0, 0.0, 0.04]])
  images = 0.5 + 0.1 * (2 * labels[:, None] - 1) + random.normal(size=(4000, 3)) @ spread
  drawn = synthetic.fit(images, labels, kept=1.0).sample(labels, random)
  for label in (0, 1):
    ours, theirs = drawn[labels == label], images[labels == label]
    np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(np.cov(ours.T), np.cov(theirs.T), atol=4e-4)


def test_images_of_edms_layout_are_of_their_classes(tmp_path):
  split = make_split(400)
  made = synthetic.make(split, 300)
  assert made["image"].shape == (300, 8, 8, 1) and made["image"].dtype == np.uint8
  rows = made["image"].reshape(300, 4, -1).mean(axis=-1)
  assert (rows.argmax(axis=1) == made["label"]).mean() > 0.95
  np.savez(tmp_path / "a.npz", **made)
  extra = data.mixtures.open_extra(f"npz:{tmp_path}/a.npz", 400, (8, 8, 1), 4)
  assert len(extra.labels) == 300
  np.testing.assert_array_equal(synthetic.make(split, 300)["image"], made["image"])
