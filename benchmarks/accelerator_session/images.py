"""The session's data set, decoded once for all parts."""

from pathlib import Path

import numpy as np

from benchmarks.accelerator_session.session import Session
from lrat_jax import data


def load(session: Session) -> data.Dataset:
  """The three splits as uint8; the first call in a session saves the decoded arrays for the others."""
  cached = Path(session.scratch) / "images.npz"
  if not cached.exists():
    whole = data.load(session.source, data_dir=session.data_dir, validation_size=1)
    as_bytes = lambda images: images if images.dtype == np.uint8 else np.round(255 * images).astype(np.uint8)
    partial = cached.with_suffix(".partial.npz")
    np.savez(
      partial,
      train_images=as_bytes(np.concatenate([whole.train.images, whole.validation.images])),
      train_labels=np.concatenate([whole.train.labels, whole.validation.labels]),
      test_images=as_bytes(whole.test.images),
      test_labels=whole.test.labels,
    )
    partial.rename(cached)
  scale = session.scale
  return data.load(f"npz:{cached}", validation_size=128 if session.trial else 1000, train_size=scale.train_size)
