"""The chunks of images that AutoAttack sends through the model: their sizes, and devices with too little memory."""

import time
import types
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrat_jax import attacks
from lrat_jax.attacks import _stage_runner
from lrat_jax.core import microbatch
from tests.attacks.autoattack.case import linear, run


@pytest.mark.parametrize(("batch_size", "chunk_size"), [(4, 4), (16, 8)])
def test_a_batch_bounds_what_a_device_holds(batch_size, chunk_size, images, answers, linear_weights):
  held = set()

  def model(x):
    held.add(len(x))
    return linear(linear_weights, x)

  few = {"apgd-ce": {"num_steps": 1}}
  run(model, images, answers, batch_size=batch_size, attacks_to_run=["apgd-ce"], overrides=few)
  assert max(held) == chunk_size


def test_a_program_that_was_not_yet_begun_is_compiled_when_it_is_needed(monkeypatch, images, linear_weights):
  class Late(futures.ThreadPoolExecutor):
    def __init__(self, workers):
      super().__init__(workers, initializer=time.sleep, initargs=(0.3,))

  monkeypatch.setattr(_stage_runner, "futures", types.SimpleNamespace(ThreadPoolExecutor=Late))
  model = lambda x: linear(linear_weights, x)
  few = {"apgd-ce": {"num_steps": 1}}
  labels = model(images[:1]).argmax(axis=1)
  report = run(model, images[:1], labels, attacks_to_run=["apgd-ce"], overrides=few)  # one image: smaller chunks
  assert report.clean_accuracy == 1.0 and len(report.per_attack) == 1


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
    return linear(linear_weights, x)

  labels = np.asarray(linear(linear_weights, images).argmax(axis=1))
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
