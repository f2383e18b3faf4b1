"""Sphinx's configuration. The source is the whole repository, so that links work on GitHub and in the documentation."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

project = "lrat_jax"
root_doc = "docs/index"
include_patterns = ["docs/**", "*.md", "launch/*.md", "results/*.md", "results/**/*.md", "benchmarks/*.md"]
exclude_patterns = ["**/.*", ".*", "build", "runs"]
# The pages that `lrat_jax.compare` writes begin with a heading of level two.
suppress_warnings = ["myst.header"]
extensions = [
  "myst_parser",
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
  "docs.extensions.config_tables",
  "docs.extensions.docstrings",
  "docs.extensions.mathml",
]

# Headings have GitHub's anchors, so that a link to one works in both places.
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]

# Members in the order of the source; only those in __all__, if a module has it.
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
# Returns sections are plain text, in which a colon does not end a type.
napoleon_custom_sections = ["Returns"]

# Pages load nothing from elsewhere: system fonts, formulas as MathML, a local index for the search.
html_theme = "furo"
html_title = "lrat_jax"
html_static_path = ["static"]
html_css_files = ["tables.css"]
templates_path = ["templates"]
html_additional_pages = {"index": "redirect.html"}
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False
