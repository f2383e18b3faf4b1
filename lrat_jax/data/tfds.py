"""Data sets that TFDS has prepared on disk, read without TensorFlow and without running code that their files name."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lrat_jax.data.npz_idx import DataError, reason
from lrat_jax.data.pictures import Pictures
from lrat_jax.data.streams import IN_MEMORY, Loading, Threads, stream_of

Arrays = tuple[np.ndarray, np.ndarray]

# NAME[/CONFIG][:VERSION]; TFDS would also accept namespaces, and download code for them.
_NAME = re.compile(r"([a-z]\w*)(/\w[\w.+-]*)?(:\d+\.\d+\.\d+)?", re.ASCII)
# The splits for testing; the second is used if the first is missing or has no labels.
_TESTS = ("test", "validation")
# The number at the end of an example's id, as in "test_00042".
_NUMBER = re.compile(r"\d+$", re.ASCII)
# The fields of a features.json that name Python classes, in the current format and in the former one.
_CLASS_FIELDS = ("pythonClassName", "type")


def _classes(features: Any) -> Iterator[str]:
  """The Python classes that a features.json names; TFDS imports their modules."""
  children = features.values() if isinstance(features, dict) else features if isinstance(features, list) else ()
  for child in children:
    yield from _classes(child)
  if isinstance(features, dict):
    yield from (features[field] for field in _CLASS_FIELDS if isinstance(features.get(field), str))


def _check_classes(folder: Path) -> None:
  """Raises DataError if the features of prepared data have other classes than TFDS's own."""
  for path in folder.glob("**/features.json"):
    foreign = [name for name in _classes(json.loads(path.read_text())) if not name.startswith("tensorflow_datasets.")]
    if foreign:
      raise DataError(
        f"{str(path)!r} names the Python class {foreign[0]!r}, whose code would be run; only TFDS's own classes are "
        "allowed."
      )


def _undecoded(builder: Any, split: str) -> Any:
  """The examples of a split by their numbers, with images as encoded bytes."""
  from tensorflow_datasets.core.decode import SkipDecoding

  return builder.as_data_source(split, decoders={"image": SkipDecoding()})


def _read_split(builder: Any, split: str, loading: Loading) -> Arrays:
  """Images and labels of a split. Labels are read; images only if they are not 8-bit grey or colour pictures."""
  from tensorflow_datasets.core.features import Image as Pixels

  feature = builder.info.features["image"]
  if not isinstance(feature, Pixels) or feature.np_dtype != np.uint8 or feature.shape[-1] not in (1, 3):
    examples = list(builder.as_data_source(split))
    shapes = {example["image"].shape for example in examples}
    if len(shapes) != 1:
      raise DataError(f"its {split} images have {len(shapes)} different sizes; lrat_jax needs images of one size.")
    return np.stack([e["image"] for e in examples]), np.asarray([e["label"] for e in examples])
  source, info = _undecoded(builder, split), builder.info.splits[split]
  ends, files = np.cumsum(info.shard_lengths), [path.name for path in info.filepaths]
  name = lambda number: files[np.searchsorted(ends, number, side="right")]
  labels = np.zeros(len(source), np.int64)

  def read_label(number: int) -> None:
    try:
      labels[number] = source[number]["label"]
    except Exception as error:  # as in `read`
      raise DataError(f"record {number}: {name(number)} cannot be read: {reason(error)}") from None

  Threads(loading.workers).for_each(len(labels), read_label)
  open_picture = lambda number: Image.open(io.BytesIO(source[number]["image"]))
  return stream_of(Pictures(len(labels), open_picture, name, loading, feature.shape[-1])), labels


def _builder(name: str, data_dir: str) -> tuple[Any, DataError]:
  """TFDS's builder of a data set and the error that says how to prepare it. Raises that error if it is not prepared."""
  try:
    import tensorflow_datasets as tfds  # slow to import, and only this source needs it
  except ModuleNotFoundError as error:
    raise DataError(
      f"it needs the package {error.name}: pip install tensorflow-datasets importlib_resources array-record."
    ) from None

  place = f", data_dir={data_dir!r}" if data_dir else ""
  prepare = (
    'pip install tensorflow && python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder({name!r}{place}, file_format='array_record').download_and_prepare()\""
  )
  _check_classes(Path(data_dir or tfds.core.constants.DATA_DIR, _NAME.fullmatch(name)[1]))
  try:
    builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
  except tfds.core.registered.DatasetNotFoundError:
    raise DataError(f"TFDS does not know the data set {name!r}.") from None
  missing = DataError(f"it is not prepared in {str(builder.data_dir)!r}; prepare it once with: {prepare}")
  if not Path(builder.data_dir).is_dir():
    raise missing
  return builder, missing


def _read(name: str, data_dir: str, loading: Loading, train: bool) -> tuple[Arrays | None, Arrays, int]:
  builder, missing = _builder(name, data_dir)
  features = builder.info.features
  tests = [name for name in _TESTS if name in builder.info.splits]
  if not {"image", "label"} <= set(features) or not tests or (train and "train" not in builder.info.splits):
    raise DataError(f"it lacks image and label features or a {'train and a ' if train else ''}test split.")
  try:
    test = _read_split(builder, tests[0], loading)
    if test[1].min() < 0 and len(tests) > 1:  # the labels of ImageNet's test images are not public
      test = _read_split(builder, tests[1], loading)
    return _read_split(builder, "train", loading) if train else None, test, features["label"].num_classes
  except (FileNotFoundError, NotImplementedError):  # not prepared in a format that can be read without TensorFlow
    raise missing from None


def read(
  name: str, data_dir: str, loading: Loading = IN_MEMORY, *, train: bool = True
) -> tuple[Arrays | None, Arrays, int]:
  """(images, labels) of the training split (None if not requested) and of the test split; the number of classes.

  The images are a `Stream` of the records that TFDS has written, and only the labels are read. Images that are not
  8-bit grey or colour pictures are read into memory.

  Args:
    name: NAME[/CONFIG][:VERSION], of a prepared image data set.
    data_dir: where TFDS keeps its data; empty for TFDS's own default.
    loading: how pictures are resized, and the number of threads.

  Raises:
    DataError: the name has another form, or the data set is missing (with the command that prepares it), is damaged,
      lacks labels or images of one size, or names Python classes that are not TFDS's own.
  """
  if not _NAME.fullmatch(name):
    raise DataError("a TFDS data set must be given as NAME, NAME/CONFIG or NAME:1.0.0.")
  try:
    return _read(name, data_dir, loading, train)
  except DataError:
    raise
  except Exception as error:  # TFDS and its readers may raise almost any exception for damaged files
    raise DataError(f"it cannot be read: {reason(error)}") from None


def original_places(name: str, data_dir: str) -> np.ndarray | None:
  """The position of each test image before TFDS shuffled them, int [n], from the numbers at the end of their ids.

  None if the examples have no ids, or ids that do not number them from 0. `read` must have accepted the data set
  before.
  """
  builder, _ = _builder(name, data_dir)
  if "id" not in builder.info.features:
    return None
  ids = [example["id"] for example in _undecoded(builder, "test")]
  numbers = [_NUMBER.search(name.decode() if isinstance(name, bytes) else str(name)) for name in ids]
  places = np.array([int(number[0]) if number else -1 for number in numbers])
  return places if np.array_equal(np.sort(places), np.arange(len(places))) else None


def file_names(name: str, data_dir: str, labels: np.ndarray) -> list[str] | None:
  """The file names of the test images before TFDS prepared them; None if the examples do not contain them.

  Args:
    name, data_dir: of a data set that `read` has accepted before.
    labels: int [n], of the test images, from which the split is recognised.
  """
  builder, _ = _builder(name, data_dir)
  if "file_name" not in builder.info.features:
    return None
  for split in _TESTS:
    if split in builder.info.splits and builder.info.splits[split].num_examples == len(labels):
      examples = [(example["file_name"], example["label"]) for example in _undecoded(builder, split)]
      if np.array_equal([label for _, label in examples], labels):
        return [name.decode() if isinstance(name, bytes) else str(name) for name, _ in examples]
  return None
