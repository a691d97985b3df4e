// Asks all chosen models one question. Each answer is a stream of JSON lines: shown as text while it comes, drawn by the
// server when it is whole. The questions of this visit stay on the page, the newest first.

import { tell } from "./studio.js";

const form = document.getElementById("ask");
const running = new Set();

form?.addEventListener("submit", (event) => {
  event.preventDefault();
  ask(new FormData(form));
});
form?.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
document.getElementById("end")?.addEventListener("click", async () => {
  for (const one of running) one.abort();
  const end = document.getElementById("end");
  try {
    const answer = await fetch("/compare/end", { method: "POST" });
    end.textContent = answer.ok ? "Unloaded" : "Not unloaded";
  } catch {
    end.textContent = "Not unloaded: the studio does not answer";
  }
  tell(end.textContent);
  setTimeout(() => { end.textContent = "Unload the model"; }, 3000);
});

function ask(data) {
  const refused = document.getElementById("refused");
  const chosen = data.getAll("adapter");
  refused.hidden = chosen.length > 0;
  refused.textContent = chosen.length ? "" : "Choose who is to answer.";
  if (!chosen.length) return;
  for (const one of running) one.abort();
  const asked = clone("asked-template");
  asked.querySelector(".question").textContent = data.get("question");
  const gold = asked.querySelector(".gold");
  gold.hidden = !data.get("gold").trim();
  gold.querySelector("b").textContent = data.get("gold");
  for (const who of chosen) {
    const answer = clone("answer-template");
    answer.querySelector(".who").textContent = who || "base";
    asked.querySelector(".answers").append(answer);
    stream(answer, data, who);
  }
  document.getElementById("asked").prepend(asked);
  asked.scrollIntoView({ block: "nearest" });
}

async function stream(answer, data, who) {
  const controller = new AbortController();
  running.add(controller);
  const stop = answer.querySelector(".stop");
  stop.addEventListener("click", () => controller.abort());
  try {
    const body = new URLSearchParams(data);
    body.append("who", who);
    const response = await fetch("/compare/answer", { method: "POST", body, signal: controller.signal });
    if (!response.ok) throw new Error((await response.text()).slice(0, 500));
    await eachLine(response.body, (line) => show(answer, JSON.parse(line), who));
    if (!answer.dataset.ended) fail(answer, "the studio has ended before the answer was whole; start it again");
  } catch (error) {
    if (controller.signal.aborted) state(answer, "stopped", "warn");
    else fail(answer, error instanceof TypeError ? "the studio does not answer; is it still running?" : error.message);
  } finally {
    running.delete(controller);
    const hadFocus = document.activeElement === stop;
    stop.remove();
    if (hadFocus) answer.querySelector(":scope > .text").focus();
  }
}

function show(answer, told, who) {
  const text = answer.querySelector(":scope > .text");
  if ("loading" in told) state(answer, `loading the model… ${told.loading} s`, "live");
  if ("prompt" in told) {
    const given = answer.querySelector(".given");
    given.hidden = false;
    given.querySelector("summary").textContent = `the prompt (${told.tokens} tokens)`;
    given.querySelector("pre").textContent = told.prompt;
    const asked = answer.closest(".asked"); // both are made by the studio, which escapes them, and has drawn formulas
    asked.querySelector(".question").innerHTML = told.question;
    asked.querySelector(".gold b").innerHTML = told.gold;
    state(answer, "reads, or waits for its turn", "live");
  }
  if ("thought" in told) {
    answer.querySelector(".thought").hidden = false;
    answer.querySelector(".thought .text").append(told.thought);
    state(answer, "thinks", "live");
  }
  if ("text" in told) {
    text.append(told.text);
    state(answer, "answers", "live");
  }
  if ("done" in told) {
    answer.dataset.ended = "done";
    const drawn = document.createElement("div");
    drawn.className = "text-part";
    drawn.innerHTML = told.done; // made by the studio's templates, which escape what the model wrote
    text.replaceWith(...drawn.childNodes);
    state(answer, "done", "");
    tell(`${who || "base"}: ${told.verdict || "done"}`);
  }
  if ("error" in told) fail(answer, told.error);
}

function state(answer, words, kind) {
  const badge = answer.querySelector(".state");
  if (badge.textContent === words) return;
  badge.textContent = words;
  badge.className = `badge state ${kind}`;
}

function fail(answer, why) {
  answer.dataset.ended = "failed";
  state(answer, "not answered", "bad");
  const said = document.createElement("p");
  said.className = "trouble";
  said.setAttribute("role", "alert");
  said.textContent = why;
  answer.append(said);
}

async function eachLine(body, take) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (waiting + value).split("\n");
    waiting = lines.pop();
    for (const line of lines) take(line);
  }
}

function clone(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}
