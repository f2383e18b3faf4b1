"""The summary of a comparison, on handwritten results: means, spread, paired intervals, and the page."""

import json
from pathlib import Path

import numpy as np
import pytest

from lrat_jax.analysis import plots
from lrat_jax.compare import methods
from lrat_jax.compare import summary as summary_lib
from lrat_jax.core import provenance
from lrat_jax.training import workdir

ROOT = Path(__file__).parent.parent.parent
# The number of robust images out of ten, for each method, seed and attack of the suite.
HELD = {
  "at": {0: {"fgsm": 8, "pgd20": 7, "cw20": 6}, 1: {"fgsm": 8, "pgd20": 5, "cw20": 4}},
  "lrat:pgd+cw": {0: {"fgsm": 8, "pgd20": 6, "cw20": 8}, 1: {"fgsm": 8, "pgd20": 6, "cw20": 7}},
}


def _write(run, held):
  run.workdir.mkdir(parents=True)
  robust = {name: np.arange(10) < count for name, count in held.items()}
  arrays = {"indices": np.arange(10), "clean_correct": np.arange(10) < 9, "robust": np.arange(10) < min(held.values())}
  for name, column in robust.items():
    arrays |= {
      f"robust/{name}": column,
      f"vulnerability/{name}": np.linspace(-1, 1, 10) * (-1 if name == "cw20" else 1),
    }
  np.savez(run.workdir / "per_example.npz", **arrays)
  found = provenance.stamp() | {
    "config": workdir.portable(run.config),
    "n": 10,
    "warnings": ["look"] if run.seed else [],
  }
  found |= {"clean": 0.9, "union": min(held.values()) / 10}
  (run.workdir / "results.json").write_text(json.dumps(found))
  row = {"split": "train", "step": 10, "epoch": 0, "steps": 10, "images_per_second": 64.0}
  (run.workdir / "metrics.jsonl").write_text(json.dumps(row) + "\n")


@pytest.fixture
def runs(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  planned = methods.plan(
    [methods.parse(name) for name in HELD], (0, 1), data="digits", suite="pgd", overrides=[], workdir=tmp_path
  )
  for run in planned:
    _write(run, HELD[run.method.name][run.seed])
  return planned


def test_means_spread_and_differences_are_over_seeds(runs):
  summary = summary_lib.summarise(runs, "title")
  assert summary["columns"] == ["clean", "cw20", "fgsm", "pgd20", "union"] and summary["n"] == 10
  at, lrat = summary["methods"]["at"], summary["methods"]["lrat:pgd+cw"]
  np.testing.assert_allclose([at["mean"]["pgd20"], lrat["mean"]["pgd20"], lrat["mean"]["cw20"]], [0.6, 0.6, 0.75])
  np.testing.assert_allclose(at["std"]["cw20"], np.sqrt(0.02))  # of 0.6 and 0.4, dividing by n - 1
  np.testing.assert_allclose(at["mean"]["union"], 0.5)
  assert at["seeds"]["1"]["pgd20"] == 0.5 and at["training_seconds"] == [10.0, 10.0]
  found = lrat["difference"]["cw20"]
  np.testing.assert_allclose(found["mean"], 0.25)
  assert 0 <= found["low"] < found["mean"] < found["high"] <= 0.7
  assert lrat["difference"]["fgsm"] == {"mean": 0.0, "low": 0.0, "high": 0.0} and at["difference"] == {}


def test_intervals_of_several_columns_are_those_of_each(runs):
  differences = np.random.default_rng(1).normal(size=(3, 2, 20))
  together = summary_lib.paired_intervals(differences)
  np.testing.assert_allclose(together, [summary_lib.paired_interval(one) for one in differences])
  assert together.shape == (3, 2) and np.ptp(together[:, 0]) > 0.01


def test_arms_of_which_no_image_is_right_are_compared_all_the_same(runs):
  for run in runs:
    arrays = dict(np.load(run.workdir / "per_example.npz"))
    np.savez(run.workdir / "per_example.npz", **(arrays | {"clean_correct": np.zeros(10, bool)}))
  assert summary_lib.summarise(runs, "title")["inconsistency"] is None


def test_attacks_are_grouped_by_what_the_arms_trained_on(runs):
  summary = summary_lib.summarise(runs, "title")
  assert (summary["trained_on"], summary["held_out"], summary["autoattack"]) == (["cw20", "fgsm", "pgd20"], [], [])
  assert summary["methods"]["at"]["trained_on"] == ["fgsm", "pgd20"]
  alone = summary_lib.summarise([run for run in runs if run.method.name == "at"], "title")
  assert alone["held_out"] == ["cw20"]


def test_columns_of_several_attacks_are_paired_too(runs):
  """All attacks of the suite are held out and form one ladder of strengths; best known accuracies are given."""
  run = runs[0]
  with run.config.unlocked():
    run.config.eval.suite = {name: {"name": "spatial"} for name in ("turn@1", "turn@3")}
  robust = {"turn@1": np.arange(10) < 8, "turn@3": np.arange(10) < 4}
  arrays = {f"robust/{name}": column for name, column in robust.items()}
  arrays |= {f"vulnerability/{name}": np.zeros(10) for name in robust}
  arrays |= {"clean_correct": np.arange(10) < 9, "robust": robust["turn@3"]}
  np.savez(run.workdir / "per_example.npz", **arrays)
  found = json.loads((run.workdir / "results.json").read_text())
  found |= {"competitiveness": {"references": {"turn@3": 0.5}}, "config": workdir.portable(run.config)}
  (run.workdir / "results.json").write_text(json.dumps(found))
  columns = summary_lib.robust_columns(run, {"trained_on": [], "held_out": list(robust), "autoattack": []})
  means = {name: column.mean() for name, column in columns.items()}
  assert list(means) == [
    "clean", "turn@1", "turn@3", "held out, mean", "held out, union", "turn, area", "competitiveness", "union"
  ]  # fmt: skip
  expected = [0.9, 0.8, 0.4, 0.6, 0.4, (0.85 + 2 * 0.6) / 3, 0.8, 0.4]
  np.testing.assert_allclose(list(means.values()), expected)


def test_the_page_shows_what_the_summary_holds(runs):
  summary = summary_lib.summarise(runs, "title")
  page = summary_lib.markdown(summary)
  assert "| at | 90.0 ± 0.0 | 50.0 ± 14.1 | 80.0 ± 0.0 † | 60.0 ± 14.1 † | 50.0 ± 14.1 | 10 |" in page
  found = summary["methods"]["lrat:pgd+cw"]["difference"]["cw20"]
  assert f"+25.0 [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]" in page
  assert page.count("python -m lrat_jax.main --config=") == 4
  assert "- warning in 2 runs, at seed 1, lrat:pgd+cw seed 1: look" in page and "missing" not in page


@pytest.mark.parametrize(
  "chosen, heading, bootstrap",
  [
    ((0, 1), "images: mean ± standard deviation, 2 seeds.", "bootstrap over seeds and images:"),
    ((1,), "images, 1 seed.", "bootstrap over images only: with one seed, the variation between seeds is unknown:"),
  ],
)
def test_the_page_says_what_its_spread_and_intervals_are_over(runs, chosen, heading, bootstrap):
  page = summary_lib.markdown(summary_lib.summarise([run for run in runs if run.seed in chosen], "title"))
  assert heading in page and bootstrap in page


def test_seconds_of_training_are_of_the_runs_that_have_metrics(runs):
  (runs[0].workdir / "metrics.jsonl").unlink()
  summary = summary_lib.summarise(runs, "title")
  assert summary["methods"]["at"]["training_seconds"] == [None, 10.0]
  assert "| 50.0 ± 14.1 | 10 |" in summary_lib.markdown(summary)
  (runs[2].workdir / "metrics.jsonl").unlink()
  assert "| 50.0 ± 14.1 | - |" in summary_lib.markdown(summary_lib.summarise(runs, "title"))


def test_the_page_says_how_it_was_made(runs):
  environment = {"python": "3.x", "jax": "0.x", "jaxlib": "0.y", "flax": "0.z", "device": "TPU v9"}
  made = {"command": "python -m this", "commit": "abc", "date": "2030-01-02", "jobs": 3, "environment": environment}
  page = summary_lib.markdown(summary_lib.summarise(runs, "title") | made)
  assert "```sh\npython -m this\n```\n\n2030-01-02, commit abc, TPU v9, 3 runs at a time, python 3.x, jax 0.x" in page


def test_how_far_attacks_disagree_is_told_of_the_first_arm(runs):
  summary = summary_lib.summarise(runs, "title")
  found = summary["inconsistency"]
  assert found["method"] == "at" and found["attacks"] == ["fgsm", "pgd20", "cw20"]
  np.testing.assert_allclose(found["rank_correlation"]["mean"], [[1, 1, -1], [1, 1, -1], [-1, -1, 1]])
  # Of nine correct clean images, PGD breaks 2 and 4 in the two seeds; CW breaks the same ones and one more: 3 and 5.
  np.testing.assert_allclose(found["cross"]["mean"][2][1], 1 / 9)
  np.testing.assert_allclose(found["cross"]["mean"][1][2], 0)
  page = summary_lib.markdown(summary)
  assert "| cw20 | -1.00 | -1.00 | 1.00 |" in page and "| cw20 | 33.3 ± 15.7 | 11.1 | 0.0 |" in page


def test_a_run_without_results_is_missing_and_its_seed_is_not_compared(runs):
  (runs[3].workdir / "results.json").unlink()
  summary = summary_lib.summarise(runs, "title")
  assert summary["missing"] == ["lrat:pgd+cw seed 1"] and list(summary["methods"]["lrat:pgd+cw"]["seeds"]) == ["0"]
  np.testing.assert_allclose(summary["methods"]["lrat:pgd+cw"]["difference"]["cw20"]["mean"], 0.2)
  assert "- missing: lrat:pgd+cw seed 1" in summary_lib.markdown(summary)
  assert summary_lib.resampled(summary).startswith("images only: with one seed")  # the only pair, though AT has two
  other = summary["methods"]["lrat:pgd+cw"] | {"seeds": summary["methods"]["at"]["seeds"]}
  mixed = summary | {"methods": summary["methods"] | {"other": other}}
  assert summary_lib.resampled(mixed).startswith("seeds and images; over images only for lrat:pgd+cw: with one seed")
  for run in runs:
    (run.workdir / "results.json").unlink(missing_ok=True)
  with pytest.raises(ValueError, match="no run has results"):
    summary_lib.summarise(runs, "title")


def test_runs_on_different_images_are_not_compared(runs):
  path = runs[2].workdir / "per_example.npz"
  np.savez(path, **dict(np.load(path)) | {"indices": np.arange(10)[::-1]})
  with pytest.raises(ValueError, match="at seed 1 was evaluated on other images than at seed 0"):
    summary_lib.summarise(runs, "title")


def test_the_plot_shows_means_and_differences(runs):
  summary = summary_lib.summarise(runs, "title")
  above, below = plots.plot_comparison(summary).axes
  means = [100 * summary["methods"]["at"]["mean"][column] for column in summary["columns"]]
  np.testing.assert_allclose(above.containers[0].lines[0].get_ydata(orig=False), means)
  differences = [100 * summary["methods"]["lrat:pgd+cw"]["difference"][c]["mean"] for c in summary["columns"]]
  np.testing.assert_allclose(below.containers[0].lines[0].get_ydata(orig=False), differences)
  assert [label.get_text() for label in below.get_xticklabels()][:2] == ["clean", "cw20\n(trained on)"]


def test_the_plot_of_one_method_has_no_panels_for_differences(runs):
  alone = summary_lib.summarise(runs[:1], "title")
  assert "Difference to" not in summary_lib.markdown(alone)
  (panel,) = plots.plot_comparison(alone).axes
  assert panel.get_ylabel() == "accuracy (%)"
  assert [label.get_text() for label in panel.get_xticklabels()][:2] == ["clean", "fgsm\n(trained on)"]


def test_many_attacks_go_on_in_rows(runs):
  summary = summary_lib.summarise(runs, "title")
  columns = [f"attack{number}" for number in range(13)]
  of = lambda values: {column: values[number % len(values)] for number, column in enumerate(columns)}
  method = {"mean": of([0.1, 0.2, 0.3]), "std": of([0.0]), "difference": of([{"mean": 0, "low": -0.1, "high": 0.1}])}
  figure = plots.plot_comparison(summary | {"columns": columns, "methods": {"at": method}})
  panels = figure.axes
  assert len(panels) == 6 and figure.get_figwidth() < 10
  shown = [label.get_text() for below in panels[1::2] for label in below.get_xticklabels()]
  assert shown == columns and [len(below.get_xticks()) for below in panels[1::2]] == [5, 4, 4]
  means = [value for above in panels[::2] for value in above.containers[0].lines[0].get_ydata(orig=False)]
  np.testing.assert_allclose(means, [100 * method["mean"][column] for column in columns])
  assert len({axis.get_xlim() for axis in panels}) == 1
  assert [text.get_text() for text in figure.legends[0].get_texts()] == ["at"]


def test_names_of_any_length_are_inside_the_picture(runs):
  summary = summary_lib.summarise(runs, "title")
  at, lrat = summary["methods"].values()
  name = (
    "at:union@local_weights.kind=benchmarks.weightings:by_norm@local_weights.begin_fraction=0.0@local_weights.slope=8.0"
  )
  figure = plots.plot_comparison(summary | {"baseline": name, "methods": {name: at, "lrat": lrat}})
  (legend,) = figure.legends
  assert [text.get_text().replace("\n", "") for text in legend.get_texts()] == [name, "lrat"]
  figure.draw_without_rendering()
  drawn = [legend, *(axis.yaxis.label for axis in figure.axes)]
  low, high = figure.bbox.min, figure.bbox.max
  assert all((part.get_window_extent().min >= low).all() for part in drawn)
  assert all((part.get_window_extent().max <= high).all() for part in drawn)
  assert figure.axes[1].get_ylabel() == "difference to the first method (points)"


def test_with_one_seed_the_interval_is_that_of_the_mean_over_images():
  difference = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], p=[0.1, 0.7, 0.2], size=(1, 2000))
  low, high = summary_lib.paired_interval(difference)
  half = 1.96 * difference.std() / np.sqrt(2000)
  np.testing.assert_allclose([low, high], [difference.mean() - half, difference.mean() + half], atol=0.2 * half)


def test_seeds_that_disagree_widen_the_interval():
  generator = np.random.default_rng(2)
  same = np.repeat(generator.choice([-1.0, 0.0, 1.0], size=(1, 500)), 4, axis=0)
  shifted = same + np.array([[-0.3], [-0.1], [0.1], [0.3]])
  narrow, wide = (np.diff(summary_lib.paired_interval(d))[0] for d in (same, shifted))
  assert wide > 1.5 * narrow and summary_lib.paired_interval(np.zeros((3, 9))) == (0.0, 0.0)
