// What is served, and how it came to be: a picture from the base to the engine, with the divergence at each step.

import { get } from "./api.js";
import { make } from "./dom.js";

const KINDS = { model: "Model", base: "Base", adapter: "Adapter", method: "Made by", engine: "Engine" };

export async function showModels(parent) {
  try {
    const { data } = await get("v1/tuneserve/models");
    parent.replaceChildren(...data.map(card));
  } catch (error) {
    parent.replaceChildren(make("p", { className: "bad", textContent: error.message }));
  }
}

function card(model) {
  const steps = model.lineage.length ? model.lineage : [{ kind: "engine", name: model.engine.engine, facts: {}, parity: null }];
  const list = make("ol", { className: "lineage" }, ...steps.map(step));
  const facts = {
    "Context": `${model.max_model_len} tokens`,
    "Weights": `${(model.engine.weight_bytes / 2 ** 20).toFixed(0)} MiB`,
    "Type": model.engine.dtype,
    "Device": model.engine.device,
    "Together": `${model.engine.max_running} sequences`,
    "Served since": new Date(1000 * model.created).toLocaleString(),
    ...(model.engine.lacks.length ? { "Not supported": model.engine.lacks.join(", ") } : {}),
  };
  const title = make("h2", { textContent: model.id }, make("span", { className: "soft", textContent: model.parent ? ` adapter over ${model.parent}` : "" }));
  title.append(make("span", { className: model.ready ? "badge good" : "badge bad", textContent: model.ready ? "ready" : "not running" }));
  return make("section", { className: "card", "aria-label": model.id }, title, list, terms(facts, "facts"));
}

function terms(values, className) {
  const pairs = Object.entries(values).map(([term, text]) => make("div", {}, make("dt", { textContent: term }), make("dd", { textContent: text })));
  return make("dl", { className }, ...pairs);
}

function step({ kind, name, facts, parity }) {
  const box = make("div", { className: `step ${kind}` }, make("span", { className: "soft", textContent: KINDS[kind] }), make("strong", { textContent: name }));
  if (Object.keys(facts).length) box.append(make("details", {}, make("summary", { textContent: "more" }), terms(facts, "more")));
  const item = make("li", {}, box);
  if (kind === "method" || kind === "engine") item.prepend(hop(parity));
  return item;
}

function hop(parity) {
  if (!parity) return make("span", { className: "hop unchecked", textContent: "not checked" });
  const kl = `KL ${parity.at_least ? "≥ " : ""}${parity.kl.toExponential(1)}`;
  const title = `Mean KL divergence from what was trained, in nats, over ${parity.positions} positions`;
  return make("span", { className: "hop", title }, make("strong", { textContent: kl }), make("span", { textContent: `top-1 ${(100 * parity.top1).toFixed(1)}%` }));
}
