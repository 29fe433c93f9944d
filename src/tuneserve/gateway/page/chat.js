"use strict";

const byId = (id) => document.getElementById(id);
const log = byId("log");
const input = byId("input");
const statusLine = byId("status");
let model = null;
let messages = [];
let running = null;

function show(kind, text) {
  const element = document.createElement("div");
  element.className = `message ${kind}`;
  element.textContent = text;
  log.append(element);
  log.scrollTop = log.scrollHeight;
  return element;
}

async function explain(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

async function findModel() {
  try {
    const response = await fetch("v1/models");
    if (!response.ok) throw new Error(await explain(response));
    model = (await response.json()).data[0].id;
    byId("model").textContent = model;
    document.title = `${model} · tuneserve`;
    statusLine.textContent = "Ready.";
  } catch (error) {
    statusLine.textContent = `${error.message} Trying again…`;
    setTimeout(findModel, 2000);
  }
}

function requestBody() {
  const system = byId("system").value.trim();
  const body = {
    model,
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true,
    stream_options: { include_usage: true },
  };
  if (byId("temperature").value) body.temperature = byId("temperature").valueAsNumber;
  if (byId("max-tokens").value) body.max_completion_tokens = byId("max-tokens").valueAsNumber;
  return body;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("The connection ended before the answer did.");
    const parts = (buffer + value).split("\n\n");
    buffer = parts.pop();
    for (const part of parts) {
      if (part === "data: [DONE]") return;
      const event = JSON.parse(part.slice("data: ".length));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

function speed(usage, milliseconds, reason) {
  const seconds = milliseconds / 1000;
  const rate = usage.completion_tokens > 1 ? `${((usage.completion_tokens - 1) / seconds).toFixed(1)} tokens/s, ` : "";
  const cut = reason === "length" ? " Cut off: the token limit was reached." : "";
  return `${rate}${usage.completion_tokens} tokens after a prompt of ${usage.prompt_tokens}.${cut}`;
}

async function stream(answer, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(requestBody()),
    signal,
  });
  if (!response.ok) throw new Error(await explain(response));
  let started = null;
  let reason = null;
  for await (const event of events(response)) {
    if (started === null) {
      started = performance.now();
      statusLine.textContent = "Answering…";
    }
    const choice = event.choices[0];
    if (choice?.delta.content) {
      const following = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      answer.append(choice.delta.content);
      if (following) log.scrollTop = log.scrollHeight;
    }
    reason = choice?.finish_reason ?? reason;
    if (event.usage) statusLine.textContent = speed(event.usage, performance.now() - started, reason);
  }
}

function setRunning(controller) {
  running = controller;
  byId("send").hidden = running !== null;
  byId("stop").hidden = running === null;
  log.setAttribute("aria-busy", String(running !== null));
}

async function send() {
  const text = input.value.trim();
  if (!text || running || !model) return;
  input.value = "";
  messages.push({ role: "user", content: text });
  show("user", text);
  const answer = show("assistant", "");
  statusLine.textContent = "Waiting for the first token…";
  const controller = new AbortController();
  setRunning(controller);
  try {
    await stream(answer, controller.signal);
  } catch (error) {
    if (error.name === "AbortError") {
      statusLine.textContent = "Stopped.";
    } else {
      statusLine.textContent = "";
      show("error", error.message);
    }
  }
  if (running === controller) finish(answer, text);
}

function finish(answer, text) {
  if (answer.textContent) {
    messages.push({ role: "assistant", content: answer.textContent });
  } else {
    // Without an answer the question is given back, to be changed or sent again.
    messages.pop();
    answer.remove();
    input.value ||= text;
  }
  setRunning(null);
  input.focus();
}

function clear() {
  running?.abort();
  setRunning(null);
  messages = [];
  log.replaceChildren();
  statusLine.textContent = "";
  input.focus();
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("clear").addEventListener("click", clear);
input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
findModel();
