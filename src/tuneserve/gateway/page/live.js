// What the server does now, from its metrics, while the view is open.

import { getText } from "./api.js";
import { byId, make, makeSvg } from "./dom.js";
import { buckets, parse, quantile, valueOf } from "./prometheus.js";

const EVERY_MILLISECONDS = 2000;
const KEPT = 60;
const MINUTE = 60_000;
const LATENCIES = [
  ["First token", "vllm:time_to_first_token_seconds"],
  ["Between tokens", "vllm:inter_token_latency_seconds"],
  ["Whole answer", "vllm:e2e_request_latency_seconds"],
];
const SHARES = [0.5, 0.9, 0.99];
let history = [];
let timer = null;
const cards = new Map();

// Returns a function that says whether the view is shown.
export function startLive() {
  byId("window").addEventListener("change", draw);
  return (isShown) => {
    clearInterval(timer);
    timer = null;
    if (!isShown) return;
    timer = setInterval(poll, EVERY_MILLISECONDS);
    poll();
  };
}

async function poll() {
  if (document.hidden) return;
  try {
    history = [...history.slice(-KEPT), { time: performance.now(), samples: parse(await getText("metrics")) }];
    draw();
  } catch (error) {
    byId("live-age").textContent = error.message;
  }
}

function draw() {
  if (!history.length) return;
  const { samples } = history.at(-1);
  const engines = samples.filter((each) => each.name === "tuneserve_engine_ready").map((each) => each.labels.model_name);
  const models = new Set(samples.map((each) => each.labels.model_name).filter((name) => name));
  for (const name of [...engines, ...models].filter((each) => !cards.has(each))) cards.set(name, makeCard(name, engines.includes(name)));
  byId("live-engines").replaceChildren(...[...cards.values()].map((card) => card.element));
  for (const [name, card] of cards) fill(card, name);
  byId("live-age").textContent = `every ${EVERY_MILLISECONDS / 1000} seconds`;
}

function makeCard(name, isEngine) {
  const numbers = make("dl", { className: "numbers" });
  const line = makeSvg("polyline", { points: "" });
  const spark = makeSvg("svg", { class: "spark", viewBox: "0 0 120 32", preserveAspectRatio: "none", "aria-hidden": "true" }, line);
  const peak = make("p", { className: "soft" });
  const body = make("tbody");
  const head = make("tr", {}, ...["Latency", "p50", "p90", "p99"].map((text) => make("th", { textContent: text, scope: "col" })));
  const table = make("table", {}, make("thead", {}, head), body);
  const title = make("h2", { textContent: name });
  if (!isEngine) title.append(make("span", { className: "soft", textContent: " adapter" }));
  const element = make("section", { className: "card", "aria-label": name }, title, numbers, spark, peak, table);
  return { isEngine, numbers, line, peak, body, element };
}

function fill(card, name) {
  const { samples } = history.at(-1);
  const rates = history.slice(1).map((each, index) => rate(history[index], each, name));
  const now = rates.at(-1) ?? 0;
  const cache = valueOf(samples, "vllm:kv_cache_usage_perc", name);
  const shown = [["Tokens/s", now.toFixed(1)], ["Tokens written", valueOf(samples, "vllm:generation_tokens_total", name) ?? 0]];
  if (card.isEngine) {
    const ready = valueOf(samples, "tuneserve_engine_ready", name);
    shown.unshift(["State", ready ? "ready" : "not running"]);
    shown.push(["Running", valueOf(samples, "vllm:num_requests_running", name) ?? "–"]);
    shown.push(["Waiting", valueOf(samples, "vllm:num_requests_waiting", name) ?? "–"]);
  }
  const pairs = shown.map(([term, value]) => pair(term, String(value)));
  if (card.isEngine && cache !== null) {
    const text = `${(100 * cache).toFixed(cache && cache < 0.1 ? 2 : 0)}%`;
    const meter = make("meter", { min: 0, max: 1, high: 0.9, value: cache, "aria-label": `Cache in use: ${text}` });
    pairs.push(pair("Cache in use", text, meter));
  }
  card.numbers.replaceChildren(...pairs);
  const top = Math.max(1, ...rates);
  const step = 120 / (KEPT - 1);
  card.line.setAttribute("points", rates.map((value, index) => `${(120 - (rates.length - 1 - index) * step).toFixed(1)},${(31 - (30 * value) / top).toFixed(1)}`).join(" "));
  const past = Math.round((history.at(-1).time - history[0].time) / 1000);
  card.peak.textContent = `at most ${Math.max(0, ...rates).toFixed(1)} tokens/s in the last ${past} s`;
  card.body.replaceChildren(...LATENCIES.map(([text, metric]) => latencies(text, metric, name)));
}

const pair = (term, text, ...more) => make("div", {}, make("dt", { textContent: term }), make("dd", { textContent: text }, ...more));

function rate(before, after, name) {
  const count = (each) => valueOf(each.samples, "vllm:generation_tokens_total", name) ?? 0;
  return (1000 * Math.max(0, count(after) - count(before))) / (after.time - before.time);
}

function latencies(text, metric, name) {
  const latest = history.at(-1);
  const isMinute = byId("window").value === "minute";
  const before = history.findLast((each) => latest.time - each.time >= MINUTE) ?? history[0];
  const found = buckets(latest.samples, metric, name, isMinute ? before.samples : []);
  const cells = SHARES.map((share) => make("td", { textContent: seconds(quantile(share, found)) }));
  return make("tr", {}, make("th", { textContent: text, scope: "row" }), ...cells);
}

function seconds(value) {
  if (value === null) return "–";
  return value < 1 ? `${(1000 * value).toPrecision(3)} ms` : `${value.toPrecision(3)} s`;
}
