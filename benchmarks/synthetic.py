"""Synthetic images of a data set, from a generator fitted only on its training images, in EDM's file format.

  python -m benchmarks.synthetic --preset=digits --count=20000 --out=runs/digits_synthetic.npz

The generator is as simple as possible: a Gaussian for each class, on the first principal components of all training
images. It takes the place of a diffusion model if there is none; it demonstrates how the data are used, not how good a
generator can be. Validation and test images are not used.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lrat_jax import data
from lrat_jax.config import default as config_lib

# The share of the training images' variance that the principal components keep; the rest is mostly noise.
_KEPT = 0.95


class Generator(NamedTuple):
  """A Gaussian for each of c classes in a space of k components.

  Attributes:
    centre: float [pixels], the mean image.
    components: float [k, pixels], orthonormal.
    means: float [c, k].
    roots: float [c, k, k]; the covariances are root @ root.T.
  """

  centre: np.ndarray
  components: np.ndarray
  means: np.ndarray
  roots: np.ndarray

  def sample(self, labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draws images float [n, pixels] in [0, 1], one for each class in `labels` [n]."""
    noise = generator.normal(size=(len(labels), len(self.components)))
    places = self.means[labels] + np.einsum("nij,nj->ni", self.roots[labels], noise)
    return np.clip(self.centre + places @ self.components, 0, 1)


def fit(images: np.ndarray, labels: np.ndarray, kept: float = _KEPT) -> Generator:
  """Fits a generator on images float [n, pixels] in [0, 1] with labels int [n] of classes from 0; `kept` as `_KEPT`."""
  centre = images.mean(axis=0)
  _, singular, components = np.linalg.svd(images - centre, full_matrices=False)
  explained = np.cumsum(singular**2) / np.sum(singular**2)
  components = components[: 1 + int(np.searchsorted(explained, kept))]
  places = (images - centre) @ components.T
  classes = [places[labels == label] for label in range(labels.max() + 1)]
  small = 1e-6 * np.eye(len(components))  # the covariance of a class with few images is singular
  roots = [np.linalg.cholesky(np.cov(of_class.T) + small) for of_class in classes]
  return Generator(centre, components, np.stack([of_class.mean(axis=0) for of_class in classes]), np.stack(roots))


def make(split: data.Split, count: int, seed: int = 0) -> dict[str, np.ndarray]:
  """{"image" uint8 [count, h, w, c], "label" int64 [count]}, with classes drawn in the proportions of the split."""
  pixels = data.to_float(split.images).reshape(len(split.labels), -1).astype(np.float64)
  random = np.random.default_rng(seed)
  labels = random.choice(split.labels, count).astype(np.int64)
  images = fit(pixels, split.labels).sample(labels, random)
  return {"image": np.round(255 * images).astype(np.uint8).reshape(count, *split.images.shape[1:]), "label": labels}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--preset", default="digits")
  parser.add_argument("--count", type=int, default=20000)
  parser.add_argument("--out", type=Path, default=Path("runs/digits_synthetic.npz"))
  options = parser.parse_args()
  dataset = data.load_for(config_lib.default("synthetic", options.preset).data)
  options.out.parent.mkdir(parents=True, exist_ok=True)
  np.savez(options.out, **make(dataset.train, options.count))
  print(f"{options.count:,} images from {len(dataset.train.labels):,} training images are in {options.out}.")


if __name__ == "__main__":
  main()
