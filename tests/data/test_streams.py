"""Streams: images read record by record equal an array in memory, bit by bit; errors name the damaged record."""

import jax
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from lrat_jax import data
from lrat_jax.core import sharding
from lrat_jax.data import pictures, streams
from lrat_jax.data.streams import Loading, MappedRecords, Stream
from tests.data.test_sources import _png

STREAM = Loading("stream", workers=2)
TRAIN, TEST, CLASSES = 40, 12, 3


def _arrays(shape=(10, 9, 3)):
  generator = np.random.default_rng(5)
  make = lambda count: generator.integers(0, 256, (count, *shape), np.uint8)
  return {
    "train_images": make(TRAIN),
    "train_labels": np.arange(TRAIN) % CLASSES,
    "test_images": make(TEST),
    "test_labels": np.arange(TEST) % CLASSES,
  }


def _write_npz(folder):
  np.savez(folder / "data.npz", **_arrays())
  return f"npz:{folder / 'data.npz'}"


def _write_npy(folder):
  for name, array in _arrays().items():
    np.save(folder / f"{name}.npy", array)
  return f"npy:{folder}"


def _write_images(folder, arrays=None, ending="jpg"):
  arrays = _arrays() if arrays is None else arrays
  for split in ("train", "test"):
    for number, (image, label) in enumerate(zip(arrays[f"{split}_images"], arrays[f"{split}_labels"], strict=True)):
      path = folder / split / f"class_{label}" / f"{number:03d}.{ending}"
      path.parent.mkdir(parents=True, exist_ok=True)
      PIL.Image.fromarray(image.squeeze()).save(path)
  return f"images:{folder}"


def _write_tfds(folder):
  TinyStream(data_dir=folder, file_format="array_record").download_and_prepare()
  return "tfds:tiny_stream"


class TinyStream(tfds.core.GeneratorBasedBuilder):
  """A data set for these tests, prepared as users prepare theirs."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
    label = tfds.features.ClassLabel(num_classes=CLASSES)
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({"image": image, "label": label}))

  def _split_generators(self, _):
    return {split: self._generate_examples(split) for split in ("train", "test")}

  def _generate_examples(self, split):
    arrays = _arrays()
    for i, (image, label) in enumerate(zip(arrays[f"{split}_images"], arrays[f"{split}_labels"], strict=True)):
      yield i, {"image": _png(image), "label": int(label)}


class TinyValidation(TinyStream):
  """The same, with its test images in the split "validation", and a test split without labels, as in ImageNet."""

  VERSION = tfds.core.Version("1.0.0")

  def _split_generators(self, _):
    names = {"train": "train", "validation": "test"}
    return {split: self._generate_examples(name) for split, name in names.items()} | {"test": self._unlabelled()}

  def _unlabelled(self):
    yield 0, {"image": _png(_arrays()["test_images"][0]), "label": -1}


WRITERS = {"npz": _write_npz, "npy": _write_npy, "images": _write_images, "tfds": _write_tfds}


def _load(source, folder, loading, **fields):
  return data.load(source, data_dir=str(folder), validation_size=8, loading=loading, **fields)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_stream_is_the_array_in_memory_to_the_bit(kind, tmp_path):
  source = WRITERS[kind](tmp_path)
  held, streamed = _load(source, tmp_path, Loading()), _load(source, tmp_path, STREAM)
  assert held.num_classes == streamed.num_classes == CLASSES and held.image_shape == streamed.image_shape == (10, 9, 3)
  assert held.fingerprint() == streamed.fingerprint()
  for name in data.SPLITS:
    one, other = held.split(name), streamed.split(name)
    assert other.is_streamed and not one.is_streamed and one.nbytes == other.nbytes
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_array_equal(one.images, np.asarray(other.images))
    np.testing.assert_array_equal(one.images[3], other.images[3])
    for batch, like in zip(data.eval_batches(one, 5), data.eval_batches(other, 5), strict=True):
      for field in like:
        np.testing.assert_array_equal(batch[field], like[field])
  first, second = (data.train_batches(dataset.train, 8, seed=3) for dataset in (held, streamed))
  for _ in range(9):
    one, other = next(first), next(second)
    for field in one:
      np.testing.assert_array_equal(one[field], other[field])


def test_grey_arrays_have_a_channel(tmp_path):
  arrays = {name: array[..., 0] if "images" in name else array for name, array in _arrays().items()}
  np.savez(tmp_path / "grey.npz", **arrays)
  dataset = _load(f"npz:{tmp_path}/grey.npz", tmp_path, STREAM)
  np.testing.assert_array_equal(dataset.test.images[:][..., 0], arrays["test_images"])


def _crops(tmp_path, smallest=0.2, kind="stream"):
  arrays = _arrays((40, 52, 3))
  return _load(_write_images(tmp_path, arrays), tmp_path, Loading(kind, 16, smallest, 2)).train


@pytest.mark.parametrize("smallest", [0.0, 0.2])
def test_a_killed_stream_goes_on_with_the_very_next_batch(smallest, tmp_path):
  train = _crops(tmp_path, smallest)
  iterator = data.train_batches(train, 8, seed=0)
  for _ in range(7):
    next(iterator)
  state = iterator.get_state()
  expected = [next(iterator) for _ in range(4)]
  fresh = data.train_batches(train, 8, seed=0)
  fresh.set_state(state)
  for batch in expected:
    again = next(fresh)
    for field in batch:
      np.testing.assert_array_equal(batch[field], again[field])


class _Counted:
  """Records with a list of the numbers that were read."""

  def __init__(self, images):
    self._images, self.shape, self.seen = images, images.shape, []

  def read(self, numbers, moment=None):
    self.seen += [int(number) for number in numbers]
    return self._images[numbers]


def test_two_processes_read_disjoint_records_that_together_are_all(monkeypatch):
  arrays, evaluated, trained = _arrays(), [], []
  labels, indices = arrays["train_labels"].astype(np.int32), np.arange(TRAIN, dtype=np.int32)
  for half in (slice(0, 4), slice(4, 8)):
    monkeypatch.setattr(sharding, "process_rows", lambda _, half=half: half)
    records, others = _Counted(arrays["train_images"]), _Counted(arrays["train_images"])
    for batch in data.eval_batches(data.Split(streams.stream_of(records), labels, indices), 8):
      assert len(batch["images"]) == 4
    evaluated.append(set(records.seen))
    batches = data.train_batches(data.Split(streams.stream_of(others), labels, indices), 8, seed=0)
    epoch = {int(index) for _ in range(5) for index in next(batches)["indices"]}
    assert epoch <= set(others.seen) and len(others.seen) <= 20 + 4 * 6  # at most six batches are read ahead
    trained.append(epoch)
  for first, second in (evaluated, trained):
    assert not first & second and first | second == set(range(TRAIN))


def test_a_crop_depends_on_the_seed_the_step_and_the_image_alone(tmp_path):
  train = _crops(tmp_path)
  rows = np.array([3, 9, 20, 21])
  crops = train.take(rows, (0, 5)).images
  assert crops.shape == (4, 16, 16, 3)
  np.testing.assert_array_equal(crops[::-1], train.take(rows[::-1], (0, 5)).images)
  np.testing.assert_array_equal(crops[2], train.take(rows[2:3], (0, 5)).images[0])
  for moment in ((0, 6), (1, 5)):
    assert all((crops != train.take(rows, moment).images).any(axis=(1, 2, 3)))
  batches = data.train_batches(train, 8, seed=4)
  for step in range(6):  # beyond the end of an epoch
    batch = next(batches)
    rows = np.searchsorted(train.indices, batch["indices"])
    np.testing.assert_array_equal(batch["images"], train.take(rows, (4, step)).images)


def test_one_picture_under_two_numbers_is_cropped_in_two_ways():
  picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8))
  records = pictures.Pictures(2, lambda number: picture, str, Loading("stream", 16, 0.2, 1))
  first, second, third = records.read(np.array([0, 1, 0]), (0, 5))
  np.testing.assert_array_equal(first, third)
  assert (first != second).any()


def test_rows_of_some_rows_are_selected_before_anything_is_read():
  images = np.random.default_rng(0).integers(0, 256, (9, 2, 2, 1), np.uint8)
  stream = Stream(MappedRecords(images))
  some = stream.select(np.array([7, 3, 5, 1])).select(np.array([3, 0, 1]))
  assert some.shape == (3, 2, 2, 1)
  np.testing.assert_array_equal(np.asarray(some), images[[1, 7, 3]])


def test_without_a_moment_the_centre_is_taken(tmp_path):
  train, held = _crops(tmp_path), _crops(tmp_path, 0.0, "memory")
  np.testing.assert_array_equal(np.asarray(train.images), held.images)
  np.testing.assert_array_equal(train.take(np.arange(3)).images, held.images[:3])


def test_the_centre_is_that_of_the_resized_shorter_side():
  picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
  small = picture.resize((341, 256), PIL.Image.Resampling.BILINEAR)
  found = np.asarray(pictures.centre(picture, 224))
  np.testing.assert_array_equal(found, np.asarray(small)[16:240, 58:282])
  assert pictures.centre(picture.resize((3, 900)), 224).size == (224, 224)
  same = picture.crop((0, 0, 224, 224))
  np.testing.assert_array_equal(np.asarray(pictures.centre(same, 224)), np.asarray(same))  # has the size already


def test_random_boxes_are_inside_of_the_asked_area_and_aspect():
  generator, areas = np.random.default_rng(0), []
  for _ in range(500):
    left, top, right, bottom = pictures.random_box(320, 240, 0.08, generator)
    assert 0 <= left < right <= 320 and 0 <= top < bottom <= 240
    areas.append((right - left) * (bottom - top) / (320 * 240))
    assert 0.74 < (right - left) / (bottom - top) < 1.36
  assert 0.07 < min(areas) < 0.12 and 0.7 < max(areas) <= 1 and 0.4 < np.mean(areas) < 0.6
  assert pictures.random_box(1000, 10, 0.5, generator) == (493, 0, 506, 10)  # no draw fits: a box in the middle


def test_auto_says_where_images_are_and_why(tmp_path, monkeypatch):
  source, size = _write_npz(tmp_path), (TRAIN + TEST) * 270
  load = lambda **fields: _load(source, tmp_path, Loading("auto", **fields))
  monkeypatch.setattr(streams, "host_memory", lambda: 4 * size)
  held = load()
  assert not held.train.is_streamed
  said = "14.0 kB of images are held in memory (data.loading=auto: up to a quarter of the host's 56.2 kB)."
  assert held.loading == said
  monkeypatch.setattr(streams, "host_memory", lambda: 4 * size - 1)
  streamed = load()
  assert all(streamed.split(name).is_streamed for name in data.SPLITS) and "are streamed" in streamed.loading
  assert not load(on_devices=True).train.is_streamed
  np.savez_compressed(tmp_path / "data.npz", **_arrays())
  packed = load()
  assert not packed.train.is_streamed and "since they are compressed" in packed.loading
  assert _load(_write_images(tmp_path), tmp_path, Loading("auto", 8, 0.5)).train.is_streamed
  assert data.load("digits", loading=Loading("auto")).loading == ""


@pytest.mark.parametrize(
  ("save", "changes", "message"),
  [
    (np.savez_compressed, {}, "data.source='npz:.*data.loading='stream': .* cannot be streamed; they are compressed"),
    (np.savez, {"test_images": np.zeros((TEST, 10, 9, 3))}, "they are not uint8 images"),
  ],
)
def test_what_cannot_be_streamed_is_refused(save, changes, message, tmp_path):
  save(tmp_path / "data.npz", **(_arrays() | changes))
  with pytest.raises(data.DataError, match=message):
    _load(f"npz:{tmp_path}/data.npz", tmp_path, STREAM)
  with pytest.raises(
    data.DataError, match="data.loading='stream': 'digits' cannot be streamed; only npz, npy, images, tfds can"
  ):
    data.load("digits", loading=STREAM)
  with pytest.raises(data.DataError, match="data.image_size=8: only the pictures of images, tfds can be resized"):
    _load(f"npz:{tmp_path}/data.npz", tmp_path, Loading(image_size=8))


def _damage(path):
  path.write_bytes(path.read_bytes()[:-40])


def test_a_damaged_picture_is_named_by_number_and_file(tmp_path):
  source = _write_images(tmp_path)
  path = sorted((tmp_path / "train" / "class_1").iterdir())[2]
  _damage(path)
  message = rf"^record 16: {path} cannot be read: image file is truncated"  # 14 records of class_0 are before it
  train = _load(source, tmp_path, STREAM, train_size=32).train
  with pytest.raises(data.DataError, match=message) as error:
    list(zip(range(8), data.train_batches(train, 8, seed=0), strict=False))
  assert "\n" not in str(error.value)
  with pytest.raises(data.DataError, match=f"data.source={source!r}: {message[1:]}"):
    _load(source, tmp_path, Loading())


def test_a_damaged_record_is_named_by_number_and_file(tmp_path):
  source = _write_tfds(tmp_path)
  path = next(tmp_path.glob("**/*train.array_record*"))
  content = bytearray(path.read_bytes())
  place = content.find(_png(_arrays()["train_images"][0])[:60])
  if place < 0:  # compressed: damage the middle of the file
    place = len(content) // 2
  content[place : place + 64] = bytes(64)
  path.write_bytes(content)
  with pytest.raises(data.DataError, match=r"record \d+: tiny_stream-train.array_record-00000-of-00001 cannot be read"):
    np.asarray(_load(source, tmp_path, STREAM).train.images)


def test_a_test_split_without_labels_gives_way_to_validation(tmp_path):
  TinyValidation(data_dir=tmp_path, file_format="array_record").download_and_prepare()
  test = _load("tfds:tiny_validation", tmp_path, STREAM).test
  assert len(test.labels) == TEST and set(test.labels.tolist()) == set(range(CLASSES))


def test_grey_and_colour_do_not_mix_unseen(tmp_path):
  arrays = _arrays()
  source = _write_images(tmp_path, arrays)
  grey = PIL.Image.fromarray(arrays["train_images"][5][..., 0])
  grey.save(tmp_path / "train" / "class_2" / "005.jpg")
  colours = np.asarray(_load(source, tmp_path, STREAM).train.images)
  assert colours.shape[-1] == 3
  for split in ("train", "test"):
    grey.save(tmp_path / split / "class_0" / "000.jpg")
  with pytest.raises(data.DataError, match=r"record \d+: .*jpg cannot be read: it is in colour"):
    np.asarray(_load(source, tmp_path, STREAM).train.images)


def test_the_two_splits_must_have_the_same_classes(tmp_path):
  source = _write_images(tmp_path)
  (tmp_path / "test").rename(tmp_path / "val")
  assert len(_load(source, tmp_path, STREAM).test.labels) == TEST
  (tmp_path / "val" / "class_1").rename(tmp_path / "val" / "other")
  with pytest.raises(data.DataError, match=r"'train' and 'val' have different classes: only one .* has \['class_1',"):
    _load(source, tmp_path, STREAM)
  only_test = data.load(source, trains=False, loading=STREAM)
  assert len(only_test.test.labels) == TEST and len(only_test.train.labels) == 0


def test_a_large_set_is_compared_by_a_sample(monkeypatch):
  images = np.random.default_rng(0).integers(0, 256, (3000, 10, 9, 3), np.uint8)
  split = data.Split(images, np.zeros(3000, np.int32), np.arange(3000, dtype=np.int32))
  streamed = split._replace(images=streams.stream_of(streams.MappedRecords(images)))
  whole = split.fingerprint()
  assert whole == streamed.fingerprint()
  monkeypatch.setattr("lrat_jax.data.splits._LARGE", 3000 * 270 - 1)
  assert split.fingerprint() == streamed.fingerprint() == split.fingerprint(1024) != whole


def test_threads_stop_at_the_first_error():
  seen = []

  def act(number):
    seen.append(number)
    if number == 2:
      raise data.DataError("two")

  with pytest.raises(data.DataError, match="^two"):
    streams.Threads(2).for_each(5000, act)
  assert len(seen) < 5000
  streams.Threads().for_each(0, act)


@pytest.mark.parametrize(("count", "most"), [(1, 1), (256, 16), (5000, 313), (300_000, 2049)])
def test_threads_take_every_number_once_in_a_bounded_number_of_pieces(monkeypatch, count, most):
  seen, pieces, threads = [], [], streams.Threads(2)
  take = threads._pool.map
  monkeypatch.setattr(threads._pool, "map", lambda act, firsts: pieces.extend(firsts) or take(act, firsts))
  threads.for_each(count, seen.append)
  assert sorted(seen) == list(range(count)) and len(pieces) <= most


def test_streamed_images_lie_where_a_cpu_takes_them_without_a_copy():
  parts = tuple(np.full((3, 5, 5, 1), value, np.uint8) for value in (1, 2))
  images = streams.JoinedRecords(parts).read(np.arange(6))
  assert images.ctypes.data % 64 == 0
  assert jax.device_put(images).unsafe_buffer_pointer() == images.ctypes.data
  np.testing.assert_array_equal(images[:, 0, 0, 0], [1, 1, 1, 2, 2, 2])
