"""Folders of pictures: a folder for each class, one folder with labels.csv, or Tiny ImageNet's published folders."""

import csv
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lrat_jax.data.npz_idx import DataError, reason
from lrat_jax.data.pictures import Pictures
from lrat_jax.data.streams import Loading, stream_of

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")
LABELS = "labels.csv"
TRAIN, TESTS = "train", ("test", "val")
# The file with the classes of Tiny ImageNet's validation images, and their folder; its test labels are not public.
_ANNOTATIONS, _ANNOTATED = "val_annotations.txt", "images"

# Names of pictures, their labels, and the names of the classes if they have names.
_Named = tuple[list[str], list[int], list[str] | None]


class Folder(NamedTuple):
  """The pictures of one folder.

  Attributes:
    images: a `Stream` [n, h, w, c], not read yet.
    labels: int [n].
    classes: the names of the classes in their order; None if a table gives numbers.
  """

  images: np.ndarray
  labels: np.ndarray
  classes: list[str] | None


def _raise(error: OSError) -> None:
  raise error


def _pictures_under(folder: Path) -> list[str]:
  """The names of the pictures in a folder and its subfolders, relative to the folder, sorted."""
  found = []
  for root, _, names in os.walk(folder, onerror=_raise, followlinks=True):
    within = "" if root == str(folder) else f"{Path(root).relative_to(folder).as_posix()}/"
    found += [within + name for name in names if name.lower().endswith(_ENDINGS)]
  return sorted(found)


def _by_folder(directory: Path) -> _Named:
  """The pictures in the folders of the classes; classes are numbered in the order of their names."""
  classes = sorted(path.name for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
  names, labels = [], []
  if len(classes) == 1:
    raise DataError(
      f"it contains one folder, {classes[0]!r}, which would be the only class; it needs a folder for each class, or "
      f"{LABELS} with the columns file and label."
    )
  for label, folder in enumerate(classes):
    found = _pictures_under(directory / folder)
    names += [f"{folder}/{name}" for name in found]
    labels += [label] * len(found)
  return names, labels, classes


def _by_annotations(directory: Path) -> _Named:
  """The pictures that val_annotations.txt lists: file, class and a bounding box, separated by tabs."""
  rows = [line.split("\t") for line in (directory / _ANNOTATIONS).read_text(encoding="utf-8").splitlines()]
  for number, row in enumerate(rows, 1):
    if len(row) < 2 or not (directory / _ANNOTATED / row[0]).is_file():
      raise DataError(f"{_ANNOTATIONS}, line {number}: it must name a picture in {_ANNOTATED!r} and its class.")
  classes = sorted({row[1] for row in rows})
  numbers = {name: number for number, name in enumerate(classes)}
  return [f"{_ANNOTATED}/{row[0]}" for row in rows], [numbers[row[1]] for row in rows], classes


def _by_table(directory: Path) -> _Named:
  """The pictures that labels.csv lists, in its order: two columns, "file" and "label"."""
  with (directory / LABELS).open(newline="", encoding="utf-8") as file:
    reader = csv.DictReader(file)
    if not {"file", "label"} <= set(reader.fieldnames or ()):
      raise DataError(f"{LABELS} has the columns {reader.fieldnames}; it needs file and label.")
    names, labels = [], []
    for row in reader:
      label = str(row["label"]).strip()
      if not label.isdecimal():
        raise DataError(f"{LABELS}, line {reader.line_num}: label {label!r} is not an integer of at least 0.")
      if not (directory / str(row["file"])).is_file():
        raise DataError(f"{LABELS}, line {reader.line_num}: there is no {row['file']!r}.")
      names.append(str(row["file"]))
      labels.append(int(label))
  return names, labels, None


def _named(directory: Path) -> _Named:
  """The pictures of a folder, in their order."""
  ways = {LABELS: _by_table, _ANNOTATIONS: _by_annotations}
  try:
    found = next((way for name, way in ways.items() if (directory / name).is_file()), _by_folder)(directory)
  except (OSError, UnicodeDecodeError) as error:
    raise DataError(f"the folder cannot be read: {reason(error)}") from None
  if not found[0]:
    raise DataError(
      f"it contains no pictures; it needs a folder for each class, or {LABELS} with the columns file and label."
    )
  return found


def _open_folder(directory: Path, loading: Loading) -> Folder:
  names, labels, classes = _named(directory)
  encoded = np.array([os.fsencode(name) for name in names])  # a few bytes each, for millions of names
  name = lambda number: str(directory / os.fsdecode(bytes(encoded[number])))
  pictures = Pictures(len(labels), lambda number: Image.open(name(number)), name, loading)
  return Folder(stream_of(pictures), np.array(labels), classes)


def _test_folder(directory: Path) -> Path:
  """The folder of test pictures: "test", or "val" if "test" is missing or has no labels, or the folder itself.

  Folders of classes may be called "test" or "val" too, so these are splits only beside "train" or without others.
  """
  folders = {path.name for path in directory.iterdir() if path.is_dir()} if directory.is_dir() else set()
  tests = [directory / name for name in TESTS if name in folders]
  if not tests or not (TRAIN in folders or folders <= set(TESTS)):
    return directory
  return next((folder for folder in tests if (folder / _ANNOTATIONS).is_file()), tests[0])


def test_names(directory: Path) -> list[str]:
  """The names of the test pictures of `open_folders`, relative to their folder, in their order."""
  return _named(_test_folder(directory))[0]


def open_folders(directory: Path, loading: Loading, *, train: bool) -> tuple[Folder | None, Folder]:
  """The training pictures, None if not requested, and the test pictures. Only the first picture of each is read.

  A folder contains a folder for each class, numbered from 0 in the order of their names (as torchvision's ImageFolder
  does), with pictures in it or in its subfolders; or it contains labels.csv with the "file" and "label" of each
  picture. Training pictures are in the folder "train", test pictures in "test" or "val"; without these folders all
  pictures are test pictures. Tiny ImageNet's archive is read as it is.

  Raises:
    DataError: the folder is missing or has no pictures, its training and test classes differ, or a first picture
      cannot be read.
  """
  tested = _test_folder(directory)
  if train and tested == directory:
    raise DataError(f"for training, it needs the folders {TRAIN!r} and {TESTS[0]!r} (or {TESTS[1]!r}).")
  test = _open_folder(tested, loading)
  if not train:
    return None, test
  training = _open_folder(directory / TRAIN, loading)
  if training.classes != test.classes:
    different = sorted({*(training.classes or ())} ^ {*(test.classes or ())})
    raise DataError(f"{TRAIN!r} and {tested.name!r} have different classes: only one of them has {different[:3]}.")
  return training, test
