// Keys of the page on which pairs are rated: each button names its own in aria-keyshortcuts. After a rating the next pair gets the focus.
import { tell } from "./studio.js";

const WRITING = "input:not([type=radio], [type=checkbox]), textarea, select";

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.closest(WRITING)) return;
  if (event.target.closest("[type=radio]") && (event.key === "Enter" || event.key.startsWith("Arrow"))) {
    if (event.key === "Enter") event.preventDefault(); // which a browser takes for the form's first button: no verdict
    return;
  }
  if (!document.getElementById("keys")?.checked) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const button = [...document.querySelectorAll("#desk [aria-keyshortcuts]")].find((each) => each.getAttribute("aria-keyshortcuts").split(" ").includes(key));
  if (!button) return;
  event.preventDefault();
  if (!document.querySelector("#desk .htmx-request")) button.click();
});

// The second click of a double one meets the next pair, which nobody has seen yet.
document.addEventListener("click", (event) => {
  if (event.detail > 1 && event.target.closest("#verdicts")) event.preventDefault();
}, true);

let place = document.getElementById("place");
document.addEventListener("htmx:afterSettle", () => {
  const found = document.getElementById("place");
  if (!found || found === place) return;
  place = found;
  found.focus();
  tell(found.dataset.told);
});
