// Paper cannot be unfolded.
"use strict";
window.addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details:not(.raw)")) folded.open = true;
});
