"""The page's tables: intervals against their closed form, signs, and warnings that differ only in numbers."""

import numpy as np
import pytest

from lrat_jax.report import methods, runs, tables


@pytest.mark.parametrize(("right", "count"), [(0, 10), (106, 500), (9_999, 10_000), (3, 3)])
def test_wilson_intervals_are_those_of_the_formula(right, count):
  share, z = right / count, 1.959964
  middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
  reach = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
  np.testing.assert_allclose(tables.wilson(share, count), [share, middle - reach, middle + reach], atol=1e-6)


def test_differences_have_a_sign_and_nothing_has_none():
  assert [tables.signed(share) for share in (0.012, -0.003, -0.0001, 0.0)] == ["+1.2", "\u22120.3", "0.0", "0.0"]
  assert [tables.Estimate(0.1, *ends).clear for ends in ((0.05, 0.2), (-0.2, -0.1), (-0.1, 0.2))] == [True, True, False]


def test_warnings_that_differ_in_numbers_alone_stand_together():
  lines = [["a 1 %", "b"], ["a 2.5 %", "b"], []]
  found = [
    runs.Run(None, "x", seed, "at", [], None, {"warnings": mine}, *[None] * 5) for seed, mine in enumerate(lines)
  ]
  warning = tables.warnings([methods.MethodRuns("x", found, None)])
  assert warning[0] == tables.WarningLine("a 1 %", ["x seed 0"], [("a 2.5 %", ["x seed 1"])])
  assert warning[1:] == [tables.WarningLine("b", ["x seed 0", "x seed 1"], [])]
