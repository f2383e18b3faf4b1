// Draws the page's charts from the specifications beside them, without compiling code from text.
"use strict";
const options = { renderer: "svg", actions: false, ast: true, tooltip: { theme: "page" } };
for (const figure of document.querySelectorAll("figure.chart")) {
  const spec = JSON.parse(figure.querySelector("script").textContent);
  vegaEmbed(figure.querySelector(".plot"), spec, options);
}
// Paper cannot be unfolded.
window.addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details:not(.raw)")) folded.open = true;
});
