"""Metrics over a suite, against values computed by hand."""

import numpy as np
import pytest

from lrat_jax.evaluation import metrics

# Four images under three attacks.
ROBUST = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0]], bool)
PGD = {"name": "pgd", "epsilon": "0.1"}


def test_union_mean_and_lowest():
  assert metrics.union(ROBUST).tolist() == [True, False, False, False]
  np.testing.assert_allclose(metrics.mean(ROBUST), [1, 2 / 3, 2 / 3, 0])
  assert metrics.lowest(ROBUST) == 0.5 and metrics.union(ROBUST[:0]).all()


def test_area_is_by_the_trapezoidal_rule_from_the_clean_images_on():
  """The strengths are 0, 1 and 3, so the widths are 1 and 2."""
  clean = np.array([1, 1, 1, 0], bool)
  robust = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool)
  np.testing.assert_allclose(metrics.area([1.0, 3.0], robust, clean), [1, (1 + 1) / 3, 0.5 / 3, 0])
  # The unit does not matter, and if no strength breaks an image, the area is the clean accuracy.
  np.testing.assert_allclose(
    metrics.area([0.1, 0.3], robust, clean), metrics.area([1.0, 3.0], robust, clean), atol=1e-12
  )
  np.testing.assert_allclose(metrics.area([1.0, 2.0], np.stack([clean, clean]), clean), clean)


def test_competitiveness_is_the_mean_share_of_the_best_known():
  shares = metrics.competitiveness(ROBUST, np.array([0.75, 1.0, 0.8]))
  np.testing.assert_allclose(shares, np.array([1 / 0.75 + 1 + 1 / 0.8, 1 / 0.75 + 1, 1 / 0.75 + 1 / 0.8, 0]) / 3)
  np.testing.assert_allclose(shares.mean(), (0.75 / 0.75 + 0.5 / 1.0 + 0.5 / 0.8) / 3)


def test_ladders_are_of_rising_strength():
  names = ["fog@10", "fog@2", "fog@0.5", "alone@1", "pgd20", "l2@strong", "l2@weak", "@1", "@2", "x@-1", "x@-2"]
  assert metrics.ladders(names) == {"fog": [(0.5, "fog@0.5"), (2.0, "fog@2"), (10.0, "fog@10")]}


def _per_example():
  columns = {f"robust/{name}": row for name, row in zip(("pgd", "l2@1", "l2@2"), ROBUST, strict=True)}
  predictions = {"prediction/fog@1": [0, 1, 1, 1], "prediction/fog@5": [0, 0, 1, 1], "prediction/snow": [0, 0, 0, 0]}
  robust = {f"robust/{name}": np.zeros(4, bool) for name in ("fog@1", "fog@5", "snow")}
  columns |= robust | {name: np.array(array) for name, array in predictions.items()}
  return columns | {"labels": np.array([0, 1, 1, 0]), "clean_correct": np.array([1, 1, 1, 0], bool)}


SUITE = {
  "pgd": PGD,
  "l2@1": PGD | {"norm": "l2"},
  "l2@2": PGD | {"norm": "l2", "epsilon": "2"},
}
CORRUPTED = {
  "fog@1": {"name": "corruption", "kind": "fog", "severity": 1},
  "fog@5": {"name": "corruption", "kind": "fog", "severity": 5},
  "snow": {"name": "corruption", "kind": "snow", "severity": 2},
}


def test_corruption_accuracy_counts_images_that_are_wrong_when_clean():
  found = metrics.corruption_accuracies(SUITE | CORRUPTED, _per_example())
  assert found["kinds"]["fog"] == {"mean": 0.625, "severities": {"1": 0.75, "5": 0.5}}
  assert found["kinds"]["snow"] == {"mean": 0.5, "severities": {"2": 0.5}} and found["mean"] == 0.5625
  assert metrics.corruption_accuracies(SUITE, _per_example()) == {}


def test_a_summary_has_what_there_is():
  found = metrics.summary(SUITE, _per_example(), {"train": PGD}, {"l2@1": 0.8, "elsewhere": 0.1})
  assert found["held_out"] == {"attacks": ["l2@1", "l2@2"], "mean": 0.5, "union": 0.25, "lowest": 0.5}
  # Image 0 is robust at strengths 0, 1 and 2, image 1 at 0 and 1, image 2 at 0 and 2, image 3 at none.
  assert found["areas"] == {"l2": pytest.approx((1 + 0.75 + 0.5) / 4)}
  assert found["competitiveness"] == {
    "mean": pytest.approx(0.625),
    "lowest": pytest.approx(0.625),
    "attacks": {"l2@1": pytest.approx(0.625)},
    "references": {"l2@1": 0.8},
  }
  assert metrics.summary({"pgd": PGD}, _per_example(), {"train": PGD}, {}) == {}
  assert "held_out" not in metrics.summary(SUITE, _per_example(), None, {})


def test_autoattack_is_not_held_out():
  suite = SUITE | {"aa": {"name": "autoattack", "epsilon": "0.1"}}
  per_example = _per_example() | {"robust/aa": np.zeros(4, bool)}
  assert metrics.summary(suite, per_example, {"train": PGD}, {})["held_out"]["attacks"] == ["l2@1", "l2@2"]
