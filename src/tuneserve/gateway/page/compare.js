// The same prompt to two or three models: their answers side by side, and how surprising each finds each token.

import { byId, make } from "./dom.js";
import { answerTokens, letters, meanSurprise, percent, scoredAnswer, surpriseClass } from "./scores.js";

const MOST = 3;
const OWN = "";
const SAMPLE = "Order K-20418 arrived broken, I want to send it back. Please call me: 0171 5550100";
const decoder = new TextDecoder();
let columns = [];
let running = null;

export function startCompare(models) {
  byId("compare-models").append(
    ...models.map((model, index) => {
      const box = make("input", { type: "checkbox", value: model.id, checked: index < MOST, onchange: limit });
      return make("label", { className: "check" }, box, model.id);
    }),
  );
  byId("compare-prompt").value = SAMPLE;
  byId("compare-form").addEventListener("submit", (event) => {
    event.preventDefault();
    compare();
  });
  byId("compare-prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      byId("compare-form").requestSubmit();
    }
  });
  byId("compare-halt").addEventListener("click", () => running?.abort());
  byId("scorer").addEventListener("change", paint);
  limit();
}

const boxes = () => [...byId("compare-models").querySelectorAll("input")];

function limit() {
  const checked = boxes().filter((box) => box.checked).length;
  for (const box of boxes()) box.disabled = !box.checked && checked >= MOST;
  byId("compare-run").disabled = checked < 2 || running !== null;
}

async function compare() {
  const names = boxes().filter((box) => box.checked).map((box) => box.value);
  const prompt = byId("compare-prompt").value.trim();
  if (!prompt || running || names.length < 2) return;
  const system = byId("compare-system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: prompt }];
  columns = names.map(makeColumn);
  byId("columns").replaceChildren(...columns.map((column) => column.element));
  byId("verdict").replaceChildren();
  byId("token-detail").textContent = "";
  byId("compare-legend").hidden = false;
  const options = [[OWN, "the one that wrote it"], ...names.map((name) => [name, name])];
  byId("scorer").replaceChildren(...options.map(([value, text]) => make("option", { value, textContent: text })));
  setRunning(new AbortController());
  const { signal } = running;
  await Promise.all(columns.map((column) => write(column, messages, signal)));
  if (!signal.aborted) await Promise.all(columns.map((column) => score(column, messages, signal)));
  setRunning(null);
  paint();
  if (!signal.aborted) showVerdict();
}

function setRunning(controller) {
  running = controller;
  byId("compare-halt").hidden = controller === null;
  byId("columns").setAttribute("aria-busy", String(controller !== null));
  limit();
}

function makeColumn(name) {
  const text = make("div", { className: "tokens", tabIndex: 0, role: "group", "aria-label": `Answer of ${name}; the arrow keys go from token to token` });
  const note = make("p", { className: "soft" });
  const column = { name, text, note, at: -1, scores: new Map(), element: make("section", { className: "column" }, make("h2", { textContent: name }), text, note) };
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    point(column, Math.max(0, Math.min(text.children.length - 1, column.at + step)));
  });
  text.addEventListener("click", (event) => point(column, [...text.children].indexOf(event.target)));
  return column;
}

const answerOf = (column) => textOf(column.scores.get(column.name) ?? []);

// Tokens may end within a character, so the text is made of all their bytes.
function textOf(tokens) {
  return decoder.decode(new Uint8Array(tokens.flatMap((token) => token.bytes ?? [])));
}

async function write(column, messages, signal) {
  const body = {
    model: column.name, messages, temperature: byId("compare-temperature").valueAsNumber || 0,
    max_completion_tokens: byId("compare-tokens").valueAsNumber || 120,
  };
  try {
    for await (const tokens of answerTokens(body, signal)) {
      column.scores.set(column.name, tokens);
      paintColumn(column, OWN);
    }
  } catch (error) {
    column.note.textContent = error.name === "AbortError" ? "Stopped." : error.message;
  }
}

async function score(column, messages, signal) {
  const answer = answerOf(column);
  const others = columns.filter((other) => other !== column && answer);
  const failures = [];
  for (const other of others) {
    try {
      column.scores.set(other.name, await scoredAnswer(other.name, messages, answer, signal));
    } catch (error) {
      if (error.name !== "AbortError") failures.push(`${other.name} cannot say: ${error.message}`);
    }
  }
  const tokens = column.scores.get(column.name)?.length ?? 0;
  column.note.textContent ||= [`${tokens} tokens`, ...failures].join(" · ");
}

function paint() {
  for (const column of columns) paintColumn(column, byId("scorer").value);
}

const shown = (column, scorer) => column.scores.get(scorer || column.name);

function paintColumn(column, scorer) {
  const tokens = shown(column, scorer);
  column.at = -1;
  if (!tokens) {
    column.text.replaceChildren(make("span", { textContent: answerOf(column) }));
    return;
  }
  column.text.replaceChildren(
    ...tokens.map((token) => make("span", { className: `token ${surpriseClass(token.logprob)}`, textContent: token.text, title: percent(token.logprob) })),
  );
  const place = parting(column);
  if (place !== null) tokenAt(column, tokens, place)?.classList.add("part");
}

function point(column, index) {
  const tokens = shown(column, byId("scorer").value);
  if (index < 0 || !tokens?.[index]) return;
  column.text.children[column.at]?.classList.remove("pointed");
  column.at = index;
  column.text.children[index].classList.add("pointed");
  const { text, logprob, top } = tokens[index];
  const scorer = byId("scorer").value || column.name;
  const others = top.map((each) => `${quoted(each.text)} ${percent(each.logprob)}`).join(", ");
  byId("token-detail").textContent = `Token ${index + 1}, ${quoted(text)}: ${percent(logprob)} to ${scorer}. Likeliest there: ${others}.`;
}

const quoted = (text) => `“${text.replaceAll("\n", "⏎")}”`;

// Returns the first letter at which a column's answer is not that of the first column, or of the second for the first.
function parting(column) {
  const other = columns.find((each) => each !== column && answerOf(each) !== answerOf(column));
  if (running || !other) return null;
  return common(answerOf(column), answerOf(other));
}

function common(one, other) {
  const [first, second] = [letters(one), letters(other)];
  let at = 0;
  while (at < first.length && first[at] === second[at]) at += 1;
  return at;
}

const tokenIndex = (tokens, place) => tokens.findIndex((token) => token.end > place);

const tokenAt = (column, tokens, place) => column.text.children[tokenIndex(tokens, place)];

function showVerdict() {
  const [first, ...others] = columns;
  const sentences = others.map((other) => make("p", { textContent: compared(first, other) }));
  byId("verdict").replaceChildren(make("h2", { textContent: "Where they part" }), ...sentences, matrix());
}

function compared(one, other) {
  const [text, otherText] = [answerOf(one), answerOf(other)];
  if (!text || !otherText) return `${one.name} and ${other.name}: an answer is missing.`;
  if (text === otherText) return `${one.name} and ${other.name} give the same answer.`;
  const place = common(text, otherText);
  const told = (writer, reader) => {
    const own = writer.scores.get(writer.name);
    const token = own[tokenIndex(own, place)];
    if (!token) return `${writer.name} ends there`;
    const theirs = writer.scores.get(reader.name);
    const same = theirs?.[tokenIndex(theirs, place)];
    const seen = same ? `, to ${reader.name} ${percent(same.logprob)}` : "";
    return `${writer.name} goes on with ${quoted(token.text)} (${percent(token.logprob)}${seen})`;
  };
  const where = place ? `after ${place} characters` : "at the first token";
  return `${one.name} and ${other.name} part ${where}: ${told(one, other)}; ${told(other, one)}.`;
}

function matrix() {
  const cell = (column, reader) => {
    const tokens = column.scores.get(reader.name);
    return make("td", { textContent: tokens?.length ? meanSurprise(tokens).toFixed(3) : "–" });
  };
  const head = make("tr", {}, make("th", { textContent: "to → / answer of ↓", scope: "col" }), ...columns.map((column) => make("th", { textContent: column.name, scope: "col" })));
  const rows = columns.map((column) => make("tr", {}, make("th", { textContent: column.name, scope: "row" }), ...columns.map((reader) => cell(column, reader))));
  const caption = make("caption", { textContent: "Mean surprise in nats per token" });
  return make("div", { className: "wide-table", tabIndex: 0 }, make("table", {}, caption, make("thead", {}, head), make("tbody", {}, ...rows)));
}
