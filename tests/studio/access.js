// What is wrong with a page, in the colours that it has now.
() => {
  const faults = [];
  const all = (selector) => [...document.querySelectorAll(selector)];
  if (document.documentElement.lang !== "en") faults.push("no lang");
  const levels = all("h1, h2, h3, h4, h5, h6").filter((e) => e.checkVisibility()).map((e) => Number(e.tagName[1]));
  if (levels.filter((level) => level === 1).length !== 1 || levels[0] !== 1) faults.push(`headings ${levels}`);
  levels.forEach((level, i) => { if (i && level > levels[i - 1] + 1) faults.push(`headings ${levels}`); });
  const ids = all("[id]").map((e) => e.id);
  for (const id of new Set(ids.filter((id, i) => ids.indexOf(id) !== i))) faults.push(`two #${id}`);
  for (const name of ["for", "aria-labelledby", "aria-describedby", "form"])
    for (const e of all(`[${name}]`))
      for (const id of e.getAttribute(name).split(" ")) if (!ids.includes(id)) faults.push(`no #${id}, which ${name} names`);
  for (const e of all("table")) if (!e.caption && !e.closest("[aria-hidden=true]")) faults.push("a table without a caption");
  for (const e of all("thead th")) if (e.scope !== "col") faults.push(`a heading of no column: ${e.textContent}`);
  for (const e of all("[tabindex]")) if (e.tabIndex > 0) faults.push("an order of its own");

  // text on its ground: WCAG 2.2, 1.4.3
  const numbers = (color) => color.match(/[\d.]+/g).map(Number);
  const luminance = (color) => {
    const linear = color.slice(0, 3).map((c) => (c <= 10 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const found = numbers(getComputedStyle(e).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  for (const e of all("body *")) {
    const isText = [...e.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
    if (!isText || !e.checkVisibility() || e.closest(":disabled, [aria-disabled=true], svg, .hidden-text, noscript")) continue;
    const [low, high] = [numbers(getComputedStyle(e).color), ground(e)].map(luminance).sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 4.5) faults.push(`${contrast.toFixed(2)}: ${e.tagName}.${e.className} ${e.textContent.trim().slice(0, 40)}`);
  }
  return faults;
}
