// The views, which one is shown, the models, and the key.

import { get, hasKey, keyWanted, useKey } from "./api.js";
import { startChat } from "./chat.js";
import { startCompare } from "./compare.js";
import { byId } from "./dom.js";
import { startLive } from "./live.js";
import { showModels } from "./model.js";

const VIEWS = ["chat", "compare", "live", "model"];
const RETRY_MILLISECONDS = 2000;
const tabs = VIEWS.map((view) => byId(`tab-${view}`));
let started = false;
let live = null;

function show(view) {
  VIEWS.forEach((each, index) => {
    const isShown = each === view;
    byId(each).hidden = !isShown;
    tabs[index].setAttribute("aria-selected", String(isShown));
    tabs[index].tabIndex = isShown ? 0 : -1;
  });
  live?.(view === "live");
  if (started && view === "model") showModels(byId("model"));
}

function fromAddress() {
  const view = location.hash.slice(1);
  show(VIEWS.includes(view) ? view : "chat");
}

async function start() {
  try {
    const models = (await get("v1/models")).data;
    byId("key-form").hidden = true;
    byId("notice").textContent = "";
    if (started) return;
    started = true;
    startChat(models);
    startCompare(models);
    live = startLive();
    fromAddress();
  } catch (error) {
    byId("notice").textContent = error.message;
    if (byId("key-form").hidden) setTimeout(start, RETRY_MILLISECONDS);
  }
}

tabs.forEach((tab, index) => {
  tab.addEventListener("click", () => {
    location.hash = VIEWS[index];
  });
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = (index + step + VIEWS.length) % VIEWS.length;
    location.hash = VIEWS[next];
    tabs[next].focus();
  });
});
keyWanted.addEventListener("wanted", () => {
  byId("key-form").hidden = false;
  if (!hasKey()) byId("key").focus();
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
  byId("key").value = "";
  byId("key-form").hidden = true;
  start();
});
window.addEventListener("hashchange", fromAddress);
fromAddress();
start();
