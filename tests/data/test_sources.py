"""Sources: scikit-learn's digits, files that the tests write and read back, and errors for invalid or damaged ones."""

import gzip
import io
import struct

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from lrat_jax import data


def _arrays(**changes):
  generator = np.random.default_rng(0)
  arrays = {
    "train_images": generator.integers(0, 256, (12, 5, 4, 3), np.uint8),
    "train_labels": np.arange(12) % 3,
    "test_images": generator.integers(0, 256, (4, 5, 4, 3), np.uint8),
    "test_labels": np.array([2, 1, 0, 2]),
  }
  return {name: array for name, array in (arrays | changes).items() if array is not None}


def _npz(tmp_path, **changes):
  path = tmp_path / "data.npz"
  np.savez(path, **_arrays(**changes))
  return f"npz:{path}"


def _write_idx(path, array, magic=None, cut=0):
  header = bytes(magic or (0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
  content = header + array.astype(np.uint8).tobytes()
  content = content[: len(content) - cut]
  with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as file:
    file.write(content)


def _write_idx_set(directory, suffix=".gz"):
  arrays = _arrays()
  for name, array in {
    "train-images-idx3-ubyte": arrays["train_images"][..., 0],
    "train-labels-idx1-ubyte": arrays["train_labels"],
    "t10k-images-idx3-ubyte": arrays["test_images"][..., 0],
    "t10k-labels-idx1-ubyte": arrays["test_labels"],
  }.items():
    _write_idx(directory / (name + suffix), array)
  return arrays


def _png(image):
  """The image as a PNG file, which TFDS stores as it is; to encode arrays, TFDS would need TensorFlow."""
  file = io.BytesIO()
  PIL.Image.fromarray(image).save(file, "PNG")
  return file.getvalue()


def test_digits_are_scikit_learns_each_once():
  dataset = data.load("digits", validation_size=197)
  assert dataset.image_shape == (8, 8, 1) and dataset.num_classes == 10
  assert [len(split.labels) for split in dataset[:3]] == [1100, 197, 500]
  bunch = load_digits()
  seen = np.concatenate([split.indices for split in dataset[:3]])
  np.testing.assert_array_equal(np.sort(seen), np.arange(1797))
  for split in dataset[:3]:
    np.testing.assert_array_equal(split.labels, bunch.target[split.indices])
    np.testing.assert_allclose(split.images[..., 0], bunch.images[split.indices] / 16)


def test_npz_is_read_back(tmp_path):
  dataset = data.load(_npz(tmp_path), validation_size=3)
  arrays = _arrays()
  assert dataset.num_classes == 3 and len(dataset.train.labels) == 9 and len(dataset.validation.labels) == 3
  np.testing.assert_array_equal(dataset.test.images, arrays["test_images"])
  np.testing.assert_array_equal(dataset.train.images, arrays["train_images"][dataset.train.indices])
  assert not set(dataset.train.indices) & set(dataset.validation.indices)


def test_keras_names_floats_and_grey_images_are_understood(tmp_path):
  arrays = _arrays()
  names = {"train_images": "x_train", "train_labels": "y_train", "test_images": "x_test", "test_labels": "y_test"}
  grey = {new: arrays[old][..., 0] / 255.0 if "images" in old else arrays[old] for old, new in names.items()}
  np.savez(tmp_path / "keras.npz", **grey)
  dataset = data.load(f"npz:{tmp_path}/keras.npz", validation_size=3)
  assert dataset.image_shape == (5, 4, 1) and dataset.train.images.dtype == np.float32


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_is_read_back(tmp_path, suffix):
  arrays = _write_idx_set(tmp_path, suffix)
  dataset = data.load(f"idx:{tmp_path}", validation_size=2)
  np.testing.assert_array_equal(dataset.test.images[..., 0], arrays["test_images"][..., 0])
  np.testing.assert_array_equal(dataset.train.labels, arrays["train_labels"][dataset.train.indices])


def test_tfds_reads_what_tfds_has_written(tmp_path):
  arrays = _arrays()

  class TinyImages(tfds.core.GeneratorBasedBuilder):
    """A data set for this test, prepared as users prepare theirs."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      image = tfds.features.Image(shape=(5, 4, 3), encoding_format="png")
      label = tfds.features.ClassLabel(num_classes=3)
      return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({"image": image, "label": label}))

    def _split_generators(self, _):
      return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
      for i, (image, label) in enumerate(zip(arrays[f"{split}_images"], arrays[f"{split}_labels"], strict=True)):
        yield i, {"image": _png(image), "label": int(label)}

  TinyImages(data_dir=tmp_path, file_format="array_record").download_and_prepare()
  dataset = data.load("tfds:tiny_images", data_dir=str(tmp_path), validation_size=2)
  assert dataset.num_classes == 3 and dataset.train.images.dtype == np.uint8
  order = [np.flatnonzero((arrays["test_images"] == image).all(axis=(1, 2, 3)))[0] for image in dataset.test.images]
  np.testing.assert_array_equal(np.sort(order), np.arange(4))
  np.testing.assert_array_equal(dataset.test.labels, arrays["test_labels"][order])


def test_the_same_images_are_held_out_every_time(tmp_path):
  source = _npz(tmp_path)
  first, second = (data.load(source, validation_size=4).validation.indices for _ in range(2))
  np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"test_labels": None}, r"it needs the arrays \['test_images', 'test_labels', 'train_images', 'train_labels'\]"),
    ({"train_images": np.zeros((12, 20), np.uint8)}, r"training images have shape \(12, 20\); it must be \[n, h, w\]"),
    ({"train_images": np.full((12, 5, 4, 3), 2.0)}, r"images are floats from 2 to 2; float images must be in \[0, 1\]"),
    ({"train_images": np.full((12, 5, 4, 3), np.nan)}, r"float images must be in \[0, 1\]"),
    ({"train_images": np.zeros((12, 5, 4, 3), np.int64)}, "images are int64; they must be uint8 in 0..255 or floats"),
    ({"test_images": np.zeros((4, 5, 5, 3), np.uint8)}, r"training images are \(5, 4, 3\), test images \(5, 5, 3\)"),
    ({"train_labels": np.arange(11)}, r"training labels have shape \(11,\), but there are 12 images"),
    ({"train_labels": np.linspace(0, 1, 12)}, "training labels are float64; they must be integers, or floats"),
    ({"train_labels": np.full((12, 3), 0.5)}, "row 0 is not a distribution .* entry is 0.5, its sum 1.5"),
    ({"train_labels": np.eye(12) * (np.arange(12) != 7)}, r"row 7 is not a distribution .* entry is 0, its sum 0\."),
    ({"train_labels": np.full((12, 2), [1.5, -0.5])}, "row 0 is not a distribution .* entry is -0.5, its sum 1"),
    ({"train_labels": np.full((12, 2), np.nan)}, "training labels: row 0 is not a distribution .* is nan"),
    ({"train_labels": np.full((11, 2), 0.5)}, r"training labels are float64 \(11, 2\); .* must be \(12, classes\)"),
    ({"train_labels": np.ones((12, 1))}, "training labels contain only one class"),
    ({"test_labels": np.full((4, 2), 0.5)}, r"test labels are float64 \(4, 2\); distributions .* must be \(4, 3\)"),
    ({"train_labels": np.arange(12) - 1}, "training labels range from -1 to 10"),
    ({"test_labels": np.array([0, 1, 2, 3])}, r"test labels range from 0 to 3; the classes are 0..2"),
    ({"train_labels": np.zeros(12, int), "test_labels": np.zeros(4, int)}, "contain only one class"),
    ({"train_images": np.array([{}] * 12)}, "train_images.npy contains Python objects, which are never loaded"),
  ],
)
def test_wrong_arrays_are_named(tmp_path, changes, message):
  with pytest.raises(data.DataError, match=message):
    data.load(_npz(tmp_path, **changes), validation_size=3)


@pytest.mark.parametrize("folder", [False, True])
def test_training_labels_may_be_distributions_and_test_labels_are_their_classes(folder, tmp_path):
  generator = np.random.default_rng(0)
  soft = {"train_labels": generator.dirichlet(np.ones(4), 12), "test_labels": generator.dirichlet(np.ones(4), 4)}
  if folder:
    for name, array in (_arrays() | soft).items():
      np.save(tmp_path / f"{name}.npy", array)
  dataset = data.load(f"npy:{tmp_path}" if folder else _npz(tmp_path, **soft), validation_size=3)
  assert dataset.num_classes == 4 and dataset.train.labels.dtype == np.float32
  for split in (dataset.train, dataset.validation):
    np.testing.assert_allclose(split.labels, soft["train_labels"][split.indices], rtol=1e-6)
  np.testing.assert_array_equal(dataset.test.labels, soft["test_labels"].argmax(axis=1))
  assert dataset.test.labels.dtype == np.int32


def test_what_rounding_left_of_a_sum_of_1_is_shared_out(tmp_path):
  labels = np.full((12, 3), [0.4, 0.4, 0.2]) * np.linspace(0.9985, 1.0015, 12)[:, None]
  found = data.load(_npz(tmp_path, train_labels=labels), validation_size=3).train.labels
  np.testing.assert_allclose(found, np.full((9, 3), [0.4, 0.4, 0.2]), rtol=1e-6)


def test_a_cut_npz_is_named(tmp_path):
  path = tmp_path / "cut.npz"
  np.savez(path, **_arrays())
  path.write_bytes(path.read_bytes()[:300])
  with pytest.raises(data.DataError, match="cannot be read"):
    data.load(f"npz:{path}", validation_size=3)


@pytest.mark.parametrize(
  ("magic", "cut", "message"),
  [((0, 1, 8, 1), 0, "is not an idx file"), (None, 3, "contains 9 bytes, but its header says")],
)
def test_damaged_idx_files_are_named(tmp_path, magic, cut, message):
  _write_idx_set(tmp_path)
  _write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(12) % 3, magic, cut)
  with pytest.raises(data.DataError, match=message):
    data.load(f"idx:{tmp_path}", validation_size=3)


def test_a_gzip_that_breaks_off_is_named(tmp_path):
  _write_idx_set(tmp_path)
  path = tmp_path / "train-images-idx3-ubyte.gz"
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(data.DataError, match="cannot be read"):
    data.load(f"idx:{tmp_path}", validation_size=3)


@pytest.mark.parametrize(
  ("source", "message"),
  [
    (
      "mnist",
      r"='mnist' is unknown; choose from \['digits', 'tfds:NAME', 'npz:PATH', 'npy:DIR', 'idx:DIR', 'images:DIR', 'pa",
    ),
    ("npz:", "is unknown; choose from"),
    ("digits:x", "is unknown; choose from"),
    ("npz:/nowhere/x.npz", "there is no such file"),
    ("idx:/nowhere", "t10k-images-idx3-ubyte .* does not exist"),
    ("tfds:huggingface:x/y", "a TFDS data set must be given as NAME, NAME/CONFIG or NAME:1.0.0"),
    ("tfds:../mnist", "a TFDS data set must be given as NAME"),
    ("tfds:no_such_set", "TFDS does not know the data set 'no_such_set'"),
  ],
)
def test_what_is_not_there_is_named(source, message):
  with pytest.raises(data.DataError, match=message):
    data.load(source, validation_size=1)


def test_a_data_set_that_is_not_prepared_comes_with_the_command_that_prepares_it(tmp_path):
  with pytest.raises(data.DataError, match=r"pip install tensorflow && .*'cifar10', data_dir=.*download_and_prepare"):
    data.load("tfds:cifar10", data_dir=str(tmp_path), validation_size=1)


@pytest.mark.parametrize("size", [0, 12])
def test_the_validation_split_must_leave_both_sides_something(tmp_path, size):
  with pytest.raises(data.DataError, match=rf"data.validation_size={size} must be in \[1, 11\]"):
    data.load(_npz(tmp_path), validation_size=size)


def test_a_train_size_takes_some_of_the_rest_and_leaves_validation_as_it_is():
  whole, part = (data.load("digits", validation_size=197, train_size=size) for size in (0, 300))
  assert len(part.train.labels) == 300 and set(part.train.indices) < set(whole.train.indices)
  np.testing.assert_array_equal(part.validation.indices, whole.validation.indices)
  assert len(set(part.train.labels)) == 10 and (np.diff(part.train.indices) > 0).all()
  with pytest.raises(data.DataError, match=r"data.train_size=1101 must be in \[0, 1100\]: 'digits' has 1297"):
    data.load("digits", validation_size=197, train_size=1101)


def test_splits_go_by_their_names():
  dataset = data.load("digits", validation_size=197)
  sizes = {name: len(dataset.split(name).labels) for name in data.SPLITS}
  assert sizes == {"test": 500, "validation": 197, "train": 1100}


@pytest.mark.parametrize("names", [("test_images", "test_labels"), ("x_test", "y_test"), ("images", "labels")])
def test_to_evaluate_the_test_arrays_are_enough_and_the_model_says_the_classes(tmp_path, names):
  arrays = _arrays()
  np.savez(tmp_path / "few.npz", **dict(zip(names, (arrays["test_images"], [0, 1, 2, 999]), strict=True)))
  dataset = data.load(f"npz:{tmp_path / 'few.npz'}", trains=False)
  np.testing.assert_array_equal(dataset.test.images, arrays["test_images"])
  assert dataset.test.labels.tolist() == [0, 1, 2, 999] and dataset.num_classes is None
  assert len(dataset.train.labels) == len(dataset.validation.labels) == 0
  assert dataset.image_shape == arrays["test_images"].shape[1:] and list(dataset.fingerprint()) == ["test"]
  with pytest.raises(data.DataError, match=r"it needs the arrays \['test_images', 'test_labels', 'train_images'"):
    data.load(f"npz:{tmp_path / 'few.npz'}", validation_size=1)


def test_the_training_files_of_idx_are_not_needed_to_evaluate(tmp_path):
  _write_idx_set(tmp_path)
  for path in tmp_path.glob("train-*"):
    path.unlink()
  assert len(data.load(f"idx:{tmp_path}", trains=False).test.labels) == 4


def test_floats_may_leave_the_range_by_rounding_and_are_clipped(tmp_path):
  images = np.full((12, 5, 4, 3), 0.5, np.float32)
  images[0, 0, 0, 0], images[1, 0, 0, 0] = 1 + 1e-6, -1e-6
  dataset = data.load(_npz(tmp_path, train_images=images), validation_size=3)
  whole = np.concatenate([dataset.train.images, dataset.validation.images])
  assert whole.min() == 0.0 and whole.max() == 1.0
  images[0, 0, 0, 0] = 1.0001
  with pytest.raises(data.DataError, match=r"images are floats from .* to 1\.0001; float images must be in"):
    data.load(_npz(tmp_path, train_images=images), validation_size=3)


def test_channels_before_pixels_are_warned_of(tmp_path):
  arrays = {name: np.zeros((count, 3, 8, 8), np.uint8) for name, count in (("train_images", 12), ("test_images", 4))}
  with pytest.warns(UserWarning, match=r"\(\d+, 3, 8, 8\) are taken as 8 channels of 3 x 8 pixels; .* transpose them"):
    data.load(_npz(tmp_path, **arrays), validation_size=3)


def test_a_fingerprint_tells_data_apart(tmp_path):
  first = data.load(_npz(tmp_path), validation_size=3).fingerprint()
  assert first == data.load(_npz(tmp_path), validation_size=3).fingerprint() and list(first) == list(data.SPLITS)
  assert first["test"].startswith("uint8 [4, 5, 4, 3] sha256:")
  other = data.load(_npz(tmp_path, test_labels=np.array([1, 1, 2, 0])), validation_size=3).fingerprint()
  assert other["test"] != first["test"] and other["train"] == first["train"]


def _write_pictures(folder, shapes, mode="RGB"):
  """Writes pictures {name: (height, width)}, each filled with its number."""
  folder.mkdir(parents=True)
  for number, (name, (height, width)) in enumerate(shapes.items()):
    PIL.Image.new(mode, (width, height), number if mode == "L" else (number, 2, 3)).save(folder / name)


def test_a_folder_for_each_class_is_read_in_the_order_of_names(tmp_path):
  _write_pictures(tmp_path / "dog", {"a.png": (4, 5), "b.png": (4, 5)})
  _write_pictures(tmp_path / "cat", {"c.PNG": (4, 5)})
  (tmp_path / "dog" / "notes.txt").write_text("not a picture")
  dataset = data.load(f"images:{tmp_path}", trains=False)
  assert dataset.test.images.shape == (3, 4, 5, 3) and dataset.test.images.dtype == np.uint8
  assert dataset.test.labels.tolist() == [0, 1, 1] and dataset.num_classes == 2
  assert dataset.test.images[:, 0, 0].tolist() == [[0, 2, 3], [0, 2, 3], [1, 2, 3]]
  with pytest.raises(data.DataError, match="for training, it needs the folders 'train' and 'test'"):
    data.load(f"images:{tmp_path}", validation_size=1)


def test_a_table_gives_the_labels_of_a_folder(tmp_path):
  _write_pictures(tmp_path / "all", {"x.png": (4, 4), "y.png": (4, 4)}, mode="L")
  (tmp_path / "all" / "labels.csv").write_text("file,label\ny.png,7\nx.png,3\n")
  dataset = data.load(f"images:{tmp_path / 'all'}", trains=False)
  assert dataset.test.images[:, 0, 0, 0].tolist() == [1, 0] and dataset.test.images.shape == (2, 4, 4, 1)
  assert dataset.test.labels.tolist() == [7, 3] and dataset.num_classes is None


def test_tiny_imagenet_is_read_as_it_is_published(tmp_path):
  for name in ("n02", "n01"):
    _write_pictures(tmp_path / "train" / name / "images", {f"{name}_0.JPEG": (4, 4), f"{name}_1.JPEG": (4, 4)})
    (tmp_path / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t3\t3\n")
  _write_pictures(tmp_path / "val" / "images", {"val_0.JPEG": (4, 4), "val_1.JPEG": (4, 4), "val_2.JPEG": (4, 4)})
  table = tmp_path / "val" / "val_annotations.txt"
  table.write_text("val_1.JPEG\tn02\t0\t0\t3\t3\nval_0.JPEG\tn01\t0\t0\t3\t3\n")
  _write_pictures(tmp_path / "test" / "images", {"test_0.JPEG": (4, 4)})  # its class is not given
  dataset = data.load(f"images:{tmp_path}", validation_size=1)
  assert dataset.num_classes == 2 and dataset.test.labels.tolist() == [1, 0]
  assert sorted([*dataset.train.labels, *dataset.validation.labels]) == [0, 0, 1, 1]
  assert data.load(f"images:{tmp_path / 'val'}", trains=False).test.labels.tolist() == [1, 0]
  for row in ("val_9.JPEG\tn01\n", "val_1.JPEG\n"):
    table.write_text(f"val_0.JPEG\tn01\n{row}")
    with pytest.raises(data.DataError, match="val_annotations.txt, line 2: it must name a picture"):
      data.load(f"images:{tmp_path}", trains=False)


@pytest.mark.parametrize("name", ["val", "test"])
def test_a_split_without_training_pictures_is_not_a_class(tmp_path, name):
  for kind in ("cat", "dog"):
    _write_pictures(tmp_path / name / kind, {"a.png": (4, 4)})
  assert data.load(f"images:{tmp_path}", trains=False).test.labels.tolist() == [0, 1]
  _write_pictures(tmp_path / "other", {"a.png": (4, 4)})  # now they are two classes
  assert data.load(f"images:{tmp_path}", trains=False).test.labels.tolist() == [0, 1, 1]


def test_a_single_class_is_named(tmp_path):
  _write_pictures(tmp_path / "train" / "cat", {"a.png": (4, 4)})
  with pytest.raises(data.DataError, match="it contains one folder, 'train', which would be the only class; it needs"):
    data.load(f"images:{tmp_path}", trains=False)


@pytest.mark.parametrize(
  ("table", "message"),
  [
    (None, r"pictures differ in size: .*x.png is \(4, 4, 3\), .*y.png is \(5, 4, 3\); set data.image_size to"),
    ("name,label\nx.png,1\n", r"has the columns \['name', 'label'\]; it needs file and label"),
    ("file,label\nx.png,cat\n", "labels.csv, line 2: label 'cat' is not an integer"),
    ("file,label\nz.png,1\n", "labels.csv, line 2: there is no 'z.png'"),
    ("file,label\nbad.png,1\n", "bad.png cannot be read"),
    ("file,label\n", "it contains no pictures"),
  ],
)
def test_wrong_folders_are_named(tmp_path, table, message):
  _write_pictures(tmp_path / "one", {"x.png": (4, 4), "y.png": (5, 4)})
  _write_pictures(tmp_path / "two", {"z.png": (4, 4)})
  if table is not None:
    (tmp_path / "one" / "labels.csv").write_text(table)
    (tmp_path / "one" / "bad.png").write_bytes(b"no picture")
  folder = tmp_path if table is None else tmp_path / "one"
  with pytest.raises(data.DataError, match=message):
    data.load(f"images:{folder}", trains=False)
  with pytest.raises(data.DataError, match="the folder cannot be read"):
    data.load("images:/nowhere", trains=False)
