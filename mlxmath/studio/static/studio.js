// What all pages share: copying, and telling a screen reader what happened. Each page has a module of its own beside this.

export function tell(text) {
  document.getElementById("told").textContent = text;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copies]");
  if (!button) return;
  await navigator.clipboard.writeText(document.querySelector(button.dataset.copies).textContent);
  tell("copied");
});
