"""Lists of test images: by file names, as in RobustBench's list for ImageNet, or by indices; and their errors."""

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from lrat_jax import data
from lrat_jax.config import validate
from lrat_jax.core.errors import ConfigError
from lrat_jax.data.streams import Loading
from tests.data.test_sources import _png
from tests.helpers import make_config

FILES = ["n01/ILSVRC2012_val_00000009.JPEG", "n01/ILSVRC2012_val_00000012.JPEG", "n02/ILSVRC2012_val_00000003.JPEG"]
HELD = Loading()
TWICE = ["n01/same.JPEG", "n02/same.JPEG"]


@pytest.fixture
def folder(tmp_path):
  """A test set of five JPEGs in the folders of two classes; the first three are named as in ImageNet."""
  for number, name in enumerate(FILES + TWICE):
    path = tmp_path / "val" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((6, 5, 3), 40 * number, np.uint8)).save(path)
  return tmp_path / "val"


def _rows(folder, lines, loading=HELD, source=None):
  (folder.parent / "list.txt").write_text("\n".join(lines) + "\n")
  source = source or f"images:{folder}"
  config = {"source": source, "data_dir": str(folder.parent)}
  dataset = data.load(source, data_dir=config["data_dir"], trains=False, loading=loading)
  return data.listed_for(str(folder.parent / "list.txt"), config, dataset.test), dataset


@pytest.mark.parametrize("kind", ["memory", "stream"])
@pytest.mark.parametrize(
  "lines",
  [
    [FILES[2], FILES[0]],
    [name.rpartition("/")[2] for name in (FILES[2], FILES[0])],
    ["", f"val/{FILES[2]}", f"  {FILES[0]} "],
    ["3", "0"],
    ["3", FILES[0]],
  ],
)
def test_the_images_of_a_list_come_in_its_order(folder, kind, lines):
  rows, dataset = _rows(folder, lines, Loading(kind))
  chosen = dataset._replace(listed=rows).evaluated("test")
  assert chosen.indices.tolist() == [3, 0] and chosen.labels.tolist() == [1, 0]  # in order of names: n01/same is 2
  np.testing.assert_array_equal(np.asarray(chosen.images), np.asarray(dataset.test.images)[[3, 0]])
  assert np.abs(np.asarray(chosen.images)[:, 0, 0, 0].astype(int) - [80, 0]).max() < 3
  assert dataset._replace(listed=rows).evaluated("test", 1).indices.tolist() == [3]
  assert len(dataset._replace(listed=rows).evaluated("train").labels) == 0  # the list has only test images
  assert len(dataset.evaluated("test").labels) == 5 and len(dataset.evaluated("test", 9).labels) == 5


def test_without_a_list_all_are_evaluated(folder):
  config = {"source": f"images:{folder}", "data_dir": ""}
  assert data.listed_for("", config, data.load(config["source"], trains=False).test) is None


@pytest.mark.parametrize(
  ("lines", "message"),
  [
    ([FILES[0], "n01/other.JPEG"], r"list.txt', line 2: the test split has no image 'n01/other.JPEG'"),
    (["7"], "line 1: the test split has no image '7'"),
    (["same.JPEG"], "line 1: the test split has several images 'same.JPEG'"),
    (["", FILES[0], FILES[1], "0"], "line 4: '0' is the same image as line 2"),
    (["", " "], "lists no images"),
  ],
)
def test_a_wrong_line_is_named(folder, lines, message):
  with pytest.raises(data.DataError, match=rf"^eval.image_list='.*{message}"):
    _rows(folder, lines)


def test_a_list_that_cannot_be_used_is_named(folder):
  npz = folder.parent / "data.npz"
  np.savez(npz, images=np.zeros((4, 3, 3, 1), np.uint8), labels=np.arange(4))
  assert _rows(folder, ["2", "1"], source=f"npz:{npz}")[0].tolist() == [2, 1]
  with pytest.raises(data.DataError, match=r"data.source='npz:.*' has no file names; list the images' indices"):
    _rows(folder, FILES, source=f"npz:{npz}")
  config = {"source": f"npz:{npz}", "data_dir": ""}
  test = data.load(config["source"], trains=False).test
  for path in (folder / "absent.txt", npz):
    with pytest.raises(data.DataError, match=r"eval.image_list='.*' cannot be read"):
      data.listed_for(str(path), config, test)
  with pytest.raises(ConfigError, match=r"config.eval.image_list='x' lists test images; use eval.split=test with it"):
    validate.check(make_config(eval__image_list="x", eval__split="validation"))


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
  """A data set with the features of TFDS's imagenet2012: validation images with labels, test images without."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {
      "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
      "label": tfds.features.ClassLabel(num_classes=2),
      "file_name": tfds.features.Text(),
    }
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

  def _split_generators(self, _):
    return {"validation": self._generate_examples([0, 0, 1]), "test": self._generate_examples([-1, -1, -1])}

  def _generate_examples(self, labels):
    for number, label in enumerate(labels):
      name = FILES[number].rpartition("/")[2] if label >= 0 else f"ILSVRC2012_test_{number}.JPEG"
      yield name, {"image": _png(np.full((4, 4, 3), number, np.uint8)), "label": label, "file_name": name}


def test_what_tfds_has_prepared_is_found_by_the_names_that_it_keeps(folder):
  TinyImagenet(data_dir=folder.parent, file_format="array_record").download_and_prepare()
  rows, dataset = _rows(folder, [FILES[2], FILES[1]], source="tfds:tiny_imagenet")
  chosen = dataset._replace(listed=rows).evaluated("test")
  assert chosen.images[:, 0, 0, 0].tolist() == [2, 1] and chosen.labels.tolist() == [1, 0]
