"""Mixtures: an exact share of every batch, for any number of processes and devices; npz files are memory-mapped."""

import itertools
import zipfile

import jax
import numpy as np
import pytest

from lrat_jax import data
from lrat_jax.core import sharding
from lrat_jax.data import npz_idx
from lrat_jax.data.mixtures import open_extra
from tests.helpers import make_config, make_split

PRIMARY = make_split(40)


def _extra(count=70, classes=None, first=100):
  generator = np.random.default_rng(3)
  images = generator.integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)
  labels = (np.arange(count) % 4).astype(np.int32)
  if classes:
    labels = generator.dirichlet(np.ones(classes), count).astype(np.float32)
  return data.Split(images, labels, np.arange(first, first + count, dtype=np.int32))


MIXTURE = data.Mixture(PRIMARY, _extra(), 0.7)


def _batches(iterator, count):
  return [next(iterator) for _ in range(count)]


@pytest.mark.parametrize(("fraction", "extra"), [(0.7, 11), (0.5, 8), (0.1, 2)])
def test_every_batch_has_the_share(fraction, extra):
  mixture = data.Mixture(PRIMARY, _extra(), fraction)
  for batch in _batches(data.train_batches(mixture, 16, seed=0), 30):
    is_extra = batch["indices"] >= 100
    assert is_extra.sum() == extra == data.num_extra(fraction, 16)
    np.testing.assert_array_equal(is_extra, mixture.is_extra(16))
    for parts in (2, 4, 8):
      assert np.ptp(is_extra.reshape(parts, -1).sum(axis=1)) <= 1


def test_each_source_is_gone_through_at_its_own_pace():
  batches = _batches(data.train_batches(MIXTURE, 20, seed=0), 20)
  indices = np.stack([batch["indices"] for batch in batches])
  own, other = indices[indices < 100].reshape(-1, 6), indices[indices >= 100].reshape(-1, 14)
  passes = other.reshape(4, 70)
  for one in passes:
    np.testing.assert_array_equal(np.sort(one), np.arange(100, 170))
  assert (passes[0] != passes[1]).any()
  first, second = own[:6].ravel(), own[6:12].ravel()  # 36 of 40: a pass has only complete batches
  assert len(set(first)) == len(set(second)) == 36 and set(first) != set(second)


def test_images_and_labels_go_with_their_index():
  for batch in _batches(data.train_batches(MIXTURE, 16, seed=1), 3):
    for image, label, index in zip(batch["images"], batch["labels"], batch["indices"], strict=True):
      split, row = (PRIMARY, index) if index < 100 else (MIXTURE.extra, index - 100)
      np.testing.assert_array_equal(image, data.to_float(split.images[row]))  # floats, as in the primary split
      assert label == split.labels[row]


def test_distributions_make_distributions_of_all_labels():
  mixture = data.Mixture(PRIMARY, _extra(classes=4), 0.5)
  batch = next(data.train_batches(mixture, 16, seed=1))
  assert batch["labels"].shape == (16, 4) and batch["labels"].dtype == np.float32
  for label, index in zip(batch["labels"], batch["indices"], strict=True):
    expected = np.eye(4)[PRIMARY.labels[index]] if index < 100 else mixture.extra.labels[index - 100]
    np.testing.assert_array_equal(label, expected.astype(np.float32))


def test_the_primarys_labels_may_be_distributions_alone():
  soft = PRIMARY._replace(labels=_extra(40, classes=4).labels)
  labels = data.Mixture(soft, _extra(), 0.5).take(np.array([3, 41])).labels
  np.testing.assert_array_equal(labels, [soft.labels[3], np.eye(4)[MIXTURE.extra.labels[1]]])


def test_processes_divide_the_batches_of_one(monkeypatch):
  whole = _batches(data.train_batches(MIXTURE, 16, seed=0), 12)
  halves = []
  for half in (slice(0, 8), slice(8, 16)):
    monkeypatch.setattr(sharding, "process_rows", lambda _, half=half: half)
    halves.append(_batches(data.train_batches(MIXTURE, 16, seed=0), 12))
  for batch, *parts in zip(whole, *halves, strict=True):
    for name, array in batch.items():
      np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


def test_a_restored_iterator_goes_on_with_the_very_next_batch():
  iterator = data.train_batches(MIXTURE, 16, seed=0)
  _batches(iterator, 9)
  state = iterator.get_state()
  expected = _batches(iterator, 8)
  fresh = data.train_batches(MIXTURE, 16, seed=0)
  fresh.set_state(state)
  for batch, like in zip(_batches(fresh, 8), expected, strict=True):
    np.testing.assert_array_equal(batch["indices"], like["indices"])


def test_images_may_wait_on_the_devices():
  mesh, rows = sharding.make_mesh(2), np.array([0, 39, 40, 109])
  expected = MIXTURE.take(rows)._asdict()
  for placement in ("device", "host"):
    batch = data.make_device_put(MIXTURE, mesh, placement)(rows)
    assert all(isinstance(array, jax.Array) for array in batch.values())
    for name, array in expected.items():
      np.testing.assert_array_equal(batch[name], array)
  assert MIXTURE.nbytes == MIXTURE.whole().images.nbytes


@pytest.mark.parametrize(("save", "mapped"), [(np.savez, True), (np.savez_compressed, False)])
def test_an_archive_is_mapped_where_it_is_not_compressed(save, mapped, tmp_path):
  extra, path = _extra(), tmp_path / "edm.npz"
  save(path, image=extra.images, other=np.arange(1000), label=extra.labels.astype(np.int64))
  found = open_extra(f"npz:{path}", 100, (8, 8, 1), 4)
  assert isinstance(found.images, np.memmap) == mapped
  for one, like in zip(found, extra, strict=True):
    np.testing.assert_array_equal(one, like)
    assert one.dtype == like.dtype
  assert found.fingerprint(1024) == extra.fingerprint()


def test_labels_may_be_distributions(tmp_path):
  extra, path = _extra(classes=4), tmp_path / "soft.npz"
  np.savez(path, image=extra.images, label=extra.labels.astype(np.float64))
  np.testing.assert_allclose(open_extra(f"npz:{path}", 0, (8, 8, 1), 4).labels, extra.labels, rtol=1e-6)


def _write_parts(folder, extra, ends=(0, 30, 35, 70), save=np.savez):
  for number, (start, end) in enumerate(itertools.pairwise(ends), 1):
    save(folder / f"part{number}.npz", image=extra.images[start:end], label=extra.labels[start:end])


@pytest.mark.parametrize("classes", [None, 4])
def test_several_files_are_one_source_in_the_order_of_their_names(classes, tmp_path):
  extra = _extra(classes=classes)
  _write_parts(tmp_path, extra)
  np.savez(tmp_path / "other.npz", image=extra.images, label=extra.labels)
  found = open_extra(f"npz:{tmp_path}/part*.npz", 100, (8, 8, 1), 4)
  assert found.images.shape == extra.images.shape
  np.testing.assert_array_equal(np.asarray(found.images), extra.images)
  np.testing.assert_allclose(found.labels, extra.labels, rtol=1e-6)
  np.testing.assert_array_equal(found.indices, extra.indices)
  rows = np.array([69, 0, 30, 29, 34, 35, 0])
  np.testing.assert_array_equal(found.take(rows).images, extra.images[rows])
  assert data.bytes_in_memory(found) == 0 and data.bytes_in_memory(extra) == extra.images.nbytes
  one, like = (next(data.train_batches(data.Mixture(PRIMARY, split, 0.5), 16, seed=0)) for split in (found, extra))
  for name, array in like.items():
    np.testing.assert_allclose(one[name], array, rtol=1e-6)


def test_files_of_hard_and_soft_labels_go_together_and_compressed_ones_are_in_memory(tmp_path):
  extra = _extra()
  np.savez(tmp_path / "part1.npz", image=extra.images[:30], label=extra.labels[:30])
  soft = np.eye(4, dtype=np.float16)[extra.labels[30:]]
  np.savez_compressed(tmp_path / "part2.npz", image=extra.images[30:], label=soft)
  found = open_extra(f"npz:{tmp_path}/part?.npz", 0, (8, 8, 1), 4)
  np.testing.assert_array_equal(found.labels, np.eye(4)[extra.labels])
  np.testing.assert_array_equal(np.asarray(found.images), extra.images)
  assert data.bytes_in_memory(found) == extra.images[30:].nbytes


def test_a_name_with_signs_of_a_pattern_is_a_file_where_there_is_one(tmp_path):
  extra = _extra()
  for name in ("a[1].npz", "a1.npz"):
    np.savez(tmp_path / name, image=extra.images[: len(name)], label=extra.labels[: len(name)])
  assert len(open_extra(f"npz:{tmp_path}/a[1].npz", 0, (8, 8, 1), 4).labels) == 8
  (tmp_path / "a[1].npz").unlink()
  assert len(open_extra(f"npz:{tmp_path}/a[1].npz", 0, (8, 8, 1), 4).labels) == 6


def test_the_file_that_is_wrong_is_named(tmp_path):
  _write_parts(tmp_path, _extra())
  np.savez(tmp_path / "part2.npz", image=np.zeros((0, 8, 8, 1), np.uint8), label=np.zeros(0, int))
  with pytest.raises(data.DataError, match=r"part\*.npz': part2.npz: it contains no images"):
    open_extra(f"npz:{tmp_path}/part*.npz", 0, (8, 8, 1), 4)
  with pytest.raises(data.DataError, match="it cannot be read: .*No such file"):
    open_extra(f"npz:{tmp_path}/none*.npz", 0, (8, 8, 1), 4)


IMAGES = np.zeros((6, 8, 8, 1), np.uint8)


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"image": IMAGES}, r"it contains \['image'\]; it needs the arrays \['image', 'label'\]"),
    ({"image": IMAGES / 255.0, "label": np.zeros(6, int)}, r"image is float64 .* it must be uint8 \(n, 8, 8, 1\)"),
    ({"image": IMAGES[:, :4], "label": np.zeros(6, int)}, r"image is uint8 \(6, 4, 8, 1\); it must be"),
    ({"image": IMAGES, "label": np.full(6, 4)}, r"its labels range from 4 to 4; the classes are 0..3"),
    ({"image": IMAGES, "label": np.zeros(5, int)}, r"its labels have shape \(5,\), but there are 6 images"),
    ({"image": IMAGES, "label": np.full((6, 3), 1 / 3)}, r"its labels are float64 \(6, 3\); distributions .* \(6, 4\)"),
    ({"image": IMAGES, "label": np.full((6, 4), 0.5)}, r"row 0 is not a distribution .* entry is 0.5, its sum 2"),
    ({"image": IMAGES, "label": np.full((6, 4), np.nan)}, r"its labels: row 0 is not a distribution"),
    ({"image": IMAGES.astype(object), "label": np.zeros(6, int)}, r"image.npy contains Python objects"),
  ],
)
def test_other_arrays_are_refused_in_one_line(arrays, message, tmp_path):
  np.savez(tmp_path / "a.npz", **arrays)
  with pytest.raises(data.DataError, match=message) as error:
    open_extra(f"npz:{tmp_path}/a.npz", 0, (8, 8, 1), 4)
  assert str(error.value).startswith("data.extra.source='npz:") and "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["digits", "npz:", "tfds:mnist", "a.npz"])
def test_other_sources_are_refused(source):
  with pytest.raises(data.DataError, match=f"data.extra.source={source!r} is unknown; it must be npz:PATH"):
    open_extra(source, 0, (8, 8, 1), 4)


def test_a_damaged_archive_is_refused(tmp_path):
  with pytest.raises(data.DataError, match="it cannot be read: .*No such file"):
    open_extra(f"npz:{tmp_path}/none.npz", 0, (8, 8, 1), 4)
  path = tmp_path / "a.npz"
  np.savez(path, image=IMAGES, label=np.zeros(6, int))
  whole = path.read_bytes()
  path.write_bytes(b"\0" * 4 + whole[4:])
  with pytest.raises(data.DataError, match=r"image.npy does not begin where the archive says"):
    npz_idx.map_npz(path, [("image", "label")])
  path.write_bytes(whole.replace(b"(6, 8, 8, 1)", b"(9, 8, 8, 1)"))
  with pytest.raises(
    data.DataError, match=r"image.npy contains 384 bytes, but its header, uint8 \(9, 8, 8, 1\), says 576"
  ):
    npz_idx.map_npz(path, [("image", "label")])
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("image.npy", "w") as file:
    np.lib.format.write_array(file, np.zeros(2**28, np.uint8))
  with pytest.raises(data.DataError, match="it needs the arrays"):
    npz_idx.map_npz(path, [("image", "label")])
  with pytest.raises(data.DataError, match="bytes claim to contain arrays of 268,435,584"):
    npz_idx.map_npz(path, [("image",)])


def test_the_extra_images_indices_are_beyond_the_primarys(tmp_path):
  np.savez(tmp_path / "a.npz", image=IMAGES, label=np.zeros(6, int))
  config = make_config(data__extra__source=f"npz:{tmp_path}/a.npz").data
  dataset = data.load_for(config)
  known = {int(index) for split in (dataset.train, dataset.validation) for index in split.indices}
  assert not known & set(dataset.extra.indices.tolist())
  assert dataset.fingerprint()["extra"].startswith("uint8 [6, 8, 8, 1] sha256:")
  mixture = data.training_source(dataset, config.extra.fraction)
  assert mixture.extra is dataset.extra and mixture.fraction == 0.7
  assert data.load_for(config, trains=False).extra is None
  assert data.training_source(data.load_for(make_config().data), 0.7) is not None
