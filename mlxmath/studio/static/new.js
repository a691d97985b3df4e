// The form of a new run: what htmx cannot do. Events of the document, so that a form that was put anew needs nothing.
import { tell } from "./studio.js";

const SETTLED_MS = 600;
let waiting;

function begin() {
  const form = document.getElementById("new");
  if (!form || form.elements.js) return;
  const mark = Object.assign(document.createElement("input"), { type: "hidden", name: "js", value: "1" });
  form.append(mark);
  const finder = document.getElementById("finder");
  if (finder) finder.hidden = false;
}

// Another command or recipe has other fields: the page is made anew, with what was filled in.
document.addEventListener("change", (event) => {
  if (!event.target.matches("[data-reloads]")) return;
  event.stopPropagation();
  const form = event.target.form;
  form.requestSubmit(form.querySelector("#check"));
}, true);

// What is here fills the fields, which are what counts.
document.addEventListener("change", (event) => {
  if (!event.target.matches("[data-fills]") || !event.target.value) return;
  const { form } = event.target;
  for (const [name, value] of new URLSearchParams(event.target.value)) form.elements[name].value = value;
  event.target.value = "";
}, true);

// Numbers are looked at while they are typed; names only when they are whole.
document.addEventListener("input", (event) => {
  if (event.target.matches("[data-finds]")) return find(event.target.value);
  if (!event.target.matches("#new input[inputmode]")) return;
  clearTimeout(waiting);
  waiting = setTimeout(() => event.target.form?.dispatchEvent(new Event("settled")), SETTLED_MS);
});

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-finds]")) event.stopPropagation();
}, true);

// Enter looks at what was filled in; it does not send the form.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !event.target.matches("#new input")) return;
  event.preventDefault();
  clearTimeout(waiting);
  if (!event.target.matches("[data-finds]")) event.target.form.dispatchEvent(new Event("settled"));
});

function find(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const group of document.querySelectorAll("#new .group")) {
    let inside = 0;
    for (const field of group.querySelectorAll(".field")) {
      const found = words.every((word) => field.dataset.find.toLowerCase().includes(word));
      field.hidden = !found;
      inside += found;
    }
    group.hidden = inside === 0;
    if (words.length) group.open = inside > 0;
    count += inside;
  }
  if (words.length) tell(`${count} settings found`);
}

document.addEventListener("htmx:afterSwap", (event) => {
  begin();
  const from = event.detail.requestConfig?.elt?.dataset?.leadsTo;
  if (from) document.getElementById(from)?.focus();
});

document.addEventListener("htmx:afterSettle", () => {
  for (const field of document.querySelectorAll("#new .field")) {
    const control = field.querySelector("input, select");
    if (field.querySelector(".wrong p:not(.warn, .buttons)")) control.setAttribute("aria-invalid", "true");
    else control.removeAttribute("aria-invalid");
  }
});

// A plan that comes is told; where it stands is put anew each time, which screen readers pass over.
let told;
document.addEventListener("htmx:afterSettle", () => {
  const plan = document.querySelector("#plan .badge")?.parentElement.textContent.trim();
  if (plan && plan !== told) tell(`Plan: ${plan}`);
  told = plan ?? told;
});

// Start while something is wrong leads to it.
document.addEventListener("click", (event) => {
  if (!event.target.closest("#start-button[aria-disabled=true]")) return;
  event.preventDefault();
  const wrong = document.querySelector("#new .field:has(.wrong p:not(.warn, .buttons))");
  wrong?.closest("details")?.setAttribute("open", "");
  wrong?.querySelector("input, select").focus();
  tell(wrong?.querySelector(".wrong").textContent.trim() ?? document.querySelector("#outcome .trouble")?.textContent.trim() ?? "");
});

begin();
