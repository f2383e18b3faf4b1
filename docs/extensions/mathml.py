"""Renders formulas as MathML, which every browser can display without a script or a font."""

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx


def _inline(writer: Any, node: nodes.math) -> None:
  writer.body.append(convert(node.astext()))
  raise nodes.SkipNode


def _displayed(writer: Any, node: nodes.math_block) -> None:
  writer.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>')
  raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
  """Makes "mathml" a choice of html_math_renderer."""
  app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_displayed, None))
  return {"parallel_read_safe": True, "parallel_write_safe": True}
