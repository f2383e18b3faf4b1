"""An evaluation from a configuration: the files it writes, which are the same however often it was stopped."""

import io
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from rich.console import Console

from lrat_jax import data
from lrat_jax.analysis import plots
from lrat_jax.attacks import eval_state
from lrat_jax.core import sharding
from lrat_jax.core.errors import ConfigError
from lrat_jax.evaluation import results as results_lib
from lrat_jax.evaluation import runner
from tests.helpers import make_config, make_split

SPLIT = make_split(40)
DATASET = data.Dataset(make_split(30, seed=3), make_split(20, seed=4), SPLIT, 4)
CHANGES = {"apgd-ce": {"num_steps": 3}, "apgd-t": {"num_steps": 3}, "square": {"num_queries": 4}}
SUITE = {
  "autoattack": {
    "name": "autoattack", "norm": "linf", "epsilon": "48/255", "version": "standard",
    "attacks_to_run": ("apgd-ce", "apgd-t", "square"), "overrides": CHANGES,
  },
  "jpeg": {"name": "corruption", "kind": "jpeg_compression", "severity": 5},
  "pgd_l2": {"name": "pgd", "norm": "l2", "epsilon": "1.0", "step_size": "0.3", "num_steps": 3},
  "spatial": {
    "name": "spatial", "max_rotation": 3.0, "max_translation": 0.25, "num_rotations": 3, "num_translations": 3,
  },
}  # fmt: skip


def _apply(weights, images):
  """The brightness of each quarter of the rows, which defines the class, plus a small linear term of all pixels."""
  return 20 * images.reshape(images.shape[0], 4, -1).mean(axis=-1) + images.reshape(images.shape[0], -1) @ weights


WEIGHTS = jax.random.normal(jax.random.key(0), (64, 4)) / 20
LOGITS_FN = Partial(_apply, WEIGHTS)


def _config(**fields):
  config = make_config(**{"eval__batch_size": 16, "eval__num_sanity_examples": 16, **fields})
  with config.unlocked():
    config.eval.suite = SUITE
  return config


def _evaluate(workdir, config=None, logits_fn=LOGITS_FN, dataset=DATASET, force_terminal=False):
  console = Console(file=io.StringIO(), width=100, force_terminal=force_terminal)
  more = {"about": {"name": "mine"}, "draw": plots.draw_evaluation}
  results = runner.evaluate(config or _config(), logits_fn, dataset, sharding.make_mesh(2), workdir, console, **more)
  return results, console.file.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """(workdir, results, printed text) of an evaluation without interruption."""
  workdir = tmp_path_factory.mktemp("whole")
  config = _config(eval__save_images=True)
  return workdir, *_evaluate(workdir, config)


def _arrays(workdir):
  with np.load(workdir / "per_example.npz") as arrays:
    return dict(arrays)


def test_results_say_what_was_measured(whole):
  workdir, results, printed = whole
  assert json.loads((workdir / "results.json").read_text()) == json.loads(json.dumps(results))
  assert results["threat_models"]["autoattack"] == {"norm": "linf", "text": "48/255", "value": 48 / 255}
  assert set(results["threat_models"]) == {"autoattack", "pgd_l2"} and set(results["robust"]) == set(SUITE)
  assert {"jax", "jaxlib", "flax", "numpy", "python", "device"} <= set(results["environment"])
  stages = results["autoattack"]["autoattack"]
  assert [stage["name"] for stage in stages] == ["apgd-ce", "apgd-t", "square"]
  assert stages[-1]["robust_accuracy"] == results["robust"]["autoattack"]
  assert any("autoattack: not the whole standard version" in line for line in results["warnings"])
  for text in (
    "warning: autoattack: not the whole",
    "autoattack apgd-ce:",
    "jpeg_compression, severity",
    "linf 48/255",
  ):
    assert text in printed
  assert not (workdir / runner.PROGRESS).exists()


def test_every_image_says_what_broke_it(whole):
  workdir, results, _ = whole
  arrays = _arrays(workdir)
  stages = arrays["stages"].tolist()
  assert stages[0] == "clean" and set(stages[1:]) == set(SUITE)
  np.testing.assert_array_equal(arrays["robust"], np.all([arrays[f"robust/{name}"] for name in SUITE], axis=0))
  assert 0 < results["union"] == arrays["robust"].mean() < results["clean"]
  for broken_by, row in zip(arrays["broken_by"], range(40), strict=True):
    fell = [not arrays["clean_correct"][row], *(not arrays[f"robust/{name}"][row] for name in stages[1:])]
    assert broken_by == (fell.index(True) if any(fell) else -1)
  np.testing.assert_array_equal(arrays["broken_by/autoattack"] == -1, arrays["robust/autoattack"])


def test_saved_adversarials_are_what_the_model_was_wrong_on(whole):
  workdir, _, _ = whole
  arrays = _arrays(workdir)
  for name, entry in SUITE.items():
    with np.load(workdir / "adversarials" / f"{name}.npz") as saved:
      images = saved["images"]
      np.testing.assert_array_equal(saved["indices"], SPLIT.indices)
    assert images.shape == SPLIT.images.shape
    answers = np.asarray(LOGITS_FN(jnp.asarray(images))).argmax(axis=1)
    np.testing.assert_array_equal(answers, arrays[f"prediction/{name}"])
    difference = (images - SPLIT.images).reshape(40, -1)
    length = np.abs(difference).max(axis=1) if entry.get("norm") == "linf" else np.linalg.norm(difference, axis=1)
    np.testing.assert_allclose(arrays[f"distance/{name}"], length, atol=1e-5)


def test_the_worst_examples_are_drawn(whole):
  picture = whole[0] / "plots" / "worst_examples.png"
  assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


class Preempted(Exception):
  """Simulates a kill."""


def _count_saves(monkeypatch, stop_after):
  """Records the pieces that are saved; after `stop_after` of them, the next save raises Preempted."""
  saved, save = [], eval_state.FileStore.save

  def counting(self, piece, arrays):
    if len(saved) == stop_after:
      raise Preempted
    save(self, piece, arrays)
    saved.append(piece)

  monkeypatch.setattr(eval_state.FileStore, "save", counting)
  return saved


@pytest.mark.slow
def test_a_evaluation_stopped_at_any_piece_ends_in_the_same_files_and_repeats_nothing(whole, tmp_path, monkeypatch):
  config = _config(eval__save_images=True)
  done = []
  for stop_after in (1, 4, 4, None):
    with monkeypatch.context() as patch:
      saved = _count_saves(patch, stop_after)
      if stop_after is None:
        _evaluate(tmp_path, config)
      else:
        with pytest.raises(Preempted):
          _evaluate(tmp_path, config)
    done += saved
  assert len(done) == len(set(done)) > 9
  for name in ("results.json", "per_example.npz", "adversarials/autoattack.npz"):
    assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("changed", "reason"),
  [
    ({"logits_fn": Partial(_apply, 1.01 * WEIGHTS)}, "predictions of the model"),
    ({"dataset": DATASET._replace(test=SPLIT._replace(labels=np.roll(SPLIT.labels, 1)))}, "images or labels"),
    ({"config": {"seed": 1}}, "seed"),
    ({"config": {"eval__suite__pgd_l2__epsilon": "0.7"}}, r"attacks \(config.eval.suite\)"),
    ({"config": {"eval__batch_size": 32}}, "batch size or device"),
  ],
)
def test_a_half_done_evaluation_of_something_else_is_refused(changed, reason, tmp_path, monkeypatch):
  with monkeypatch.context() as patch, pytest.raises(Preempted):
    _count_saves(patch, 0)
    _evaluate(tmp_path)
  if "config" in changed:
    config = _config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changed["config"].items()})
    changed = {"config": config}
  with pytest.raises(ConfigError, match=f"contains an evaluation that differs in .*{reason}"):
    _evaluate(tmp_path, **changed)
  assert not (tmp_path / "results.json").exists()


@pytest.mark.slow
def test_a_model_that_hides_its_gradients_is_warned_of(tmp_path):
  # With logits this far apart gradients of the cross-entropy vanish; a margin loss works at any scale.
  config = _config(eval__num_sanity_examples=40)
  with config.unlocked():
    config.eval.suite = {"pgd": {"name": "pgd", "epsilon": "0.2", "step_size": "0.05", "num_steps": 5}}
  masked = Partial(lambda weights, images: 1e4 * _apply(weights, images), WEIGHTS)
  results, printed = _evaluate(tmp_path, config, masked)
  assert results["warnings"] and f"warning: {results['warnings'][0]}" in printed
  assert any("gradients on surviving images are 0" in line for line in results["warnings"])


def test_only_the_first_images_are_evaluated_where_so_asked(tmp_path):
  config = _config(eval__num_images=5)
  with config.unlocked():
    config.eval.suite = {"jpeg": SUITE["jpeg"]}
  results, _ = _evaluate(tmp_path, config)
  np.testing.assert_array_equal(_arrays(tmp_path)["indices"], SPLIT.indices[:5])
  assert results["n"] == 5 and results["warnings"] == [] and results["threat_models"] == {}


def test_a_list_says_which_images_are_evaluated(tmp_path):
  config = _config(eval__image_list="some.txt", eval__num_images=3)
  with config.unlocked():
    config.eval.suite = {"jpeg": SUITE["jpeg"]}
  results, _ = _evaluate(tmp_path, config, dataset=DATASET._replace(listed=np.array([30, 2, 17, 5])))
  np.testing.assert_array_equal(_arrays(tmp_path)["indices"], SPLIT.indices[[30, 2, 17]])
  assert results["n"] == 3 and results["image_list"] == "some.txt"


def test_a_terminal_shows_how_far_an_attack_has_come(tmp_path):
  config = _config(eval__num_images=32)
  with config.unlocked():
    config.eval.suite = {"jpeg": SUITE["jpeg"]}
  _, printed = _evaluate(tmp_path, config, force_terminal=True)
  assert re.search(r"jpeg .*32/32 images .*left", printed), printed
  assert "images" not in _evaluate(tmp_path, config)[1].replace("32 test images", "")


def test_robustbench_takes_the_standard_version_alone():
  entry = {"name": "autoattack", "epsilon": "8/255", "version": "standard"}
  results = {"name": "at_cifar10", "clean": 0.84916, "robust": {"aa": 0.4401}, "suite": {"aa": entry}}
  written = results_lib.robustbench_entry(results, dataset="cifar10", architecture="resnet18", authors="A")
  assert written == {
    "link": "", "name": "at_cifar10", "authors": "A", "additional_data": False, "number_forward_passes": 1,
    "dataset": "cifar10", "venue": "", "architecture": "resnet18", "eps": "8/255",
    "clean_acc": "84.92", "reported": "44.01", "autoattack_acc": "44.01",
  }  # fmt: skip
  for change in ({"version": "apgd"}, {"overrides": CHANGES}, {"attacks_to_run": ("apgd-ce",)}):
    with pytest.raises(ValueError, match="results contain no standard AutoAttack"):
      results_lib.robustbench_entry(results | {"suite": {"aa": entry | change}}, dataset="cifar10", architecture="x")


def test_another_split_is_evaluated_apart_from_the_test_split(whole, tmp_path):
  config = _config(eval__split="validation")
  with config.unlocked():
    config.eval.suite = {"jpeg": SUITE["jpeg"]}
  results, _ = _evaluate(tmp_path, config)
  assert [path.name for path in tmp_path.iterdir()] == ["validation"]
  assert results["n"] == 20 and results["split"] == "validation" and whole[1]["split"] == "test"
  np.testing.assert_array_equal(_arrays(tmp_path / "validation")["labels"], DATASET.validation.labels)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (None, "No such file"),
    ("[1]", "contains list, not a JSON object"),
    ('{"jpeg": 0}', "'jpeg' has 0; a best known accuracy must be in"),
    ('{"jpeg": "0.5"}', "'jpeg' has '0.5'"),
    ('{"fog": 0.5}', r"contains only \['fog'\], none of which is in the suite, \['jpeg'\]"),
  ],
)
def test_references_that_serve_for_nothing_are_refused(tmp_path, content, message):
  path = tmp_path / "best.json"
  if content is not None:
    path.write_text(content)
  with pytest.raises(ConfigError, match=f"^config.eval.references='.*{message}"):
    runner.read_references(str(path), ["jpeg"])


def test_what_several_attacks_say_together_is_in_the_results(tmp_path):
  (tmp_path / "best.json").write_text('{"jpeg": 0.5, "of another suite": 0.1}')
  config = _config(eval__references=str(tmp_path / "best.json"))
  with config.unlocked():
    config.eval.suite = {"jpeg": SUITE["jpeg"]}
  results, printed = _evaluate(tmp_path, config)
  assert results["competitiveness"]["mean"] == pytest.approx(results["robust"]["jpeg"] / 0.5)
  assert set(results["corruptions"]["kinds"]) == {"jpeg_compression"}
  assert "held_out" not in results  # the training attacks of this model are unknown
  assert "competitiveness" in printed and "corruptions, mean" in printed
