"""Runs from streams: bit for bit equal to runs from memory, also after a kill; a damaged image is a one-line error."""

import functools
import signal

import jax
import numpy as np
import PIL.Image
import pytest

from lrat_jax import data
from tests import programs

pytestmark = pytest.mark.slow

CROPS = ("--config.data.image_size=8", "--config.data.random_resized_crop=0.5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A subset of the digits as PNG files, with one folder per class."""
  path, dataset = tmp_path_factory.mktemp("digits"), data.load("digits", validation_size=197, train_size=200)
  for name, count in (("train", 200), ("test", 64)):
    split = dataset.split(name)
    for number in range(count):
      file = path / name / str(split.labels[number]) / f"{number:03d}.png"
      file.parent.mkdir(parents=True, exist_ok=True)
      pixels = np.round(255 * split.images[number][..., 0]).astype(np.uint8)
      PIL.Image.fromarray(pixels).resize((12, 10)).save(file)
  return path


def _arguments(folder, *more):
  fields = {"source": f"images:{folder}", "batch_size": 16, "validation_size": 30, "image_size": 8, "workers": 2}
  return (*programs.ARGUMENTS, *(f"--config.data.{name}={value}" for name, value in fields.items()), *more)


def _assert_equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, programs.outcome(one), programs.outcome(other))


def test_a_run_from_a_stream_is_the_run_from_memory_to_the_bit(folder, tmp_path):
  said = {}
  for loading in ("auto", "stream"):
    arguments = _arguments(folder, f"--config.data.loading={loading}")
    said[loading] = programs.finish(tmp_path / loading, arguments=arguments)
  _assert_equal(tmp_path / "auto", tmp_path / "stream")
  assert "of images are held in memory (data.loading=auto: up to a quarter of the host's" in said["auto"]
  for name in ("results.json", "per_example.npz"):
    assert (tmp_path / "stream" / name).exists()
  with np.load(tmp_path / "auto" / "per_example.npz") as held, np.load(tmp_path / "stream" / "per_example.npz") as read:
    for name in held:
      np.testing.assert_array_equal(held[name], read[name])
  # the same workdir can be used with the other way of loading
  arguments = _arguments(folder, "--config.data.loading=memory", "--mode=evaluate")
  assert "Evaluating the checkpoint" in programs.finish(tmp_path / "stream", arguments=arguments)


def test_a_killed_stream_with_random_crops_ends_in_the_same_bits(folder, tmp_path):
  arguments = _arguments(folder, *CROPS, "--mode=train")
  said = programs.finish(tmp_path / "whole", arguments=arguments)
  assert "are streamed (data.loading=auto), because data.random_resized_crop requires it" in said
  programs.kill_after(tmp_path / "killed", 4, arguments=arguments)
  programs.finish(tmp_path / "killed", arguments=arguments)
  _assert_equal(tmp_path / "whole", tmp_path / "killed")


def test_a_damaged_picture_ends_a_run_in_a_line(folder, tmp_path):
  path = sorted((folder / "train" / "3").iterdir())[0]
  whole = path.read_bytes()
  path.write_bytes(whole[:60])
  arguments = _arguments(folder, *CROPS, "--mode=train")
  try:
    code, _, errors = programs.end(programs.start(tmp_path / "run", arguments=arguments))
  finally:
    path.write_bytes(whole)
  assert code == 2 and errors.count("\n") == 1
  assert errors.startswith(f"error: config.data.source='images:{folder}': record ")
  assert f": {path} cannot be read: " in errors


def test_processes_that_share_the_state_are_killed_and_go_on_as_one(folder, tmp_path):
  """Two processes with two devices each, on a 2 x 2 mesh; then one process with four devices resumes the run."""
  shared = ("--config.mesh.model_devices=2", "--config.mesh.shard_above=100", "--config.data.loading=stream")
  arguments = _arguments(folder, *shared, "--config.train.ema_decay=0.9", "--mode=train")
  start = functools.partial(programs.start_together, devices=2, arguments=arguments)
  ended = [programs.end(process) for process in start([tmp_path / "whole"] * 2)]
  assert [code for code, *_ in ended] == [0, 0], ended
  processes = start([tmp_path / "killed"] * 2)
  programs.wait_for_rows(processes[0], tmp_path / "killed", 6)  # so that the checkpoint before the last is finished
  for process in processes:
    process.kill()
  for process in processes:
    assert process.communicate() and process.returncode == -signal.SIGKILL
  said = programs.finish(tmp_path / "killed", devices=4, arguments=arguments)
  resumed = int(said.split("from step ")[1].split()[0])
  assert "on 4 cpu devices" in said and 0 < resumed < 20
  programs.assert_trained_alike(tmp_path / "whole", tmp_path / "killed", steps=20)
