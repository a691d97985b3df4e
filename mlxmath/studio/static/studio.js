// What all pages share: copying, what a screen reader is told, what scrolls, and that the studio does not answer any more.

const SHOWN_MS = 2000;

export function tell(text) {
  document.getElementById("told").replaceChildren(text); // a new node, so that the same words are heard again
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copies]");
  if (!button) return;
  const source = document.querySelector(button.dataset.copies);
  let said = "Copied";
  try {
    await navigator.clipboard.writeText(source.textContent.trim());
  } catch { // browsers allow it on this machine and over TLS alone
    getSelection().selectAllChildren(source);
    said = "Selected, to copy";
  }
  const label = (button.label ??= [...button.childNodes]);
  button.replaceChildren(said);
  setTimeout(() => button.replaceChildren(...label), SHOWN_MS);
  tell(said);
});

// What counts or says something by itself is told when it changes: a live region that is put anew is passed over.
let heard = new Map();
function hear(isFirst) {
  const now = new Map([...document.querySelectorAll("[data-tells]")].map((each) => [each.id, each.textContent.trim().replace(/\s+/g, " ")]));
  for (const [id, text] of now) if (text && !isFirst && heard.get(id) !== text) tell(text);
  heard = now;
}
document.addEventListener("htmx:afterSettle", () => hear(false));
hear(true);

// A part that is fetched anew stays where somebody has scrolled to; what had the focus and is gone leaves it to the page.
let places = [];
let hadFocus = false;
document.addEventListener("htmx:beforeSwap", ({ detail: { target } }) => {
  hadFocus = target.contains(document.activeElement);
  places = [target, ...target.querySelectorAll("[data-scrolls]")].filter((each) => each.id && (each.scrollTop || each.scrollLeft))
    .map(({ id, scrollTop, scrollLeft }) => ({ id, top: scrollTop, left: scrollLeft }));
});
document.addEventListener("htmx:afterSwap", () => {
  for (const { id, top, left } of places) document.getElementById(id)?.scrollTo({ top, left, behavior: "instant" });
});
document.addEventListener("htmx:afterSettle", () => {
  if (hadFocus && document.activeElement === document.body) document.getElementById("content").focus({ preventScroll: true });
  hadFocus = false;
});

// Nobody looks at a page that is hidden: it does not ask what is new, and the lists do once it is shown again.
document.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden && event.detail.elt.matches("[hx-trigger^=every]")) event.preventDefault();
});

// What did not work stands above the page: a button that asks a server which is gone would else do nothing at all.
const GONE = "The studio does not answer. Start “mlxmath studio” again and open the address that it prints. Runs go on without it, and nothing that was kept is lost.";
const BY_HAND = ["click", "submit", "change", "input"];

document.addEventListener("htmx:sendError", () => complain(GONE));
document.addEventListener("htmx:responseError", ({ detail: { xhr } }) => {
  const page = new DOMParser().parseFromString(xhr.responseText, "text/html");
  complain(page.body.textContent.trim().slice(0, 500) || `The studio answered ${xhr.status}.`);
});
document.addEventListener("htmx:afterRequest", ({ detail: { xhr, requestConfig } }) => {
  const isByHand = BY_HAND.includes(requestConfig.triggeringEvent?.type);
  if (xhr.status && xhr.status < 400 && (isByHand || document.getElementById("lost").textContent === GONE)) complain("");
});

function complain(why) {
  const place = document.getElementById("lost");
  if (place.textContent !== why) place.textContent = why;
}
