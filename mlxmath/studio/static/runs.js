// The curves of one run, or of several over one another: fetched as they come, drawn by uPlot.

import { tell } from "/static/studio.js";

const PLACES = { step: "optimizer step", tokens: "tokens learned from", seconds: "seconds of work" };
const TICK_MS = 2000;
const DASHES = [[], [9, 4], [2, 3], [9, 3, 2, 3], [16, 4], [5, 2]]; // runs are told apart without colours, too
const OVER = [
  ["Loss", "nats, smoothed", "step", ["smoothed_loss", "loss"]],
  ["Loss, held out", "nats", "validation", ["loss"]],
  ["Right answers, held out", "share", "validation", ["answers", "accuracy"]],
  ["Reward", "", "rollout", ["reward"]],
  ["Length", "tokens a completion", "rollout", ["mean_length"]],
  ["Learning rate", "", "step", ["learning_rate"]],
  ["Speed", "tokens/s", "step", ["tokens_per_second"]],
];
const place = document.getElementById("charts");
const tools = document.getElementById("tools");

/** The points of a run, which grow with each answer of the server. */
class Source {
  constructor(name, address) {
    Object.assign(this, { name, address, mark: "", tables: {}, charts: [], live: true, asked: false });
  }

  async refresh() {
    const answer = await fetch(`${this.address}?since=${encodeURIComponent(this.mark)}`);
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    const found = await answer.json();
    for (const [kind, part] of Object.entries(found.tables)) {
      const table = (this.tables[kind] ??= { over: {}, values: {} });
      for (const name of Object.keys(part.over)) grow(table.over, name, part.from, part.over[name]);
      for (const name of Object.keys(part.values)) grow(table.values, name, part.from, part.values[name]);
    }
    const changed = this.mark !== found.mark;
    Object.assign(this, { mark: found.mark, charts: found.charts, live: found.live, seconds: found.seconds, asked: true });
    return changed;
  }
}

/** Keep the points before `from`, which a column that is new has not, and add those that have come. */
function grow(columns, name, from, more) {
  const kept = (columns[name] ?? []).slice(0, from);
  columns[name] = [...kept, ...new Array(from - kept.length).fill(null), ...more];
}

/** A figure with a title, a canvas and words. */
class Chart {
  constructor(title, unit) {
    this.figure = element("figure", "panel");
    const heading = element("h3", "", title);
    if (unit) heading.append(" ", element("small", "", unit));
    this.canvas = element("div", "chart");
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", `Curve: ${title}`);
    this.words = element("figcaption", "note");
    this.figure.append(heading, this.canvas, this.words);
    place.append(this.figure);
  }

  /** Curves are {label, color, faint, x, y, steps}; the plot is made anew only when something else than points has changed. */
  draw(curves, over, told) {
    this.words.textContent = told;
    const skip = Number(tools.elements.skip.value) || 0;
    const isLog = tools.elements.log.checked && curves.every(({ y }) => y.every((value) => value === null || value > 0));
    const data = uPlot.join(curves.map((curve) => shown(curve, skip)));
    const key = JSON.stringify([over, isLog, curves.map(({ label, color, faint }) => [label, color, faint])]);
    if (key === this.key) {
      this.plot.setData(data);
      return;
    }
    this.plot?.destroy();
    this.key = key;
    this.plot = new uPlot(options(curves, over, isLog, this.canvas.clientWidth), data, this.canvas);
    this.plot.root.setAttribute("aria-hidden", "true");
  }

  resize() {
    this.plot?.setSize({ width: this.canvas.clientWidth, height: 220 });
  }
}

function shown({ x, y, steps }, skip) {
  const kept = x.map((_, i) => i).filter((i) => y[i] !== null && (!skip || steps[i] > skip));
  return [kept.map((i) => x[i]), kept.map((i) => y[i])];
}

function options(curves, over, isLog, width) {
  const axis = { stroke: color("--quiet"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line"), width: 1 } };
  const series = curves.map(({ label, color: name, faint, dash, y }) => ({
    label, dash, stroke: color(name) + (faint ? "66" : ""), width: faint ? 1 : 2, points: { show: y.length < 40 },
  }));
  return {
    width, height: 220, series: [{ label: PLACES[over] }, ...series],
    scales: { x: { time: false }, y: { distr: isLog ? 3 : 1 } },
    axes: [{ ...axis, values: (_, ticks) => ticks.map(short) }, { ...axis, size: 62, values: (_, ticks) => ticks.map(short) }],
    cursor: { drag: { x: true, y: false } },
  };
}

function short(value) {
  if (value === null) return "";
  const size = Math.abs(value);
  for (const [least, unit] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= least) return `${+(value / (unit === "k" ? 1e3 : least)).toPrecision(4)}${unit}`;
  }
  return size && size < 1e-3 ? value.toExponential(1) : String(+value.toPrecision(6));
}

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function element(tag, classes, text = "") {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  made.textContent = text;
  return made;
}

const sources = JSON.parse(place.dataset.runs).map(([name, address]) => new Source(name, address));
const charts = new Map();

function chart(title, unit) {
  if (!charts.has(title)) charts.set(title, new Chart(title, unit));
  return charts.get(title);
}

function drawAll() {
  const over = tools.elements.place.value;
  if (sources.length === 1) drawOne(sources[0], over);
  else drawTogether(over);
}

function drawOne(source, over) {
  for (const { title, unit, curves, told } of source.charts) {
    let next = 0; // a faint curve has the color of the one that follows, which is the same, smoothed
    const drawn = curves.map(({ kind, column, label, faint }) => {
      const { over: x, values } = source.tables[kind];
      return { label, faint, color: `--c${((faint ? next : next++) % 5) + 1}`, x: x[over], y: values[column], steps: x.step };
    });
    chart(title, unit).draw(drawn, over, told);
  }
}

function drawTogether(over) {
  for (const [title, unit, kind, columns] of OVER) {
    const curves = sources.flatMap((source, i) => {
      const table = source.tables[kind];
      const column = table && columns.find((name) => table.values[name]?.some((value) => value !== null));
      return column ? [{ label: source.name, faint: false, dash: DASHES[i], color: `--c${(i + 1) % 6}`, x: table.over[over], y: table.values[column], steps: table.over.step }] : [];
    });
    if (curves.length) chart(title, unit).draw(curves, over, curves.map(({ label, y }) => `${label}: ${short(y.findLast((value) => value !== null))} at last`).join("; "));
  }
}

/** Ask for what is new, for as long as somebody works on a run and looks at the page. */
async function tick() {
  const live = document.getElementById("state")?.dataset.live === "1";
  const due = sources.filter((source) => live || source.live || !source.asked);
  if (!document.hidden && due.length) {
    try {
      const changed = await Promise.all(due.map((source) => source.refresh()));
      if (changed.some(Boolean)) {
        drawAll();
        const count = sources.reduce((sum, source) => sum + (source.tables.step?.over.step.at(-1) ?? 0), 0);
        const seconds = Math.max(...sources.map((source) => source.seconds));
        note(charts.size ? `${count.toLocaleString("en")} steps, read in ${seconds.toFixed(2)} s` : "Nothing has been recorded yet.");
        more("samples");
      }
    } catch (error) {
      note(`Not up to date: ${error.message}`);
    }
    if (document.getElementById("said")?.open) more("log");
  }
  setTimeout(tick, TICK_MS);
}

/** Have htmx fetch a part of the page anew, where the page has it. */
function more(id) {
  const part = document.getElementById(id);
  if (part) htmx.trigger(part, "more");
}

function note(text) {
  document.getElementById("read").textContent = text;
}

function again() {
  for (const each of charts.values()) each.key = "";
  drawAll();
}

/** A screen reader hears when a run is in another state, and nothing of the figures that change all the time. */
let state = word();
function word() {
  return document.querySelector("#state .badge")?.textContent;
}
document.body.addEventListener("htmx:afterSettle", () => {
  if (word() === state) return;
  state = word();
  tell(`The run is now: ${state}`);
  for (const id of ["about", "after", "kept"]) more(id); // what a run has once it has begun, or ended
});

tools.addEventListener("input", drawAll);
tools.addEventListener("submit", (event) => event.preventDefault());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
new ResizeObserver(() => charts.forEach((each) => each.resize())).observe(place);
tick();
