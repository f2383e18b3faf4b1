// Opens all folded parts before the page is printed.
"use strict";
window.addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details:not(.raw)")) folded.open = true;
});
