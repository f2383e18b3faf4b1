"""Corrupted copies of a test split, read from files: only the right rows are read, and each error is one line."""

import re

import numpy as np
import pytest
from ml_collections import ConfigDict

from lrat_jax import data
from lrat_jax.data import tfds as tfds_lib
from tests.data.test_sources import _png

LABELS = np.array([2, 0, 1, 1, 0, 2, 1], np.int32)
INDICES = np.array([1, 2, 4, 5, 8, 9, 20], np.int32)  # as in a test split that was cut out of a larger set
SHAPE = (4, 5, 3)


def write(folder, labels=LABELS, kinds=("fog", "rain"), places=None):
  """Writes files in which each image is filled with 10 * severity + its place in the published order."""
  places = np.arange(len(labels)) if places is None else places
  published = np.empty_like(labels)
  published[places] = labels
  np.save(folder / "labels.npy", np.tile(published, 5).astype(np.uint8))
  values = [10 * severity + place for severity in range(1, 6) for place in range(len(labels))]
  for kind in kinds:
    np.save(folder / f"{kind}.npy", np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (35, *SHAPE)))
  return str(folder)


def test_copies_are_those_of_the_images_asked_for(tmp_path):
  corrupted = data.open_corrupted(write(tmp_path), LABELS, INDICES, SHAPE)
  assert corrupted.kinds == ("fog", "rain")
  found = corrupted.read("rain", 4, np.array([9, 1]))
  assert found.shape == (2, *SHAPE) and found.dtype == np.uint8 and found[:, 0, 0, 0].tolist() == [45, 40]


def test_copies_in_another_order_are_found_by_their_places(tmp_path):
  places = np.array([6, 5, 4, 3, 2, 1, 0])
  corrupted = data.open_corrupted(write(tmp_path, places=places), LABELS, INDICES, SHAPE, places)
  assert corrupted.read("fog", 1, np.array([1, 20]))[:, 0, 0, 0].tolist() == [16, 10]
  with pytest.raises(data.DataError, match="labels.npy says 1 for test image 0 at severity 1, but the data set says 2"):
    data.open_corrupted(str(tmp_path), LABELS, INDICES, SHAPE)


def test_files_are_mapped_and_not_loaded(tmp_path, monkeypatch):
  folder, mapped = write(tmp_path), []
  open_memmap = np.lib.format.open_memmap
  monkeypatch.setattr(np.lib.format, "open_memmap", lambda *a, **k: mapped.append(open_memmap(*a, **k)) or mapped[-1])
  found = data.open_corrupted(folder, LABELS, INDICES, SHAPE).read("fog", 2, np.array([5]))
  assert len(mapped) == 2 and all(isinstance(array, np.memmap) for array in mapped)
  assert not isinstance(found, np.memmap) and not np.shares_memory(found, mapped[-1])


def test_a_changed_file_has_another_version(tmp_path):
  corrupted = data.open_corrupted(write(tmp_path), LABELS, INDICES, SHAPE)
  before = corrupted.version("fog")
  assert before == corrupted.version("fog") != corrupted.version("rain")
  np.save(tmp_path / "fog.npy", np.zeros((1, *SHAPE), np.uint8))
  assert corrupted.version("fog") != before


@pytest.mark.parametrize(
  ("name", "array", "message"),
  [
    ("fog", np.zeros((34, *SHAPE), np.uint8), "fog.npy is uint8 (34, 4, 5, 3); it must be uint8 (35, 4, 5, 3)."),
    ("fog", np.zeros((35, *SHAPE), np.float32), "fog.npy is float32 (35, 4, 5, 3); it must be uint8"),
    ("fog", np.array([None] * 35), "fog.npy cannot be read: "),
    ("labels", np.zeros(7, int), "is int64 (7,); it must be integers (35,), for 7 test images at 5 severities."),
    ("labels", np.zeros(35), "is float64 (35,); it must be integers (35,), for 7 test images at 5 severities."),
    ("labels", np.tile([2, 0, 1, 0, 0, 2, 1], 5), "0 for test image 3 at severity 1, but the data set says 1 (5 of 35"),
  ],
)
def test_what_is_no_copy_of_the_test_images_is_refused(tmp_path, name, array, message):
  folder = write(tmp_path)
  np.save(tmp_path / f"{name}.npy", array)
  with pytest.raises(data.DataError, match=f"^data.corruptions='.*{re.escape(message)}") as error:
    data.open_corrupted(folder, LABELS, INDICES, SHAPE).check("fog")
  assert "\n" not in str(error.value)


def test_what_is_missing_is_named_with_what_is_there(tmp_path):
  with pytest.raises(data.DataError, match="No such file or directory"):
    data.open_corrupted(str(tmp_path / "nowhere"), LABELS, INDICES, SHAPE)
  with pytest.raises(data.DataError, match=r"does not contain labels.npy, only \[\]"):
    data.open_corrupted(str(tmp_path), LABELS, INDICES, SHAPE)
  corrupted = data.open_corrupted(write(tmp_path), LABELS, INDICES, SHAPE)
  with pytest.raises(data.DataError, match=r"does not contain snow.npy; its kinds are \['fog', 'rain'\]"):
    corrupted.check("snow")


def test_a_file_that_is_cut_short_is_refused(tmp_path):
  folder = write(tmp_path)
  (tmp_path / "fog.npy").write_bytes((tmp_path / "fog.npy").read_bytes()[:-1])
  with pytest.raises(data.DataError, match="fog.npy cannot be read"):
    data.open_corrupted(folder, LABELS, INDICES, SHAPE).check("fog")


def test_no_folder_is_no_copies():
  assert (
    data.corrupted_for(ConfigDict({"corruptions": "", "source": "digits", "data_dir": ""}), LABELS, INDICES, SHAPE)
    is None
  )


def test_tfds_tells_the_original_order(tmp_path, monkeypatch):
  from lrat_jax.data import corruptions

  places = np.array([3, 0, 6, 1, 5, 2, 4])
  monkeypatch.setattr(corruptions, "original_places", lambda name, data_dir: places if name == "x" else None)
  config = {"corruptions": write(tmp_path, places=places), "source": "tfds:x", "data_dir": ""}
  corrupted = data.corrupted_for(config, LABELS, INDICES, SHAPE)
  assert corrupted.read("fog", 1, np.array([1]))[0, 0, 0, 0] == 13


@pytest.mark.slow
def test_tfds_examples_tell_where_they_stood(tmp_path):
  tfds = pytest.importorskip("tensorflow_datasets")

  class NumberedImages(tfds.core.GeneratorBasedBuilder):
    """Nine images, labelled with their numbers; TFDS shuffles them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      image = tfds.features.Image(shape=(4, 5, 3), encoding_format="png")
      features = {"id": tfds.features.Text(), "image": image, "label": tfds.features.ClassLabel(num_classes=9)}
      return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
      return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
      for i in range(9):
        yield i, {"id": f"{split}_{i:05d}", "image": _png(np.full(SHAPE, i, np.uint8)), "label": i}

  NumberedImages(data_dir=tmp_path, file_format="array_record").download_and_prepare()
  places = tfds_lib.original_places("numbered_images", str(tmp_path))
  test = data.load("tfds:numbered_images", data_dir=str(tmp_path), trains=False).test
  assert places.tolist() == test.labels.tolist() != list(range(9))
