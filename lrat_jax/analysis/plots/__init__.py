"""Plots of what was recorded and evaluated, drawn from plain data."""

from lrat_jax.analysis.plots.comparison import plot_comparison
from lrat_jax.analysis.plots.evaluation import (
  draw_evaluation,
  plot_accuracies,
  plot_inconsistency,
  plot_least_correlated,
  plot_worst_examples,
)
from lrat_jax.analysis.plots.training import (
  draw_run,
  plot_most_moved,
  plot_training_compared,
  plot_training_curves,
  plot_weight_distributions,
  plot_weights_by_attack,
  plot_weights_by_class,
)

__all__ = [
  "draw_evaluation",
  "draw_run",
  "plot_accuracies",
  "plot_comparison",
  "plot_inconsistency",
  "plot_least_correlated",
  "plot_most_moved",
  "plot_training_compared",
  "plot_training_curves",
  "plot_weight_distributions",
  "plot_weights_by_attack",
  "plot_weights_by_class",
  "plot_worst_examples",
]
