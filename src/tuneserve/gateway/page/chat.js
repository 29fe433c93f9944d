// One conversation with one model, and the list of those before.

import { hasKey, stream } from "./api.js";
import { button, byId, copy, make } from "./dom.js";
import { render } from "./markdown.js";
import { all, create, remove, save, titleOf } from "./store.js";

const NUMBERS = [
  "temperature", "max_completion_tokens", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
  "frequency_penalty", "seed",
];
const log = byId("log");
const input = byId("input");
const say = (text) => {
  byId("status").textContent = text;
};
let conversation = create();
let running = null;

export function startChat(models) {
  byId("chat-model").append(...models.map((model) => make("option", { textContent: model.id })));
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  byId("halt").addEventListener("click", () => running?.abort());
  byId("new-chat").addEventListener("click", () => open(create()));
  byId("delete-chat").addEventListener("click", () => {
    remove(conversation.id);
    // So that an answer under way does not bring it back.
    conversation.messages.length = 0;
    open(create());
  });
  for (const name of [...NUMBERS, "system", "stop"]) byId(name).addEventListener("change", keepSettings);
  startExport();
  open(conversation);
  say("Ready.");
}

function open(chosen) {
  running?.abort();
  setRunning(null);
  conversation = chosen;
  if (chosen.model && [...byId("chat-model").options].some((option) => option.value === chosen.model)) {
    byId("chat-model").value = chosen.model;
  }
  byId("system").value = chosen.system ?? "";
  for (const name of [...NUMBERS, "stop"]) byId(name).value = chosen.sampling?.[name] ?? "";
  showMessages();
  showConversations();
  say("");
  input.focus();
}

function keepSettings() {
  conversation.system = byId("system").value.trim();
  conversation.sampling = {};
  for (const name of NUMBERS) if (byId(name).value) conversation.sampling[name] = byId(name).valueAsNumber;
  if (byId("stop").value) conversation.sampling.stop = byId("stop").value;
  keep();
}

function keep(kept = conversation) {
  try {
    if (kept.messages.length) save(kept);
  } catch (error) {
    say(error.message);
  }
  showConversations();
}

function showConversations() {
  byId("conversations").replaceChildren(
    ...all().map((each) => {
      const properties = { title: titleOf(each), "aria-current": String(each.id === conversation.id) };
      return make("li", {}, button(titleOf(each), () => open(each), properties));
    }),
  );
}

function showMessages() {
  log.replaceChildren(...conversation.messages.map(messageElement));
  log.scrollTop = log.scrollHeight;
}

function messageElement(message, index) {
  const body = make("div", { className: "body" });
  const actions = make("div", { className: "actions" });
  const element = make("article", { className: `message ${message.role}` }, body, actions);
  element.setAttribute("aria-label", message.role === "user" ? "You" : (message.model ?? "Assistant"));
  fill(body, message);
  if (message.role === "user") actions.append(button("Edit", () => edit(element, index)));
  else {
    const copier = button("Copy", async () => {
      copier.textContent = (await copy(message.content)) ? "Copied" : "Not allowed";
    });
    actions.append(make("span", { className: "soft", textContent: message.note ?? "" }), copier, button("Retry", () => again(index)));
  }
  return element;
}

function fill(body, message) {
  if (message.role === "user") {
    body.textContent = message.content;
    return;
  }
  const thoughts = message.reasoning && make("details", { className: "thoughts" }, make("summary", { textContent: "Thoughts" }), message.reasoning);
  body.replaceChildren(...(thoughts ? [thoughts] : []), render(message.content));
}

function edit(element, index) {
  const area = make("textarea", { value: conversation.messages[index].content, rows: 3, "aria-label": "Edit your message" });
  const accept = () => {
    if (running || !area.value.trim()) return;
    conversation.messages.splice(index);
    ask(area.value.trim());
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") showMessages();
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      accept();
    }
  });
  const row = make("div", { className: "row" }, button("Send", accept, { className: "primary" }), button("Cancel", showMessages));
  element.replaceChildren(area, row);
  element.classList.add("editing");
  area.focus();
}

function again(index) {
  if (running) return;
  conversation.messages.splice(index);
  answer();
}

function send() {
  const text = input.value.trim();
  if (!text || running) return;
  input.value = "";
  ask(text);
}

function ask(text) {
  conversation.messages.push({ role: "user", content: text });
  answer();
}

function requestBody() {
  const messages = conversation.messages.map(({ role, content }) => ({ role, content }));
  if (conversation.system) messages.unshift({ role: "system", content: conversation.system });
  return { model: byId("chat-model").value, messages, ...conversation.sampling };
}

async function answer() {
  keepSettings();
  const body = requestBody();
  conversation.model = body.model;
  const message = { role: "assistant", model: body.model, content: "", reasoning: "" };
  const asked = conversation;
  asked.messages.push(message);
  showMessages();
  say("Waiting for the first token…");
  const controller = new AbortController();
  setRunning(controller);
  const failure = await receive(message, body, controller.signal);
  if (!message.content && !message.reasoning) asked.messages.pop();
  if (running !== controller) {
    // Another conversation has been opened meanwhile.
    keep(asked);
    return;
  }
  setRunning(null);
  keep();
  showMessages();
  if (failure) say(failure);
  if (failure && asked.messages.at(-1)?.role === "user") {
    const last = asked.messages.length - 1;
    log.lastElementChild.querySelector(".actions").append(button("Retry", () => again(last + 1)));
  }
  input.focus();
}

async function receive(message, body, signal) {
  const drawn = drawer(message);
  const asked = performance.now();
  let first = null;
  let reason = null;
  try {
    for await (const event of stream("v1/chat/completions", body, signal)) {
      const choice = event.choices[0];
      const delta = choice?.delta;
      if (delta?.content || delta?.reasoning_content) {
        first ??= performance.now();
        message.content += delta.content ?? "";
        message.reasoning += delta.reasoning_content ?? "";
        drawn.soon();
      }
      reason = choice?.finish_reason ?? reason;
      if (event.usage) {
        message.usage = event.usage;
        message.note = note(event.usage, asked, first ?? performance.now(), performance.now(), reason);
      }
    }
    say("Answered.");
    return null;
  } catch (error) {
    if (error.name !== "AbortError") return error.message;
    message.note = "stopped";
    return "Stopped.";
  } finally {
    drawn.stop();
  }
}

// Draws at most once per frame, and follows the text while its end is in view.
function drawer(message) {
  const body = log.lastElementChild.querySelector(".body");
  let frame = null;
  const draw = () => {
    frame = null;
    const isFollowing = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    fill(body, message);
    if (isFollowing) log.scrollTop = log.scrollHeight;
  };
  return {
    soon: () => {
      frame ??= requestAnimationFrame(draw);
    },
    stop: () => {
      if (frame !== null) cancelAnimationFrame(frame);
      draw();
    },
  };
}

function note(usage, asked, first, last, reason) {
  const parts = [`${usage.completion_tokens} tokens after a prompt of ${usage.prompt_tokens}`];
  if (usage.completion_tokens > 1) parts.unshift(`${(((usage.completion_tokens - 1) * 1000) / (last - first)).toFixed(1)} tokens/s`);
  parts.push(`first after ${((first - asked) / 1000).toFixed(2)} s`);
  if (reason === "length") parts.push("cut off at the token limit");
  return parts.join(" · ");
}

function setRunning(controller) {
  running = controller;
  byId("send").hidden = running !== null;
  byId("halt").hidden = running === null;
  log.setAttribute("aria-busy", String(running !== null));
}

function startExport() {
  const dialog = byId("export");
  byId("export-chat").addEventListener("click", () => {
    keepSettings();
    byId("curl").value = curlLine();
    byId("copy-curl").textContent = "Copy";
    dialog.showModal();
  });
  byId("close-export").addEventListener("click", () => dialog.close());
  byId("copy-curl").addEventListener("click", async () => {
    byId("copy-curl").textContent = (await copy(byId("curl").value, byId("curl"))) ? "Copied" : "Selected";
  });
  byId("download").addEventListener("click", () => {
    const address = URL.createObjectURL(new Blob([JSON.stringify(conversation, null, 2)], { type: "application/json" }));
    make("a", { href: address, download: `tuneserve-${conversation.id}.json` }).click();
    URL.revokeObjectURL(address);
  });
}

function curlLine() {
  const body = requestBody();
  // The request for the last answer, not for one after it.
  if (body.messages.at(-1)?.role === "assistant") body.messages.pop();
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const key = hasKey() ? ' -H "Authorization: Bearer $TUNESERVE_API_KEY"' : "";
  return `curl ${quoted(new URL("v1/chat/completions", document.baseURI).href)}${key} -H 'Content-Type: application/json' -d ${quoted(JSON.stringify(body))}`;
}
