"""Folders of pictures: a folder for each class, or one folder with labels.csv."""

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


class Folder(NamedTuple):
  """The pictures of one folder.

  Attributes:
    images: a `Stream` [n, h, w, c], of which nothing is read yet.
    labels: int [n].
    classes: the names of the classes in their order; None where the table gives numbers.
  """

  images: np.ndarray
  labels: np.ndarray
  classes: list[str] | None


def _by_folder(directory: Path) -> tuple[list[str], list[int], list[str]]:
  """The pictures in the folders of the classes, which are numbered in the order of their names."""
  classes = sorted(path.name for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
  names, labels = [], []
  for label, folder in enumerate(classes):
    found = sorted(path.name for path in (directory / folder).iterdir() if path.suffix.lower() in _ENDINGS)
    names += [f"{folder}/{name}" for name in found]
    labels += [label] * len(found)
  return names, labels, classes


def _by_table(directory: Path) -> tuple[list[str], list[int], None]:
  """The pictures that labels.csv names, in its order: two columns, "file" and "label"."""
  with (directory / LABELS).open(newline="", encoding="utf-8") as file:
    reader = csv.DictReader(file)
    if not {"file", "label"} <= set(reader.fieldnames or ()):
      raise DataError(f"{LABELS} has the columns {reader.fieldnames}; it needs file and label.")
    names, labels = [], []
    for row in reader:
      label = str(row["label"]).strip()
      if not label.isdecimal():
        raise DataError(f"{LABELS}, line {reader.line_num}: label {label!r} is no number of 0 or more.")
      if not (directory / str(row["file"])).is_file():
        raise DataError(f"{LABELS}, line {reader.line_num}: there is no {row['file']!r}.")
      names.append(str(row["file"]))
      labels.append(int(label))
  return names, labels, None


def _open_folder(directory: Path, loading: Loading) -> Folder:
  try:
    found = _by_table(directory) if (directory / LABELS).is_file() else _by_folder(directory)
  except OSError as error:
    raise DataError(f"the folder cannot be read: {reason(error)}") from None
  names, labels, classes = found
  if not names:
    raise DataError(f"it holds no pictures: give a folder for each class, or {LABELS} with the columns file and label.")
  encoded = np.array([os.fsencode(name) for name in names])  # a few bytes each, of millions
  name = lambda number: str(directory / os.fsdecode(bytes(encoded[number])))
  pictures = Pictures(len(labels), lambda number: Image.open(name(number)), name, loading)
  return Folder(stream_of(pictures), np.array(labels), classes)


def open_folders(directory: Path, loading: Loading, *, train: bool) -> tuple[Folder | None, Folder]:
  """The pictures to train on, None if not asked for, and those to test on. None is read but the first of each.

  In a folder there is a folder for each class, numbered from 0 in the order of their names (as torchvision's
  ImageFolder does), or labels.csv gives "file" and "label" of each picture. The two are in the folders "train" and
  "test", or "val"; without these all pictures are to test on.

  Raises:
    DataError: no such folder, no pictures, other classes to test on, or a first picture that cannot be read.
  """
  tests = [directory / name for name in TESTS if (directory / name).is_dir()]
  if not (directory / TRAIN).is_dir() or not tests:
    if train:
      raise DataError(f"to be trained on, it needs the folders {TRAIN!r} and {TESTS[0]!r} (or {TESTS[1]!r}).")
    return None, _open_folder(directory, loading)
  test = _open_folder(tests[0], loading)
  if not train:
    return None, test
  training = _open_folder(directory / TRAIN, loading)
  if training.classes != test.classes:
    different = sorted({*(training.classes or ())} ^ {*(test.classes or ())})
    raise DataError(f"{TRAIN!r} and {tests[0].name!r} are of other classes: one alone has {different[:3]}.")
  return training, test
