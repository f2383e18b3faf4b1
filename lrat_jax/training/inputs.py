"""Prepares the batch of a step: images as floats, augmented and mixed, and their labels."""

from collections.abc import Callable

import jax
from jax import Array
from ml_collections import ConfigDict

from lrat_jax import data
from lrat_jax.core import sharding

# Folded into an image's augmentation key to make the key for mixing; augmentation itself does not fold in this number.
_MIXING = 1000


def prepare(
  config: ConfigDict, keys: Array, batch: data.loader.Batch, num_classes: Callable[[], int]
) -> tuple[Array, Array]:
  """This device's images, float [b, h, w, c] in [0, 1], and labels, int [b] or distributions float [b, classes].

  Args:
    keys: one per image [b], derived from the step and the image's index.
    num_classes: called only if images are mixed.
  """
  fields, labels = config.data, batch["labels"]
  images = data.to_float(batch["images"])
  images = data.augment(
    keys,
    images,
    crop_padding=fields.crop_padding,
    flip=fields.flip,
    randaugment=(fields.randaugment.num_ops, fields.randaugment.magnitude),
    idbh=fields.idbh,
    cutout=fields.cutout,
  )
  if fields.mixup or fields.cutmix:
    labels = data.as_distributions(labels, num_classes())
    others = data.next_rows((images, labels), sharding.AXIS)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, _MIXING))(keys)
    images, labels = data.mix(keys, images, labels, *others, mixup=fields.mixup, cutmix=fields.cutmix)
  return images, labels
