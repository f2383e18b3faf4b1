"""A custom data set: which of scikit-learn's digits are odd.

python -m lrat_jax.main --config=configs/lrat.py --config.data.source=examples.custom_data:odd_or_even
"""

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def odd_or_even():
  """Four arrays: images uint8, or floats in [0, 1], [n, h, w] or [n, h, w, c]; labels int [n], numbered from 0.

  It is called again for each run and must return the same arrays each time. The validation images are taken from the
  training images (config.data.validation_size).
  """
  digits = load_digits()
  images, labels = digits.images / 16, digits.target % 2
  train_images, test_images, train_labels, test_labels = train_test_split(
    images, labels, test_size=500, random_state=0, stratify=labels
  )
  return {
    "train_images": train_images,
    "train_labels": train_labels,
    "test_images": test_images,
    "test_labels": test_labels,
  }
