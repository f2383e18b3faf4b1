"""AutoAttack: its stages, its bookkeeping, what results do not depend on, and that masked gradients do not fool it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from lrat_jax import attacks
from lrat_jax.attacks import _stage_runner, stages
from lrat_jax.core import microbatch

FEW_QUERIES = {"square": {"num_queries": 100}}


@pytest.fixture(scope="module")
def images():
  """float32 [40, 8, 8, 1] in [0, 1]."""
  return np.random.default_rng(1).uniform(size=(40, 8, 8, 1)).astype(np.float32)


def _linear(weights, images):
  return images.reshape(images.shape[0], -1) @ weights


@pytest.fixture(scope="module")
def model(linear_weights):
  return Partial(_linear, jnp.asarray(linear_weights))


@pytest.fixture(scope="module")
def answers(model, images):
  """The model's predictions as labels, except for four images with a wrong label."""
  labels = np.array(model(images).argmax(axis=1))
  labels[::10] = (labels[::10] + 1) % 5
  return labels


def run(model, images, labels, **arguments):
  arguments = {"epsilon": 0.02, "version": "apgd", "chunk_size": 8, "batch_size": 16} | arguments
  return attacks.autoattack(jax.random.key(0), model, images, labels, **arguments)


@pytest.fixture(scope="module")
def report(model, images, answers):
  return run(model, images, answers, devices=jax.devices()[:1])


DUAL = {"linf": 1, "l2": 2, "l1": np.inf}


def _distance_to_boundary(weights, images, labels, norm):
  """The smallest perturbation in a norm that changes a linear model's prediction, ignoring [0, 1]; float [n]."""
  logits = images.reshape(len(images), -1) @ weights
  gap = logits[np.arange(len(labels)), labels][:, None] - logits
  length = np.linalg.norm(weights[:, labels].T[:, :, None] - weights[None], DUAL[norm], axis=1)
  return np.where(np.arange(5) == labels[:, None], np.inf, gap / np.maximum(length, 1e-9)).min(axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("norm", DUAL)
def test_exactly_the_images_near_the_boundary_of_a_linear_model_fall(norm, model, images, linear_weights):
  centred = 0.4 + 0.2 * images  # so that no perturbation reaches 0 or 1
  labels = np.asarray(model(centred).argmax(axis=1))
  distance = _distance_to_boundary(linear_weights, centred, labels, norm)
  epsilon = float(np.quantile(distance, 0.4))
  report = run(model, centred, labels, epsilon=epsilon, norm=norm)
  clear = np.abs(distance / epsilon - 1) > 0.01
  np.testing.assert_array_equal(report.robust[clear], distance[clear] > epsilon)
  assert clear.sum() >= 36 and epsilon < 0.4  # in L1, one pixel may take all of it without reaching 0 or 1


def test_the_report_adds_up(report, model, images, answers):
  right = np.asarray(model(report.images).argmax(axis=1)) == answers
  np.testing.assert_array_equal(report.robust, right)
  assert report.robust_accuracy == report.robust.mean() and report.clean_accuracy == 0.9
  np.testing.assert_array_equal(report.broken_by == 0, np.arange(40) % 10 == 0)
  np.testing.assert_array_equal(report.broken_by == -1, report.robust)
  assert report.stages == ("clean", "apgd-ce", "apgd-t")
  for number, summary in enumerate(report.per_attack, start=1):
    assert summary.broken == (report.broken_by == number).sum()
  assert report.per_attack[-1].robust_accuracy == report.robust_accuracy
  assert report.per_attack[0].attacked == 36


def test_what_fell_is_in_the_ball_and_the_rest_is_untouched(report, images):
  untouched = (report.broken_by <= 0).nonzero()[0]
  np.testing.assert_array_equal(report.images[untouched], images[untouched])
  assert report.distances.max() <= 0.02 + 1e-6 and (report.distances[untouched] == 0).all()
  assert report.images.min() >= 0 and report.images.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "devices"), [(50, 1), (128, 2), (8, 2), (24, 3)])
def test_batch_size_and_devices_change_no_bit(batch_size, devices, report, model, images, answers):
  other = run(model, images, answers, batch_size=batch_size, devices=jax.devices()[:devices])
  np.testing.assert_array_equal(other.images, report.images)
  np.testing.assert_array_equal(other.broken_by, report.broken_by)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["standard", "plus"])
def test_batches_order_and_subsets_change_no_verdict(version, model, images, answers):
  few = {name: {"num_steps": 5} for name in ("apgd-ce", "apgd-t", "fab-t", "apgd-dlr", "fab")}
  planned = [stage.name for stage in stages.stages(version, "linf", 5, None, {})[0]]
  overrides = {name: few.get(name, {"num_queries": 20}) for name in planned}
  whole = run(model, images, answers, version=version, overrides=overrides, batch_size=64)
  order = np.random.default_rng(0).permutation(40)[:25]
  part = run(
    model, images[order], answers[order], version=version, overrides=overrides, batch_size=7, example_indices=order
  )
  np.testing.assert_array_equal(part.broken_by, whole.broken_by[order])


@pytest.mark.parametrize(("batch_size", "chunk_size"), [(4, 4), (16, 8)])
def test_a_batch_bounds_what_a_device_holds(batch_size, chunk_size, images, answers, linear_weights):
  held = set()

  def model(x):
    held.add(len(x))
    return _linear(linear_weights, x)

  few = {"apgd-ce": {"num_steps": 1}}
  run(model, images, answers, batch_size=batch_size, attacks_to_run=["apgd-ce"], overrides=few)
  assert max(held) == chunk_size


@pytest.mark.parametrize(
  ("side", "channels", "chunk_size"),
  [
    (8, 32, 32),
    (32, 24, 16),  # 24 * 32 * 32 numbers per image; a core's cache holds those of 16 images
    (32, 128, 8),
    (8, 1024, 32),  # a large kernel, which is read again for each chunk
  ],
)
def test_chunks_are_smaller_where_the_cache_then_holds_what_convolutions_return(side, channels, chunk_size):
  kernels = [jnp.zeros((3, 3, 1, channels)), jnp.zeros((3, 3, channels, 128 if channels == 1024 else 1))]

  def model(x):
    for kernel in kernels:
      x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return x[:, 0, :2].reshape(len(x), -1)

  ladder = _stage_runner.layouts(jax.devices()[:1], 256, None, model, jnp.zeros((1, side, side, 1)))
  assert ladder[0].chunk_size == chunk_size


@pytest.mark.parametrize(("count", "chunk_size"), [(1, 1), (2, 1), (3, 4), (8, 4), (9, 16)])
def test_the_last_few_images_go_through_the_model_in_small_chunks(count, chunk_size, images, linear_weights):
  held = set()

  def model(x):
    held.add(len(x))
    return _linear(linear_weights, x)

  labels = np.asarray(_linear(linear_weights, images).argmax(axis=1))
  attacked = np.r_[labels[:count], (labels[count:] + 1) % 5]  # all others are misclassified from the start
  few = {"attacks_to_run": ["apgd-ce"], "overrides": {"apgd-ce": {"num_steps": 1}}}
  run(model, images, attacked, chunk_size=16, **few)
  assert held == {1, 16, chunk_size}  # 1 for the shape of the logits, 16 for the clean images in full chunks


@pytest.mark.slow
def test_small_chunks_change_no_bit_over_devices(model, images, answers):
  alone, *others = (
    run(model, images[1:5], answers[1:5], devices=jax.devices()[:devices], batch_size=batch_size)
    for devices, batch_size in ((1, 16), (3, 16), (2, 64))
  )
  for other in others:
    np.testing.assert_array_equal(other.images, alone.images)
    np.testing.assert_array_equal(other.broken_by, alone.broken_by)


class _SmallDevice:
  """Simulates devices with memory for `most` images at a time; `tried` lists the chunk sizes tried, in order."""

  def __init__(self, monkeypatch, most, platforms=()):
    self.tried, run_batch = [], microbatch.run_batch

    def run(plan, *rest):
      self.tried += [plan.chunk_size] if plan.chunk_size not in self.tried[-1:] else []
      if plan.chunk_size > most:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")
      return run_batch(plan, *rest)

    monkeypatch.setattr(microbatch, "run_batch", run)
    monkeypatch.setattr(microbatch, "_NEVER_HALVED", platforms)


FEW_STEPS = {"apgd-ce": {"num_steps": 2}, "apgd-t": {"num_steps": 2}}


def test_chunks_are_halved_where_a_device_has_too_little_memory(monkeypatch, model, images, answers):
  small = run(model, images, answers, overrides=FEW_STEPS, chunk_size=4)
  device = _SmallDevice(monkeypatch, most=4)
  report = run(model, images, answers, overrides=FEW_STEPS, chunk_size=16)
  assert device.tried == [16, 8, 4]  # and the size that fits is kept
  np.testing.assert_array_equal(report.images, small.images)
  np.testing.assert_array_equal(report.broken_by, small.broken_by)
  (line,) = set(report.warnings) - set(small.warnings)
  assert line == "chunks of 16 images were too large for a device's memory; at the end they were of 4."


def test_a_stage_whose_chunks_are_halved_begins_anew(monkeypatch, tmp_path, model, images, answers):
  """Memory is too small for only one stage and fails in the middle of it; other chunk sizes give other batches."""
  sizes = {"chunk_size": 7, "batch_size": 14, "epsilon": 0.04}
  whole = run(model, images, answers, overrides=FEW_STEPS, **sizes)
  calls, run_batch = [], microbatch.run_batch

  def run_twice(plan, *rest):
    calls.append(plan.chunk_size)
    if len(calls) > 4 and plan.chunk_size == 7:
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")
    return run_batch(plan, *rest)

  monkeypatch.setattr(microbatch, "run_batch", run_twice)
  monkeypatch.setattr(microbatch, "_NEVER_HALVED", ())
  options = {"overrides": FEW_STEPS, "devices": jax.devices()[:1], "store": attacks.FileStore(tmp_path), **sizes}
  report = run(model, images, answers, **options)
  assert calls[:6] == [7, 7, 7, 7, 7, 3] and len(report.fallen) == len(set(report.fallen))
  np.testing.assert_array_equal(report.broken_by, whole.broken_by)
  np.testing.assert_array_equal(run(model, images, answers, **options).images, report.images)


@pytest.mark.parametrize(("most", "platforms", "size"), [(4, ("cpu",), 8), (0, (), 1)])
def test_memory_that_is_too_small_for_anything_is_named(monkeypatch, most, platforms, size, model, images, answers):
  _SmallDevice(monkeypatch, most, platforms)
  with pytest.raises(MemoryError, match=rf"chunk_size={size}: .* does not have enough memory for {size} images"):
    run(model, images, answers)


def test_other_errors_of_the_devices_stay_as_they_are(monkeypatch, model, images, answers):
  def fail(*_):
    raise jax.errors.JaxRuntimeError("INTERNAL: something else")

  monkeypatch.setattr(microbatch, "run_batch", fail)
  monkeypatch.setattr(microbatch, "_NEVER_HALVED", ())
  with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
    run(model, images, answers)


def test_progress_counts_the_images_of_a_stages_rounds(model, images, answers):
  told = []
  options = {"attacks_to_run": ["apgd-t"], "overrides": {"apgd-t": {"num_steps": 2}}, "devices": jax.devices()[:1]}
  run(model, images, answers, on_progress=lambda *of: told.append(of), **options)
  names, done, totals = zip(*told, strict=True)
  assert set(names) == {"apgd-t"} and done[:3] == (16, 32, 36) and done[-1] == totals[-1] < totals[0]
  assert list(done) == sorted(set(done)) and list(totals) == sorted(totals, reverse=True)


def test_stages_are_traced_ahead_and_all_but_the_first_not_for_work_that_is_kept(
  monkeypatch, tmp_path, model, images, answers
):
  events = []
  lower = _stage_runner._lower_stage
  monkeypatch.setattr(
    _stage_runner, "_lower_stage", lambda job, stage, plan: (events.append(stage.name), lower(job, stage, plan))[1]
  )
  few = {"apgd-ce": {"num_steps": 1}, "apgd-t": {"num_steps": 1}}
  go = functools.partial(
    run, model, images[:8], answers[:8], overrides=few, store=attacks.FileStore(tmp_path), devices=jax.devices()[:1],
    on_stage=lambda summary: events.append(f"{summary.name} ended"),
  )  # fmt: skip
  go()
  assert events == ["apgd-ce", "apgd-t", "apgd-ce ended", "apgd-t ended"]
  events.clear()
  go()
  assert events == ["apgd-ce", "apgd-ce ended", "apgd-t ended"]


def test_bytes_stay_bytes_and_mean_their_floats(model, images, answers):
  pixels = np.round(255 * images).astype(np.uint8)
  of_bytes, of_floats = (run(model, given, answers) for given in (pixels, pixels / np.float32(255)))
  assert of_bytes.clean_images is pixels and len(of_bytes.adversarials) == len(of_bytes.fallen) < 40
  np.testing.assert_array_equal(of_bytes.images, of_floats.images)
  np.testing.assert_array_equal(of_bytes.distances, of_floats.distances)


@pytest.mark.slow
def test_an_image_is_known_by_its_index_not_its_place(report, model, images, answers):
  order = np.random.default_rng(0).permutation(40)[:25]
  other = run(model, images[order], answers[order], example_indices=order)
  np.testing.assert_array_equal(other.robust, report.robust[order])
  np.testing.assert_allclose(other.images, report.images[order], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [2, 3])
def test_few_classes_work(num_classes, images, linear_weights):
  model = Partial(_linear, jnp.asarray(linear_weights[:, :num_classes]))
  labels = np.asarray(model(images).argmax(axis=1))
  small = {"apgd-ce": {"num_steps": 5}, "apgd-t": {"num_steps": 5}, "fab-t": {"num_steps": 5}}
  report = run(model, images, labels, version="standard", overrides={**small, "square": {"num_queries": 10}})
  assert 0 < report.robust_accuracy < 1
  assert any("a margin stands in" in line for line in report.warnings)
  planned, _ = stages.stages("standard", "linf", num_classes, None, {})
  assert [stage.rounds for stage in planned] == [1, num_classes - 1, num_classes - 1, 1]


# Changes of the logits that keep the prediction on every image, but hide or weaken the gradients.
MASKS = {
  "large": lambda logits: 1e4 * logits,
  "small": lambda logits: 1e-4 * logits,
  "probabilities": jax.nn.softmax,
  "saturated": lambda logits: jnp.tanh(logits / 8),
  "steep": lambda logits: logits**3,
  "moved": lambda logits: logits + 1e3 * jnp.cos(logits.sum(axis=1, keepdims=True)),
}


def _masked(mask, weights, images):
  return mask(_linear(weights, images))


def _rounded(weights, images):
  return _linear(weights, jnp.round(images * 20) / 20)


@pytest.fixture(scope="module")
def unmasked(model, images):
  """The model's predictions as labels, and which images are robust to AutoAttack."""
  labels = np.asarray(model(images).argmax(axis=1))
  robust = run(model, images, labels, epsilon=0.03, version="standard", overrides=FEW_QUERIES).robust
  assert 0.2 < robust.mean() < 0.8
  return labels, robust


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
def test_masked_logits_do_not_fool_it(mask, images, unmasked, linear_weights):
  labels, robust = unmasked
  model = Partial(functools.partial(_masked, MASKS[mask]), jnp.asarray(linear_weights))
  report = run(model, images, labels, epsilon=0.03, version="standard", overrides=FEW_QUERIES)
  assert report.clean_accuracy == 1.0 and (report.robust != robust).sum() <= 1


@pytest.mark.slow
def test_rounded_images_do_not_fool_it(model, images, linear_weights):
  # The epsilon moves every pixel by two levels of the rounding.
  rounded = Partial(_rounded, jnp.asarray(linear_weights))
  labels = np.asarray(rounded(images).argmax(axis=1))
  unmasked = run(model, images, labels, epsilon=0.1, version="standard", overrides=FEW_QUERIES)
  report = run(rounded, images, labels, epsilon=0.1, version="standard", overrides={"square": {"num_queries": 1500}})
  assert report.robust_accuracy <= unmasked.robust_accuracy + 0.15


@pytest.mark.slow
def test_random_models_are_evaluated_by_majority(images, linear_weights):
  # Wrong on one draw in five, for every image: with a single draw, a fifth of the images would count as broken.
  def logits_fn(x, keys):
    flip = jax.vmap(jax.random.bernoulli, in_axes=(0, None))(keys, 0.2)
    return jnp.where(flip[:, None], -1.0, 1.0) * _linear(linear_weights, x)

  labels = np.asarray(_linear(linear_weights, images).argmax(axis=1))
  few = {"num_steps": 2, "eot_iter": 2}
  report = run(logits_fn, images, labels, epsilon=0.0, version="rand", overrides={"apgd-ce": few, "apgd-dlr": few})
  assert report.clean_accuracy > 0.95 and report.robust_accuracy > 0.9


def test_the_versions_have_the_originals_stages():
  names = lambda version, norm="linf": [
    (stage.name, stage.rounds) for stage in stages.stages(version, norm, 10, None, {})[0]
  ]
  assert names("standard") == [("apgd-ce", 1), ("apgd-t", 9), ("fab-t", 9), ("square", 1)]
  assert names("standard", "l1") == [("apgd-ce", 5), ("apgd-t", 5), ("fab-t", 9), ("square", 1)]
  assert names("plus") == [("apgd-ce", 5), ("apgd-dlr", 5), ("fab", 1), ("square", 1), ("apgd-t", 9), ("fab-t", 9)]
  assert names("rand") == [("apgd-ce", 1), ("apgd-dlr", 1)]
  assert names("apgd") == names("standard")[:2]


def test_gradients_of_a_round_are_counted():
  # As in the original: 100 steps; APGD needs one more gradient for its start, untargeted FAB 7 (classes) per step.
  planned = [*stages.stages("plus", "linf", 7, None, {})[0], stages.stages("rand", "linf", 7, None, {})[0][0]]
  counted = {(stage.name, stage.rounds): stage.gradient_calls() for stage in planned}
  assert counted == {
    ("apgd-ce", 5): 101, ("apgd-dlr", 5): 101, ("fab", 1): 5 * 100 * 7, ("square", 1): 0,
    ("apgd-t", 6): 101, ("fab-t", 6): 100, ("apgd-ce", 1): 101 * 20,
  }  # fmt: skip


class _Killed(Exception):
  pass


class _Fragile(attacks.FileStore):
  """A store that fails after saving `pieces` pieces, as if the machine had crashed."""

  def __init__(self, directory, pieces):
    super().__init__(directory)
    self._left = pieces
    self.saved = []

  def save(self, piece, arrays):
    if self._left == 0:
      raise _Killed
    self._left -= 1
    self.saved.append(piece)
    super().save(piece, arrays)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(tmp_path, report, model, images, answers):
  with pytest.raises(_Killed):
    run(model, images, answers, store=_Fragile(tmp_path, 3), devices=jax.devices()[:1])
  (tmp_path / "1-apgd-ce-0-8-2.npz").write_bytes(b"cut off")  # as if the file system had lost the end of the file
  second = _Fragile(tmp_path, -1)
  resumed = run(model, images, answers, store=second, devices=jax.devices()[:1])
  np.testing.assert_array_equal(resumed.images, report.images)
  np.testing.assert_array_equal(resumed.broken_by, report.broken_by)
  assert "1-apgd-ce-0-8-0" not in second.saved and "1-apgd-ce-0-8-2" in second.saved
  third = _Fragile(tmp_path, 0)
  again = run(model, images, answers, store=third, devices=jax.devices()[:1])
  assert again.per_attack == resumed.per_attack and third.saved == []


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    ({"epsilon": 0.03}, "threat"),
    ({"batch_size": 32}, "batch size"),
    ({"overrides": {"apgd-ce": {"num_steps": 5}}}, "attacks"),
    ({"scale": 2.0}, "predictions of the model"),
    ({"shift": 1}, "images, labels or example indices"),
  ],
)
def test_a_store_of_other_work_is_refused(change, reason, tmp_path, model, images, answers, linear_weights):
  store = attacks.FileStore(tmp_path)
  small = functools.partial(run, attacks_to_run=["apgd-ce"], store=store, devices=jax.devices()[:1])
  small(model, images[:8], answers[:8])
  change = dict(change)
  other = Partial(_linear, jnp.asarray(linear_weights) * change.pop("scale", 1.0))
  first = change.pop("shift", 0)
  with pytest.raises(ValueError, match=f"contains an evaluation that differs in .*{reason}"):
    small(other, images[first : first + 8], answers[first : first + 8], **change)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"version": "quick"}, "version='quick' is unknown; choose from"),
    ({"attacks_to_run": ["square"]}, "version 'apgd' has no stage 'square'; choose from"),
    ({"overrides": {"fab-t": {}}}, "version 'apgd' has no stage 'fab-t'; choose from"),
    ({"norm": "l7"}, "norm='l7' is unknown"),
    ({"epsilon": 2.0}, r"epsilon=2 is outside \[0, 1\]"),
    ({"example_indices": np.zeros(3, int)}, r"example_indices must be integers of shape \(40,\)"),
  ],
)
def test_bad_arguments_are_named(change, message, model, images, answers):
  with pytest.raises(ValueError, match=message):
    run(model, images, answers, **change)


def test_images_outside_the_range_are_refused(model, images, answers):
  with pytest.raises(ValueError, match=r"images must be in \[0, 1\]"):
    run(model, 2 * images, answers)


def test_images_outside_the_ball_or_the_range_are_brought_back(images):
  found = images.copy()
  found[0, 0, 0] += 0.5
  found[1] -= 0.01 + images[1].min()  # inside a ball of 0.1, but below 0
  found[2, 3, 3] = np.nan
  repaired, outside = _stage_runner._repair(found, images, 0.1, "linf")
  np.testing.assert_array_equal(np.flatnonzero(outside), [0, 1, 2])
  assert np.isfinite(repaired).all() and repaired.min() >= 0 and repaired.max() <= 1
  assert np.abs(repaired - images).max() <= 0.1 + 1e-6
  np.testing.assert_array_equal(repaired[3:], images[3:])


def test_every_stage_and_round_has_keys_of_its_own(monkeypatch, model, images, answers):
  seen, run_batch = [], _stage_runner.microbatch.run_batch

  def watch(plan, compiled, shared, *rest):
    seen.append(tuple(jax.random.key_data(shared[1]).tolist()))
    return run_batch(plan, compiled, shared, *rest)

  monkeypatch.setattr(_stage_runner.microbatch, "run_batch", watch)
  few = {"apgd-ce": {"num_steps": 1}, "apgd-t": {"num_steps": 1}}
  report = run(model, images, answers, batch_size=64, overrides=few)  # all images in one batch
  # One for the clean images, and two (attack and evaluation) for apgd-ce and for each of the 4 targets of apgd-t.
  assert report.robust.any() and len(seen) == 1 + 2 * (1 + 4)
  assert len(set(seen)) == len(seen)
