"use strict";
(() => {
  const problems = [...document.querySelectorAll(".problem")];
  const chips = [...document.querySelectorAll("[data-outcome]")];
  const pair = document.getElementById("pair");
  const category = document.getElementById("category");
  const groups = [...document.querySelectorAll("[data-group]")];
  const search = document.getElementById("search");
  const texts = new Map();
  let chosen = "all";

  const outcomeOf = (problem) => problem.dataset.outcomes.split("|")[pair ? Number(pair.value) : 0];
  const textOf = (problem) => {
    if (!texts.has(problem)) texts.set(problem, problem.textContent.toLowerCase());
    return texts.get(problem);
  };
  const fitsOthers = (problem) =>
    (!category.value || problem.dataset.kinds.split(" ").includes(category.value)) &&
    groups.every((select) => !select.value || problem.dataset[select.dataset.group] === select.value) &&
    search.value.toLowerCase().split(/\s+/).every((word) => !word || textOf(problem).includes(word));

  const apply = () => {
    const counts = {all: 0};
    let shown = 0;
    for (const problem of problems) {
      const outcome = outcomeOf(problem);
      const fits = fitsOthers(problem);
      if (fits) {
        counts.all += 1;
        counts[outcome] = (counts[outcome] || 0) + 1;
      }
      problem.hidden = !fits || (chosen !== "all" && outcome !== chosen);
      shown += problem.hidden ? 0 : 1;
    }
    for (const chip of chips) {
      chip.querySelector("b").textContent = counts[chip.dataset.outcome] || 0;
      chip.setAttribute("aria-pressed", String(chip.dataset.outcome === chosen));
    }
    document.getElementById("count").textContent = `${shown} of ${problems.length} problems`;
    document.getElementById("none").hidden = shown > 0;
  };

  for (const chip of chips) chip.addEventListener("click", () => { chosen = chip.dataset.outcome; apply(); });
  for (const select of [pair, category, ...groups]) if (select) select.addEventListener("change", apply);
  search.addEventListener("input", apply);
  apply();
})();
