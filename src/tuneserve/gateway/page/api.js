// Requests to this server, with the key that the user gave, kept for as long as the tab is open.

const KEY = "tuneserve.key";
export const keyWanted = new EventTarget();

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const useKey = (key) => sessionStorage.setItem(KEY, key);

async function explain(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

async function ask(path, options = {}) {
  const headers = {};
  if (hasKey()) headers.Authorization = `Bearer ${sessionStorage.getItem(KEY)}`;
  if (options.body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) keyWanted.dispatchEvent(new Event("wanted"));
  if (!response.ok) throw new Error(await explain(response));
  return response;
}

const sent = (body, signal) => ({ method: "POST", body: JSON.stringify(body), signal });

export const get = async (path) => (await ask(path)).json();
export const getText = async (path) => (await ask(path)).text();
export const post = async (path, body, signal) => (await ask(path, sent(body, signal))).json();

export async function* stream(path, body, signal) {
  const response = await ask(path, sent({ ...body, stream: true, stream_options: { include_usage: true } }, signal));
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
