// What all pages share: copying, and telling a screen reader what happened. Each page has a module of its own beside this.

export function tell(text) {
  document.getElementById("told").textContent = text;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copies]");
  if (!button) return;
  const source = document.querySelector(button.dataset.copies);
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(source.textContent);
  } else { // which browsers keep from pages of another machine (--host)
    getSelection().selectAllChildren(source);
    document.execCommand("copy");
  }
  tell("copied");
});

// What an open page asks for may not come: the studio has ended, or another one has its place and another token.
const lost = document.getElementById("lost");

function miss(text, isGone) {
  lost.dataset.gone = isGone;
  lost.textContent = text;
  lost.hidden = false;
}

document.addEventListener("htmx:sendError", () => {
  miss("The studio does not answer; is it still running? What it has started goes on.", true);
});
document.addEventListener("htmx:responseError", (event) => {
  const answer = new DOMParser().parseFromString(event.detail.xhr.responseText, "text/html");
  miss(answer.body.textContent.trim().slice(0, 500) || `The studio answered ${event.detail.xhr.status}.`, false);
});
document.addEventListener("htmx:afterRequest", (event) => {
  if (event.detail.successful && lost.dataset.gone === "true") lost.hidden = true;
});
