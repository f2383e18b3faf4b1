"""The page without a browser: it is valid, loads nothing, shows all numbers, names missing files, escapes all text."""

import base64
import hashlib
import io
import json
import re
import shutil

import html5lib
import numpy as np
import pytest
from PIL import Image

from lrat_jax.compare import summary
from lrat_jax.core import files
from lrat_jax.core.errors import ConfigError
from lrat_jax.report import methods, page, pictures, runs, tables

pytestmark = pytest.mark.slow

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def _parse(text):
  """The tree of a page, which must parse without errors."""
  return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)


def _text(node):
  return " ".join(" ".join(node.itertext()).split())


def _visible(tree):
  """The text that a reader sees."""
  for parent in list(tree.iter()):
    for child in list(parent):
      if child.tag in ("script", "style"):
        parent.remove(child)
  return _text(tree)


@pytest.fixture(scope="module")
def whole(finished):
  return page.render([finished])


def test_the_page_parses_and_loads_nothing(whole):
  tree = _parse(whole)
  for node in tree.iter():
    for name in ("src", "href", "action", "data", "srcset"):
      assert node.get(name, "#").startswith(("#", "data:")), (node.tag, node.get(name))
    assert not any(name.startswith("on") for name in node.attrib)
  assert not [node for node in tree.iter() if node.tag in ("link", "iframe", "object", "embed", "form")]
  style = "".join(_text(node) for node in tree.iter("style"))
  assert "url(" not in style and "@import" not in style


def test_no_script_runs_but_that_of_the_page(whole):
  tree = _parse(whole)
  policy = next(node for node in tree.iter("meta") if node.get("http-equiv") == "Content-Security-Policy").get(
    "content"
  )
  assert policy.startswith("default-src 'none';") and "unsafe-eval" not in policy
  scripts = ["".join(node.itertext()) for node in tree.iter("script") if node.get("type") is None]
  hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
  assert len(scripts) == 1
  assert re.search("script-src ([^;]*);", policy)[1].split() == [f"'sha256-{digest}'" for digest in hashes]


def test_every_number_of_the_results_is_on_the_page(whole, finished):
  results = json.loads((finished / "results.json").read_text())
  tree = _parse(whole)
  rows = {_text(row[0]).removesuffix(" †"): [_text(cell) for cell in row] for row in tree.iter("tr") if len(row) == 6}
  for name, share in {"clean": results["clean"], **results["robust"], "union": results["union"]}.items():
    assert rows[name][1] == f"{100 * share:.1f}"
    found = tables.wilson(share, results["n"])
    assert rows[name][2] == f"[{100 * found.low:.1f}, {100 * found.high:.1f}]"
  text = _visible(tree)
  for said in (f"{results['n']} test images", f"step {results['step']}", *results["environment"].values()):
    assert str(said) in text
  assert all(f"L∞ {entry['text']}" in text for entry in results["threat_models"].values())
  assert f"{100 * results['union']:.1f} % robust to the union" in text


def test_stages_of_autoattack_are_shown(copy):
  stage = {"name": "apgd-ce", "robust_accuracy": 0.321, "attacked": 1234, "broken": 77, "gradient_calls": 567890}
  text = _visible(_parse(page.render([copy(results={"autoattack": {"pgd20": [stage]}})])))
  assert "apgd-ce 32.1 1,234 77 567,890" in text


def _charts(tree):
  """The charts of a page by their titles."""
  return {_text(figure[0][0]): figure for figure in tree.iter("figure") if figure.get("class") == "chart"}


def test_charts_are_drawn_from_the_results(whole, finished, copy):
  charts = _charts(_parse(whole))
  run = runs.read(finished)
  weighted = [f"{run.name}: sampled training instances (lines: medians; bands: the middle 50 % and 90 %)"]
  assert {f"{run.name}: accuracy under each attack", f"{run.name}: training", *weighted} <= set(charts)
  drawing = charts[f"{run.name}: accuracy under each attack"]
  assert all(name in _text(drawing) for name in ["clean", *run.results["robust"], "union"])
  other = _charts(_parse(page.render([copy(results={"clean": 0.123})])))
  changed = [title for title in charts if _text(charts[title]) and _drawn(charts[title]) != _drawn(other[title])]
  assert changed == [f"{run.name}: accuracy under each attack"]


def _drawn(figure):
  """The paths and `use` elements of a chart, without their ids."""
  return [
    (node.get("d"), node.get("x"), node.get("y")) for node in figure.iter() if str(node.tag).endswith(("}path", "}use"))
  ]


def test_charts_take_the_colours_of_the_page_and_share_no_names(whole):
  tree = _parse(whole)
  drawings = [figure.find("div") for figure in _charts(tree).values()]
  assert len(drawings) > 3
  fixed = re.findall(r"#[0-9a-f]{6}", " ".join(node.get("style", "") for d in drawings for node in d.iter()))
  assert not set(fixed) & {"#000000", "#0072b2", "#d55e00", "#444444"}
  names = [node.get("id") for node in tree.iter() if node.get("id")]
  assert len(names) == len(set(names))


def test_warnings_stand_before_the_numbers(copy):
  lines = ["first: gradients vanish.", "second has 3 % left.", "second has 4 % left."]
  tree = _parse(page.render([copy(results={"warnings": lines})]))
  section = next(node for node in tree.iter("section") if "warnings" in node.get("class", ""))
  assert all(line in _text(section) for line in lines) and "Read this before" in _text(section)
  tree = _parse(page.render([copy("quiet", results={"warnings": []})]))
  assert "the checks were off" in _visible(tree)  # eval.num_sanity_examples is 0 in the small run


def test_hostile_text_stays_text(copy):
  workdir = copy(
    "<img src=x onerror=alert(3)>",
    results={"warnings": [HOSTILE], "dataset": HOSTILE, "environment": {"device": HOSTILE}},
    config={"data.source": f"npz:{HOSTILE}"},
  )
  for path in (workdir / "weights").iterdir():
    arrays = dict(np.load(path))
    np.savez(path, **(arrays | {"variants": np.array([HOSTILE])}))
  text = page.render([workdir])
  tree = _parse(text)
  assert not [node for node in tree.iter("img") if not node.get("src").startswith("data:image/png;base64,")]
  assert all("alert" not in _text(node) for node in tree.iter("script") if node.get("type") is None)
  assert any(HOSTILE in _text(drawing) for drawing in _charts(tree).values())
  assert _visible(tree).count(HOSTILE) >= 3


@pytest.mark.parametrize(
  ("gone", "said", "hidden"),
  [
    (["results.json"], "this run was trained but not evaluated", "Do attacks agree on which images are vulnerable? On"),
    (["per_example.npz"], "No per_example.npz", "Rank correlation of vulnerability"),
    (["timings.json"], "No timings.json", "Evaluation time"),
    (["metrics.jsonl"], "No metrics.jsonl", "validation accuracy (%)"),
    (["weights"], "No weights/epoch_*.npz", "sampled training instances"),
    (["worst_examples.npz"], "as the run drew them. Above each: the attack", "enlarged so that"),
    (["worst_examples.npz", "plots"], "or the run saved no picture", "enlarged so that"),
  ],
)
def test_what_is_missing_is_said(copy, whole, gone, said, hidden):
  workdir = copy()
  for name in gone:
    shutil.rmtree(workdir / name) if (workdir / name).is_dir() else (workdir / name).unlink()
  text = _visible(_parse(page.render([workdir])))
  assert said in text and hidden not in text
  assert said not in _visible(_parse(whole)) and hidden in _visible(_parse(whole))


def test_an_evaluated_function_needs_no_configuration(copy):
  workdir = copy()
  results = json.loads((workdir / "results.json").read_text())
  del results["config"], results["step"]
  (workdir / "results.json").write_text(json.dumps(results | {"name": "mine.net:logits", "model": "mine.net:logits"}))
  for name in ("config.json", "metrics.jsonl"):
    (workdir / name).unlink()
  shutil.rmtree(workdir / "weights")
  text = _visible(_parse(page.render([workdir])))
  assert (
    "This model was evaluated but not trained here" in text
    and "mine.net:logits" in text
    and "Rank correlation of" in text
  )


def test_the_same_run_makes_the_same_page(whole, finished):
  assert page.render([finished]) == whole


def test_worst_examples_are_pictures_with_words(whole, finished):
  kept = files.read_arrays(finished / "worst_examples.npz")
  tree = _parse(whole)
  triples = [node for node in tree.iter("div") if node.get("class") == "triple"]
  assert len(triples) == len(kept["attacks"]) > 3
  for row, triple in enumerate(triples):
    images = [image.get("src").partition(",")[2] for image in triple]
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))) / 255 for image in images]
    original, adversarial = kept["originals"][row, ..., 0], kept["adversarials"][row, ..., 0]
    np.testing.assert_allclose(shown[0], original, atol=0.5 / 255)
    np.testing.assert_allclose(shown[1], adversarial, atol=0.5 / 255)
    change = adversarial - original
    np.testing.assert_allclose(shown[2] - 0.5, change / np.abs(change).max() / 2, atol=1 / 255)
    assert f"class {kept['labels'][row]}" in triple[0].get("alt")
    assert f"predicts class {kept['predictions'][row]}" in triple[1].get("alt")
  assert all(image.get("alt") for image in tree.iter("img"))


def test_kept_examples_are_those_that_broke(finished):
  kept, found = (files.read_arrays(finished / f"{name}.npz") for name in ("worst_examples", "per_example"))
  rows = [int(np.flatnonzero(found["indices"] == index)[0]) for index in kept["indices"]]
  np.testing.assert_array_equal(kept["labels"], found["labels"][rows])
  for row, name, answer in zip(rows, kept["attacks"], kept["predictions"], strict=True):
    assert found["clean_correct"][row] and not found[f"robust/{name}"][row]
    assert found[f"prediction/{name}"][row] == answer != found["labels"][row]
  assert len(set(rows)) == len(rows)


def test_nothing_changed_is_grey(finished):
  run = runs.read(finished)
  same = {**run.worst, "adversarials": run.worst["originals"]}
  shown = pictures.worst(run._replace(worst=same))[0]
  image = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown.difference.partition(",")[2]))))
  assert set(image.ravel()) == {128} and shown.largest == 0


def test_runs_side_by_side_are_compared_with_the_first(copy):
  first = copy("first")
  other = copy("other", config={"global_weights.kind": "mail"}, flip="pgd20")
  text = page.render([first, other])
  tree = _parse(text)
  rows = [[_text(cell) for cell in row] for row in tree.iter("tr")]
  arrays = [runs.read(path).per_example["robust/pgd20"].astype(float) for path in (first, other)]
  change = arrays[1] - arrays[0]
  low, high = summary.paired_interval(change[None])
  expected = f"{tables.signed(change.mean())} [{tables.signed(low)}, {tables.signed(high)}]"
  assert change.mean() != 0 and [row[1] for row in rows if row[0] == "pgd20" and len(row) == 2] == [expected]
  heads = [row for row in rows if row[0] == "Attack" and "What the attack may do" in row[-1]]
  assert ["Attack", "lrat_irat_digits", "lrat_irat_digits, global_weights.kind=mail", "What the attack may do"] in heads
  assert "Intervals: Wilson, over images." in _visible(tree)
  assert "bootstrap over images only: with one seed, the variation between seeds is unknown. Bold" in text


@pytest.mark.parametrize(("config", "shown"), [({}, "SGD"), ({"optimizer.name": "adamw"}, "AdamW")])
def test_the_optimiser_is_named(copy, config, shown):
  text = _visible(_parse(page.render([copy(config=config)])))
  assert re.search(r"Optimiser (\w+), learning rate", text)[1] == shown


def test_seeds_are_one_method_and_each_is_shown(copy):
  first = copy("seed0")
  other = copy("seed1", results={"seed": 1}, config={"seed": 1}, flip="fgsm")
  text = _visible(_parse(page.render([first, other])))
  means = [runs.read(path).per_example["robust/fgsm"].mean() for path in (first, other)]
  assert "Intervals: bootstrap over seeds and images." in text and "Difference to" not in text
  assert f"fgsm {100 * np.mean(means):.1f}" in text
  for seed, mean in enumerate(means):
    row = re.search(rf"lrat_irat_digits seed {seed} ([0-9. ]+)", text)[1].split()
    assert f"{100 * mean:.1f}" in row
  assert text.count("python -m lrat_jax.main --config=") == 2


def test_only_attacks_that_all_runs_share_are_compared(copy):
  first, other = copy("first"), copy("other", config={"global_weights.kind": "mail"})
  results = json.loads((other / "results.json").read_text())
  results["suite"]["cw20"]["epsilon"] = results["config"]["eval"]["suite"]["cw20"]["epsilon"] = "0.3"
  (other / "results.json").write_text(json.dumps(results))
  text = _visible(_parse(page.render([first, other])))
  assert "not the same in all runs are not compared: cw20" in text
  both = [runs.read(path).per_example for path in (first, other)]
  worst = np.mean(both[0]["clean_correct"] & both[0]["robust/pgd20"] & both[0]["robust/fgsm"])
  assert f"lrat_irat_digits {100 * worst:.1f} %" in text


def test_seeds_that_were_evaluated_by_other_suites_are_compared_by_what_they_share(copy):
  first, other = copy("seed0"), copy("seed1", results={"seed": 1}, config={"seed": 1})
  results = json.loads((other / "results.json").read_text())
  for tree in (results["suite"], results["config"]["eval"]["suite"], results["robust"]):
    del tree["cw20"]
  (other / "results.json").write_text(json.dumps(results))
  arrays = {name: array for name, array in np.load(other / "per_example.npz").items() if not name.endswith("/cw20")}
  np.savez(other / "per_example.npz", **arrays)
  text = _visible(_parse(page.render([first, other])))
  assert "not the same in all runs are not compared: cw20" in text
  evaluated = methods.evaluated(methods.group([runs.read(first), runs.read(other)]))
  assert methods.summarise(evaluated)["inconsistency"]["attacks"] == ["fgsm", "pgd20"]


def test_runs_on_other_images_are_not_compared(copy):
  first, other = copy("first"), copy("other", config={"global_weights.kind": "mail"})
  arrays = dict(np.load(other / "per_example.npz"))
  np.savez(other / "per_example.npz", **(arrays | {"indices": arrays["indices"] + 1}))
  with pytest.raises(ConfigError, match="was evaluated on other images"):
    page.render([first, other])
  with pytest.raises(ConfigError, match="is given twice"):
    page.render([first, first])


def test_a_run_that_was_not_evaluated_is_left_out_of_the_comparison(copy):
  first, other = copy("first"), copy("other", config={"global_weights.kind": "mail"})
  (other / "results.json").unlink()
  text = _visible(_parse(page.render([first, other])))
  assert f"{other} has no results for single images, and is left out" in text and "not evaluated" in text
  (first / "results.json").unlink()
  assert "Not evaluated: no run here has results" in _visible(_parse(page.render([first, other])))
