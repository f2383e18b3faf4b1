"""The documentation: it builds without warnings and without a network, and what it shows agrees with the code.

The build checks links inside the repository. Links to the web are not checked: no test here may need a network.
"""

import importlib
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import torch
from ml_collections import ConfigDict
from sybil import Document
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from docs.extensions import config_fields, docstrings
from lrat_jax import attacks, cli, main
from lrat_jax.config import attack_entries, command_line, suites, train_attacks, validate
from lrat_jax.config import default as config_lib
from tests import torch_definitions
from tests.helpers import SMALL

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PAGES = sorted(
  [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "launch/README.md", *ROOT.glob("*s/README.md")]
)
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]


class _Addresses(HTMLParser):
  """`fetched`: the addresses that a browser fetches to show a page; `tags`: the names of its tags."""

  def __init__(self, text: str):
    super().__init__()
    self.fetched, self.tags = [], []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    self.tags.append(tag)
    if tag != "a":
      self.fetched += [attributes[key] for key in ("src", "href") if attributes.get(key)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  """The folder of the site, built with the command in CONTRIBUTING.md but elsewhere; every warning is an error."""
  folder = tmp_path_factory.mktemp("site")
  (line,) = re.findall(r"^python (-m sphinx .*?) build/docs", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
  command = [sys.executable, *line.split(), str(folder), "-W", "--keep-going", "-q"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return folder


def test_every_page_is_built_and_fetches_nothing_from_elsewhere(site):
  for name in NAMES:
    page = (site / name).with_suffix(".html")
    fetched = _Addresses(page.read_text()).fetched
    assert fetched and not [address for address in fetched if re.match("https?:|//", address)], page
    for address in fetched:
      if not address.startswith(("#", "data:")) and ".html" not in address:
        assert (page.parent / address.partition("?")[0]).exists(), f"{page}: {address}"
  styles = "".join(path.read_text() for path in site.rglob("*.css"))
  assert not re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", styles)


def test_formulas_are_drawn_and_none_is_left_as_text(site):
  page = (site / "docs/method.html").read_text()
  article = page.partition("<article")[2].partition("</article>")[0]
  assert _Addresses(article).tags.count("math") > 30
  assert not re.search(
    r"\$|\\(?:omega|frac|text|sum)", re.sub(r"<annotation.*?</annotation>", "", article, flags=re.DOTALL)
  )


def test_the_pages_of_the_api_hold_the_public_names(site):
  page = (site / "docs/api/attacks.html").read_text()
  for name in attacks.__all__:
    assert re.search(rf'id="(?:module-)?lrat_jax\.attacks\.{name}"', page), name
  assert "Alias for field number" not in page and "partial application" not in page


@pytest.mark.parametrize("preset", sorted(config_lib.PRESETS))
def test_every_field_of_a_configuration_is_explained(preset):
  explained = {field.path: field for field in config_fields.fields()}
  config = config_lib.default("any", preset)
  for path, value in config_fields.leaves(config):
    assert explained[path].explanation, f"lrat_jax/config/default.py has no comment beside {path}"
    if not isinstance(value, ConfigDict) and path != "name":
      assert explained[path].defaults[preset] == value


def test_every_field_of_an_attack_in_a_configuration_is_explained():
  chosen = ",".join(train_attacks.by_name(config_lib.PRESETS["digits"]["budget"]))
  for suite in suites.SUITES:
    config = config_lib.default("any", f"digits,{chosen},suite={suite}")
    for entry in (*config.train_attacks.values(), config.validation_attack, *config.eval.suite.values()):
      arguments = config_fields.attack_arguments(entry.name)
      for field in set(entry) - {"name", attack_entries.SURROGATE}:
        assert arguments[field][1], f"the docstring of {entry.name} does not explain {field}"


def test_an_explanation_is_the_comment_beside_a_field_or_above_it_or_at_its_groups_head():
  source = """
def _data(source):
  return dict(
    source=source,  # where from
    size=1,
  )

def default(method):
  return ConfigDict(
    dict(
      # above
      seed=0,
      data=preset["data"],
      group=dict(a=1, b=2),  # of both
      other=dict(  # the head
        c=3,
        d=4,  # its own
      ),
    )
  )
"""
  assert config_fields.explanations(source) == {
    "seed": "above",
    "data.source": "where from",
    "group": "of both",
    "group.a": "of both",
    "group.b": "of both",
    "other": "the head",
    "other.c": "the head",
    "other.d": "its own",
  }


def test_a_docstring_keeps_its_characters():
  several = "Attributes:\n  a, b: both\n    of them\n  c: one"
  assert docstrings.as_rst(several) == "Attributes:\n  a: both\n    of them\n  b: both\n    of them\n  c: one"
  text = "Of |w| and x_ and `f(a, *b)`:\n- one\n- two\n\n  y = a | b\n\nArgs:\n  x: first\n\n  y: second"
  assert docstrings.as_rst(text) == (
    "Of \\|w\\| and x\\_ and ``f(a, *b)``:\n\n- one\n- two\n\n::\n\n  y = a | b\n\nArgs:\n  x: first\n\n  y: second"
  )


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
  """A folder with `runs/lrat_digits_seed0`, a very short run, and a PyTorch network in weights.pt."""
  folder = tmp_path_factory.mktemp("shown")
  torch.save(torch_definitions.cnn(width=4, channels=1, size=8).state_dict(), folder / "weights.pt")
  small = {**SMALL, "data.train_size": 64, "local_weights.begin_fraction": 0.0, "train.log_every_steps": 1}
  arguments = [f"--config.{name}={value}" for name, value in small.items()]
  workdir = folder / "runs/lrat_digits_seed0"
  assert main.main([f"--config={ROOT}/configs/lrat.py", f"--workdir={workdir}", "--mode=train", *arguments]) == 0
  return folder


def _names(linear_weights):
  """The names that the pages use without defining them: a model, and some images with labels."""

  class Model:
    apply = staticmethod(lambda variables, images: images.reshape(len(images), -1) @ variables)

  images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1))
  return {
    "jax": jax,
    "attacks": attacks,
    "model": Model,
    "variables": jnp.asarray(linear_weights),
    "logits_fn": lambda images: images.reshape(len(images), -1) @ jnp.asarray(linear_weights),
    "images": images,
    "labels": jnp.arange(4),
    "example_indices": jnp.arange(4),
  }


def _blocks(path, parser):
  return list(Document.parse(str(path), parser).examples())


PYTHON = [path for path in PAGES if _blocks(path, PythonCodeBlockParser())]


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_runs_as_it_is_shown(path, workdirs, linear_weights, monkeypatch):
  monkeypatch.chdir(workdirs)
  monkeypatch.setitem(suites.SUITES, "unforeseen", suites.SUITES["pgd"])  # otherwise it compiles for minutes
  document = Document.parse(str(path), PythonCodeBlockParser())
  document.namespace.update(_names(linear_weights))
  for example in document.examples():
    example.evaluate()


def _commands(text):
  """The commands of lrat_jax in a shell code block, as (module, arguments)."""
  for line in text.replace("\\\n", " ").splitlines():
    words = shlex.split(line, comments=True)
    starts = [n for n in range(len(words) - 2) if words[n : n + 2] == ["python", "-m"]]
    commands = [(words[start + 2], words[start + 3 :]) for start in starts]
    if words[:1] == ["lrat-jax"]:
      module, options = cli.COMMANDS[words[1]]
      commands.append((module.removesuffix(".__main__"), [*options, *words[2:]]))
    for module, rest in commands:
      end = next((n for n, word in enumerate(rest) if word in ("&&", "|", ";", "&")), len(rest))
      if module.startswith("lrat_jax."):
        yield module, rest[:end]


def _all_commands():
  for path, name in zip(PAGES, NAMES, strict=True):
    for example in _blocks(path, CodeBlockParser(language="sh", evaluator=PythonEvaluator())):
      yield from ((name, *command) for command in _commands(str(example.parsed)))


COMMANDS = list(_all_commands())


def _parse(module, arguments):
  """Parses with the program's own parser: that of `main` is in `command_line`, that of a package in its `__main__`."""
  if module == "lrat_jax.main":
    return command_line.parse(arguments)
  found = importlib.import_module(module)
  found = importlib.import_module(f"{module}.__main__") if hasattr(found, "__path__") else found
  return found.parse(arguments)


@pytest.mark.parametrize(
  ("page", "module", "arguments"), COMMANDS, ids=lambda part: "" if isinstance(part, list) else part
)
def test_a_command_is_understood(page, module, arguments, monkeypatch):
  monkeypatch.chdir(ROOT)
  options = _parse(module, arguments)
  if module == "lrat_jax.main":
    validate.check(options.config)


def _inline(path):
  """The inline code in a page's text, without its code blocks."""
  text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
  return re.findall(r"`([^`\n]+)`", text)


OPTIONS = sorted(
  {
    word
    for path in PAGES
    for code in _inline(path)
    for word in code.split()
    if re.match(r"--config\.[a-z][\w.]*=", word)
  }
)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_in_the_text_names_a_field(option, monkeypatch):
  monkeypatch.chdir(ROOT)
  command_line.parse(["--config=configs/lrat.py:digits,pgd,cw,pgd_l2,suite=full", option])


@pytest.mark.parametrize("name", NAMES)
def test_a_path_in_the_text_exists(name):
  folders = "lrat_jax|configs|launch|examples|tests|benchmarks|results|notebooks|docs"
  for code in _inline(ROOT / name):
    if re.fullmatch(rf"(?:{folders})/[\w/.]*", code):
      assert (ROOT / code).exists(), code


def test_the_pages_are_read_as_they_are_meant():
  """Fails if the parsers find too little, because the tests above would then pass without testing anything."""
  assert len(OPTIONS) > 5 and len(COMMANDS) > 25 and len(PYTHON) > 3
