"""Opens a report in headless Chromium and looks for problems that a reader would meet.

  python -m lrat_jax.report runs/lrat_digits_seed0
  python -m benchmarks.report_in_browser runs/lrat_digits_seed0/report.html --shots=/tmp/shots

Checks at widths of 1280 and 360 pixels, with light and dark colours: console messages, requests, charts that are not
drawn, pictures that are not shown or have no alternative text, a page wider than its window, axe's rules (including
text contrast), and the contrast of the charts' text, which axe does not check. Screenshots, and PDFs of the printed
page, go to --shots. Needs benchmarks/requirements.txt and Chromium (--chromium, if it is not on the path).

Exit codes: 0 no problem found, 1 problems found.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS = {"wide": 1280, "narrow": 360}
SCHEMES = ("light", "dark")
# The contrast that WCAG's level AA requires for text of this size.
CONTRAST = 4.5

# The lowest contrast between a chart's text and the page behind it, and that text.
_CHART_TEXT = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const luminance = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255);
    const [r, g, b] = parts.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = luminance(getComputedStyle(document.body).backgroundColor);
  let lowest = [21, ""];
  for (const text of document.querySelectorAll(".plot svg text")) {
    if (!text.textContent.trim()) continue;
    const ink = luminance(getComputedStyle(text).fill);
    const contrast = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (contrast < lowest[0]) lowest = [contrast, text.textContent];
  }
  return lowest;
}"""
_DRAWN = """() => [...document.querySelectorAll("figure.chart")].every((f) => f.querySelector(".plot svg"))"""
_OVERHANG = """() => document.documentElement.scrollWidth - window.innerWidth"""
_UNSEEN = """() => [...document.images].filter((i) => !i.complete || !i.naturalWidth || !i.alt).length"""


def _findings(page: Page, address: str, heard: list[str]) -> Iterator[str]:
  """Opens a report in a page and yields a line for each problem."""
  page.goto(address)
  page.wait_for_function(_DRAWN, timeout=60_000)
  page.wait_for_timeout(300)
  yield from heard
  if (overhang := page.evaluate(_OVERHANG)) > 0:
    yield f"the page is {overhang} pixels wider than its window"
  if unseen := page.evaluate(_UNSEEN):
    yield f"{unseen} pictures do not show or have no text in their place"
  contrast, text = page.evaluate(_CHART_TEXT)
  if contrast < CONTRAST:
    yield f"the charts' text {text!r} has a contrast of {contrast:.2f}"
  for violation in Axe().run(page).response["violations"]:
    where = "; ".join(" ".join(node["target"]) for node in violation["nodes"][:3])
    yield f"axe: {violation['help']} ({len(violation['nodes'])}: {where})"


def look(browser: Browser, path: Path, width: str, scheme: str, shots: Path | None) -> list[str]:
  """The problems of a report at one window width and colour scheme; writes screenshots to `shots`."""
  context = browser.new_context(viewport={"width": WIDTHS[width], "height": 900}, color_scheme=scheme)
  page, heard, address = context.new_page(), [], path.absolute().as_uri()
  page.on("console", lambda message: heard.append(f"console: {message.text}"))
  page.on("pageerror", lambda error: heard.append(f"error: {error}"))
  inside = (address, "data:")
  page.on("request", lambda request: request.url.startswith(inside) or heard.append(f"request: {request.url[:200]}"))
  found = list(_findings(page, address, heard))
  if shots is not None:
    page.screenshot(path=shots / f"{width}_{scheme}.png", full_page=True)
    page.screenshot(path=shots / f"{width}_{scheme}_top.png")
    if width == "wide":
      page.pdf(path=shots / f"print_{scheme}.pdf", format="A4", print_background=True)
  context.close()
  return [f"{width}, {scheme}: {line}" for line in found]


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("report", type=Path)
  parser.add_argument("--shots", type=Path)
  parser.add_argument("--chromium", default=shutil.which("chromium"))
  arguments = parser.parse_args()
  if arguments.shots is not None:
    arguments.shots.mkdir(parents=True, exist_ok=True)
  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
    places = [(width, scheme) for width in WIDTHS for scheme in SCHEMES]
    found = [line for place in places for line in look(browser, arguments.report, *place, arguments.shots)]
    browser.close()
  print("\n".join(found) or f"{arguments.report}: nothing found.")
  return 1 if found else 0


if __name__ == "__main__":
  sys.exit(main())
