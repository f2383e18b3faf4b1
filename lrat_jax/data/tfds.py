"""Data sets that TFDS has prepared on disk, read without TensorFlow, and without running what their files name."""

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

# NAME[/CONFIG][:VERSION]; TFDS would also take namespaces, and download code for them.
_NAME = re.compile(r"([a-z]\w*)(/\w[\w.+-]*)?(:\d+\.\d+\.\d+)?", re.ASCII)
# What is tested on; the second where there is no first, or none with labels.
_TESTS = ("test", "validation")
# The number that an example's id ends in, as in "test_00042".
_NUMBER = re.compile(r"\d+$", re.ASCII)
# The fields of a features.json that name Python classes, now and formerly.
_CLASS_FIELDS = ("pythonClassName", "type")


def _classes(features: Any) -> Iterator[str]:
  """The Python classes that a features.json names; TFDS imports the modules that they are in."""
  children = features.values() if isinstance(features, dict) else features if isinstance(features, list) else ()
  for child in children:
    yield from _classes(child)
  if isinstance(features, dict):
    yield from (features[field] for field in _CLASS_FIELDS if isinstance(features.get(field), str))


def _check_classes(folder: Path) -> None:
  """Refuses prepared data whose features are of classes other than TFDS's own."""
  for path in folder.glob("**/features.json"):
    foreign = [name for name in _classes(json.loads(path.read_text())) if not name.startswith("tensorflow_datasets.")]
    if foreign:
      raise DataError(f"{str(path)!r} names the Python class {foreign[0]!r}, which would be run; only TFDS's own are.")


def _undecoded(builder: Any, split: str) -> Any:
  """The examples of a split by their numbers, with the image as the bytes that it is stored in."""
  from tensorflow_datasets.core.decode import SkipDecoding

  return builder.as_data_source(split, decoders={"image": SkipDecoding()})


def _read_split(builder: Any, split: str, loading: Loading) -> Arrays:
  """Images and labels of a split, of which the labels are read; the images too where they are no pictures of 8 bits."""
  from tensorflow_datasets.core.features import Image as Pixels

  feature = builder.info.features["image"]
  if not isinstance(feature, Pixels) or feature.np_dtype != np.uint8 or feature.shape[-1] not in (1, 3):
    examples = list(builder.as_data_source(split))
    shapes = {example["image"].shape for example in examples}
    if len(shapes) != 1:
      raise DataError(f"its {split} images are of {len(shapes)} sizes; lrat_jax takes one size.")
    return np.stack([e["image"] for e in examples]), np.asarray([e["label"] for e in examples])
  source, info = _undecoded(builder, split), builder.info.splits[split]
  ends, files = np.cumsum(info.shard_lengths), [path.name for path in info.filepaths]
  name = lambda number: files[np.searchsorted(ends, number, side="right")]
  labels = np.zeros(len(source), np.int64)

  def read_label(number: int) -> None:
    try:
      labels[number] = source[number]["label"]
    except Exception as error:  # as of `read`
      raise DataError(f"record {number}: {name(number)} cannot be read: {reason(error)}") from None

  Threads(loading.workers).for_each(len(labels), read_label)
  open_picture = lambda number: Image.open(io.BytesIO(source[number]["image"]))
  return stream_of(Pictures(len(labels), open_picture, name, loading, feature.shape[-1])), labels


def _builder(name: str, data_dir: str) -> tuple[Any, DataError]:
  """What reads a prepared data set, and the error that says how to prepare it. Raises it where that was not done."""
  try:
    import tensorflow_datasets as tfds  # slow to import, and only this source needs it
  except ModuleNotFoundError as error:
    raise DataError(f"it needs the package {error.name}: pip install 'lrat_jax[tfds]'.") from None

  place = f", data_dir={data_dir!r}" if data_dir else ""
  prepare = (
    'pip install tensorflow && python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder({name!r}{place}, file_format='array_record').download_and_prepare()\""
  )
  _check_classes(Path(data_dir or tfds.core.constants.DATA_DIR, _NAME.fullmatch(name)[1]))
  try:
    builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
  except tfds.core.registered.DatasetNotFoundError:
    raise DataError(f"TFDS knows no data set {name!r}.") from None
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
    if test[1].min() < 0 and len(tests) > 1:  # of ImageNet's test images nobody tells the labels
      test = _read_split(builder, tests[1], loading)
    return _read_split(builder, "train", loading) if train else None, test, features["label"].num_classes
  except (FileNotFoundError, NotImplementedError):  # prepared in no form that can be read without TensorFlow
    raise missing from None


def read(
  name: str, data_dir: str, loading: Loading = IN_MEMORY, *, train: bool = True
) -> tuple[Arrays | None, Arrays, int]:
  """(images, labels) of the training split (None if not asked for) and of the test split; the number of classes.

  The images are a `Stream` of the records that TFDS has written, of which the labels alone are read. Those of another
  kind than pictures of 8 bits in grey or colour are read whole.

  Args:
    name: NAME[/CONFIG][:VERSION], of a prepared image data set.
    data_dir: where TFDS keeps its data; empty is its own default.
    loading: how pictures are resized, and by how many threads.

  Raises:
    DataError: another form of name, a data set that is not there (with the command that prepares it), or one that is
      damaged, has no images of one size with labels, or names Python classes that are not TFDS's own.
  """
  if not _NAME.fullmatch(name):
    raise DataError("a data set of TFDS is named NAME, NAME/CONFIG or NAME:1.0.0.")
  try:
    return _read(name, data_dir, loading, train)
  except DataError:
    raise
  except Exception as error:  # TFDS and its readers raise almost anything on damaged files
    raise DataError(f"it cannot be read: {reason(error)}") from None


def original_places(name: str, data_dir: str) -> np.ndarray | None:
  """Where each test image stood before TFDS shuffled them, int [n], by the numbers at the end of the examples' ids.

  None where the examples have no ids, or none that number them from 0. Takes what `read` has taken before.
  """
  builder, _ = _builder(name, data_dir)
  if "id" not in builder.info.features:
    return None
  ids = [example["id"] for example in _undecoded(builder, "test")]
  numbers = [_NUMBER.search(name.decode() if isinstance(name, bytes) else str(name)) for name in ids]
  places = np.array([int(number[0]) if number else -1 for number in numbers])
  return places if np.array_equal(np.sort(places), np.arange(len(places))) else None


def file_names(name: str, data_dir: str, labels: np.ndarray) -> list[str] | None:
  """What the files of the test images were called before TFDS prepared them; None where the examples do not tell.

  Args:
    name, data_dir: of a data set that `read` has taken before.
    labels: int [n], of the test images, which tell the split.
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
