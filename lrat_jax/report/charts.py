"""The page's charts as Vega-Lite, by Altair: plain data in, a specification out, colours left to the page's style."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt
import numpy as np

from lrat_jax.analysis import inspection
from lrat_jax.analysis.inspection import Inconsistency, WeightHistory
from lrat_jax.report.methods import MethodRuns
from lrat_jax.report.runs import Run
from lrat_jax.report.tables import Comparison, Row
from lrat_jax.training import metrics

Record = dict[str, Any]

# The page's style says what these are, in light and dark and in print. As many as figures.style.COLOURS.
_SERIES = [f"var(--series-{number})" for number in range(1, 8)]
_INK, _SOFT, _RULE = "var(--ink)", "var(--soft)", "var(--rule)"
_SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"]
_DASHES = [[1, 0], [6, 3], [2, 2], [8, 2, 2, 2]]
_HEIGHT = 220
# Points in a scatter plot: more hide one another, and make the page large.
_MOST_POINTS = 800
_MOST_CLASSES = 30


class Chart(NamedTuple):
  """A chart: what it shows, how to read it, and its Vega-Lite specification."""

  title: str
  note: str
  spec: dict[str, Any]


def _plain(value: Any) -> Any:
  """A number as JSON has it: rounded, and None for NaN."""
  if isinstance(value, np.integer | int):
    return int(value)
  return None if not np.isfinite(value) else float(f"{value:.5g}")


def _finished(title: str, note: str, chart: alt.Chart | alt.LayerChart, height: int = _HEIGHT) -> Chart:
  """With the page's look. The width is the page's to give."""
  quiet = dict(domainColor=_RULE, tickColor=_RULE, gridColor=_RULE, labelColor=_SOFT, titleColor=_SOFT)
  text = dict(titleFontWeight="normal", labelFontSize=12, titleFontSize=12)
  styled = chart.properties(width="container", height=height, description=f"{title}. {note}").configure(
    background="transparent",
    font="system-ui, sans-serif",
    autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
    axis=alt.AxisConfig(**quiet, **text, gridOpacity=0.7),
    legend=alt.LegendConfig(
      orient="top", title=None, labelColor=_INK, labelFontSize=12, labelLimit=300, symbolStrokeWidth=2,
      symbolOpacity=1, columnPadding=16,
    ),
    view=alt.ViewConfig(stroke=None),
  )  # fmt: skip
  return Chart(title, note, styled.to_dict())


def _data(records: Iterable[Record]) -> alt.Data:
  return alt.Data(values=list(records))


def colour(place: int) -> str:
  """The colour of the name at a place, from 0. After the last colour they begin again, with other shapes and dashes."""
  return _SERIES[place % len(_SERIES)]


def _names(names: Sequence[str], column: str, **options: Any) -> alt.Color:
  """A colour for each name, in their order."""
  scale = alt.Scale(domain=list(names), range=[colour(place) for place in range(len(names))])
  return alt.Color(f"{column}:N", scale=scale, **options)


def _legend(names: Sequence[str]) -> dict[str, Any]:
  """None for one name, and fewer columns where names are long."""
  if len(names) < 2:
    return {"legend": None}
  return {"legend": alt.Legend(columns=max(1, 36 // (4 + max(map(len, names)))))}


def _dots(records: list[Record], attacks: list[str], methods: list[str], title: str, note: str, reach) -> Chart:
  """Estimates with their intervals: an attack a row, a method a colour and a shape beside the others."""
  legend = _legend(methods)
  encoding = {
    "y": alt.Y("attack:N", sort=attacks, title=None, axis=alt.Axis(labelLimit=160, grid=False)),
    "color": _names(methods, "method", **legend),
  }
  if len(methods) > 1:
    encoding["yOffset"] = alt.YOffset("method:N", sort=methods)
  tooltip = [alt.Tooltip(f"{name}:N") for name in ("attack", "method", "value", "interval")]
  axis = alt.X("at:Q", title=reach["title"], scale=alt.Scale(**reach["scale"]), axis=alt.Axis(tickCount=8))
  base = alt.Chart(_data(records)).encode(**encoding, tooltip=tooltip)
  bars = base.mark_rule(strokeWidth=2, opacity=0.55).encode(x=alt.X("low:Q", title=reach["title"]), x2="high:Q")
  turned = [_SHAPES[(place + place // len(_SERIES)) % len(_SHAPES)] for place in range(len(methods))]
  shape = alt.Shape("method:N", scale=alt.Scale(domain=methods, range=turned), **legend)
  points = base.mark_point(filled=True, size=70, opacity=1).encode(x=axis, shape=shape)
  layers = [bars, points]
  if "zero" in reach:
    layers = [alt.Chart(_data([{"at": 0}])).mark_rule(color=_INK, strokeWidth=1).encode(x="at:Q"), *layers]
  return _finished(title, note, alt.layer(*layers), height=len(attacks) * max(26, 15 * len(methods) + 10))


def accuracies(rows: Sequence[Row], name: str) -> Chart:
  """A run's robust accuracy under each attack with its interval."""
  records = [
    {
      "attack": row.name, "method": name, "at": _plain(100 * row.accuracy.value), "low": _plain(100 * row.accuracy.low),
      "high": _plain(100 * row.accuracy.high), "value": row.accuracy.text, "interval": row.accuracy.interval,
    }
    for row in rows
  ]  # fmt: skip
  reach = {"title": "accuracy (%)", "scale": {"domain": [0, 100]}}
  note = "Points are accuracies, bars their 95 % intervals."
  return _dots(records, [row.name for row in rows], [name], "Accuracy under each attack", note, reach)


def compared(found: Comparison) -> list[Chart]:
  """Accuracies of all methods, and their differences to the first."""
  records = [
    {
      "attack": column, "method": name, "at": _plain(100 * estimate.value), "low": _plain(100 * estimate.low),
      "high": _plain(100 * estimate.high), "value": estimate.text, "interval": estimate.interval,
    }
    for column in found.columns
    for name, estimate in found.accuracies[column].items()
  ]  # fmt: skip
  differences = [
    {
      "attack": column, "method": name, "at": _plain(100 * estimate.value), "low": _plain(100 * estimate.low),
      "high": _plain(100 * estimate.high), "value": estimate.points, "interval": estimate.points_interval,
    }
    for column in found.columns
    for name, estimate in found.differences[column].items()
  ]  # fmt: skip
  reach = {"title": "accuracy (%)", "scale": {"domain": [0, 100]}}
  note = "Points are accuracies, bars their 95 % intervals."
  charts = [_dots(records, found.columns, found.names, "Accuracy under each attack", note, reach)]
  if differences:
    # The first method keeps its colour and its place, so that a colour is one method in both charts.
    reach = {"title": f"difference to {found.names[0]} (points)", "scale": {"zero": True}, "zero": True}
    note = "Right of the line: more accurate than the first. A bar that crosses the line may be chance."
    charts.append(_dots(differences, found.columns, found.names, "Difference to the first", note, reach))
  return charts


def _epoch_records(rows: Sequence[metrics.Row], fields: Mapping[str, tuple[str, str]], scale: float) -> list[Record]:
  """{label: (split, field)} of metrics.jsonl over the epochs; of training, means."""
  records = []
  for label, (split, field) in fields.items():
    mine = [row for row in rows if row["split"] == split]
    for epoch in sorted({row["epoch"] for row in mine}):
      if split == "train":
        value = metrics.epoch_means(rows, epoch, [field])[field]
      else:
        value = next(row[field] for row in mine if row["epoch"] == epoch)
      records.append({"epoch": epoch + 1, "value": _plain(scale * value), "series": label})
  return records


def _lines(records: list[Record], series: Sequence[str], percent: bool, **legend: Any) -> alt.Chart:
  """Records over the epochs, a colour for each of the series, a line for each "run" where records have one."""
  scale = alt.Scale(domain=[0, 100]) if percent else alt.Scale(zero=False)
  what = "accuracy (%)" if percent else "loss (nats)"
  dashes = [_DASHES[place // len(_SERIES) % len(_DASHES)] for place in range(len(series))]
  axis = alt.Axis(tickMinStep=1, grid=False, format="d")
  chart = alt.Chart(_data(records)).mark_line(strokeWidth=2, point=len({r["epoch"] for r in records}) < 3)
  tooltip = [alt.Tooltip("series:N"), alt.Tooltip("epoch:Q"), alt.Tooltip("value:Q", title=what, format=".4~g")]
  return chart.encode(
    x=alt.X("epoch:Q", axis=axis, title="epoch", scale=alt.Scale(zero=False)),
    y=alt.Y("value:Q", title=what, scale=scale),
    color=_names(series, "series", **legend),
    strokeDash=alt.StrokeDash("series:N", scale=alt.Scale(domain=list(series), range=dashes), **legend),
    detail=[alt.Detail("run:N")] if any("run" in record for record in records) else [],
    tooltip=tooltip,
  )


def _chosen(run: Run) -> int:
  """The epoch whose weights were evaluated, from 1; the first of the best where nothing was evaluated."""
  rows = [row for row in run.rows if row["split"] == "validation"]
  step = (run.results or {}).get("step")
  return 1 + next((row for row in rows if row["step"] == step), max(rows, key=lambda row: row["robust"]))["epoch"]


def training(run: Run) -> list[Chart]:
  """One run's accuracy in validation and in training, and its loss, over the epochs."""
  panels = {
    "Validation accuracy": ({"clean": ("validation", "clean"), "robust": ("validation", "robust")}, 100),
    "Training accuracy": (
      {"natural": ("train", "natural_accuracy"), "adversarial": ("train", "adversarial_accuracy")},
      100,
    ),
    "Training loss": ({"loss": ("train", "loss")}, 1),
  }
  charts = []
  for title, (fields, scale) in panels.items():
    records = _epoch_records(run.rows, fields, scale)
    if records:
      chart = _lines(records, list(fields), scale == 100, **_legend(list(fields)))
      note = ""
      if title.startswith("Validation"):
        chosen = _chosen(run)
        best = [record for record in records if record["series"] == "robust" and record["epoch"] == chosen]
        mark = alt.Chart(_data(best)).mark_point(filled=True, size=80, opacity=1)
        chart += mark.encode(x="epoch:Q", y="value:Q", color=_names(list(fields), "series", **_legend(list(fields))))
        note = f"The dot: epoch {chosen}, whose weights are kept as the best."
      charts.append(_finished(title, note, chart))
  return charts


def training_compared(methods: Sequence[MethodRuns]) -> list[Chart]:
  """All runs' accuracy in validation and loss in training: a line for each run in its method's colour; no legend."""
  panels = {
    "Robust accuracy in validation": ("validation", "robust", 100),
    "Clean accuracy in validation": ("validation", "clean", 100),
    "Training loss": ("train", "loss", 1),
  }
  charts = []
  for title, (split, field, scale) in panels.items():
    records = [
      record | {"run": str(run.seed)}
      for method in methods
      for run in method.runs
      for record in _epoch_records(run.rows, {method.name: (split, field)}, scale)
    ]
    if records:
      chart = _lines(records, [method.name for method in methods], scale == 100, legend=None)
      charts.append(_finished(title, "", chart))
  return charts


def _bands(history: WeightHistory, fields: Mapping[str, str], title: str, note: str, colours: list[str]) -> Chart:
  """Quantiles of {label: field of inspection.values} over the epochs: lines, and bands of the middle 50 % and 90 %."""
  records = []
  for label, field in fields.items():
    for epoch, row in zip(history.epochs, inspection.quantiles(inspection.values(history, field)), strict=True):
      names = ("low", "lower", "median", "upper", "high")
      records.append({"epoch": int(epoch) + 1, "of": label} | dict(zip(names, map(_plain, row), strict=True)))
  scale = alt.Scale(domain=list(fields), range=colours[: len(fields)])
  axis = alt.Axis(tickMinStep=1, grid=False, format="d")
  base = alt.Chart(_data(records)).encode(
    x=alt.X("epoch:Q", title="epoch", axis=axis, scale=alt.Scale(zero=False)),
    color=alt.Color("of:N", scale=scale, **_legend(list(fields))),
    tooltip=["of:N", "epoch:Q", *(alt.Tooltip(f"{name}:Q", format=".3~g") for name in ("low", "median", "high"))],
  )
  value = alt.Y("median:Q", title=None)
  layers = [
    base.mark_area(opacity=0.12).encode(y=alt.Y("low:Q", title=None), y2="high:Q"),
    base.mark_area(opacity=0.22).encode(y=alt.Y("lower:Q", title=None), y2="upper:Q"),
    base.mark_line(strokeWidth=2, point=len(history.epochs) < 3).encode(y=value),
  ]
  return _finished(title, note, alt.layer(*layers))


def weights(history: WeightHistory) -> list[Chart]:
  """Local weights and global weights, where images differ in them, and vulnerabilities, over the epochs."""
  variants = [str(variant) for variant in history.variants]
  local = {"natural": "natural"} | {variant: f"adversarial/{variant}" for variant in variants}
  vulnerable = {variant: f"vulnerability/{variant}" for variant in variants}
  colours = [_SERIES[place % len(_SERIES)] for place in range(len(local))]
  differ = lambda field: inspection.first_difference(history, field) is not None
  # A variant has one colour in both: the first is the natural image's.
  charts = [_bands(history, vulnerable, "Vulnerability in training", "Above 0: fooled.", colours[1:])]
  if differ("across"):
    charts.insert(0, _bands(history, {"pair": "across"}, "Global weights", "Of the pair as a whole.", _SERIES))
  if any(map(differ, local.values())):
    charts.insert(0, _bands(history, local, "Local weights", "Inside the pair: the image and its variants.", colours))
  return charts


def by_class(history: WeightHistory, field: str, what: str) -> Chart | None:
  """How a weight is distributed in each class in the last epoch; None with more classes than can be read."""
  found = inspection.by_class(history, field)
  if len(found.groups) > _MOST_CLASSES:
    return None
  names = ("low", "lower", "median", "upper", "high")
  records = [
    {"class": str(group)} | dict(zip(names, map(_plain, row), strict=True))
    for group, row in zip(found.groups, found.quantiles[-1], strict=True)
  ]
  tooltip = ["class:N", *(alt.Tooltip(f"{name}:Q", format=".3~g") for name in names)]
  classes = [str(group) for group in found.groups]
  base = alt.Chart(_data(records)).encode(y=alt.Y("class:N", sort=classes, title="class"), tooltip=tooltip)
  layers = [
    base.mark_rule(strokeWidth=2, opacity=0.4, color=_SERIES[0]).encode(x=alt.X("low:Q", title=what), x2="high:Q"),
    base.mark_rule(strokeWidth=7, opacity=0.5, color=_SERIES[0]).encode(x="lower:Q", x2="upper:Q"),
    base.mark_point(filled=True, size=60, opacity=1, color=_SERIES[0]).encode(x="median:Q"),
  ]
  note = f"Epoch {history.epochs[-1] + 1}. Dot: median; bars: the middle 50 % and 90 %."
  return _finished(f"{what[:1].upper()}{what[1:]} by class", note, alt.layer(*layers), height=22 * len(classes))


def least_correlated(found: Inconsistency, per_example: Mapping[str, np.ndarray]) -> Chart | None:
  """The vulnerabilities under the two attacks that agree least, an image a point; None where no two can be compared."""
  pair = inspection.least_correlated(found)
  if pair is None:
    return None
  across, upward = (found.names[place] for place in pair)
  right = np.asarray(per_example["clean_correct"], bool)
  scores = inspection.vulnerabilities(per_example, [across, upward])[right]
  shown = scores[:: -(-len(scores) // _MOST_POINTS)]
  records = [{"across": _plain(a), "upward": _plain(b)} for a, b in shown.tolist()]
  whole, few = alt.Scale(domain=[-1, 1]), alt.Axis(tickCount=5)
  points = alt.Chart(_data(records)).mark_circle(size=22, opacity=0.45, color=_SERIES[0])
  zero = alt.Chart(_data([{"at": 0}]))
  layers = [
    zero.mark_rule(color=_SOFT).encode(x="at:Q"),
    zero.mark_rule(color=_SOFT).encode(y="at:Q"),
    points.encode(
      x=alt.X("across:Q", title=f"under {across}", scale=whole, axis=few),
      y=alt.Y("upward:Q", title=f"under {upward}", scale=whole, axis=few),
      tooltip=[alt.Tooltip("across:Q", title=across), alt.Tooltip("upward:Q", title=upward)],
    ),
  ]
  note = f"{len(shown):,} of {len(scores):,} images that are right when clean, a point each. Above 0: fooled."
  return _finished("Vulnerability under the two attacks that agree least", note, alt.layer(*layers), height=380)
