// Conversations, kept in this browser only: one entry each.

const PREFIX = "tuneserve.chat.";

export function create() {
  return { id: crypto.getRandomValues(new Uint32Array(2)).join("-"), updated: Date.now(), system: "", sampling: {}, messages: [] };
}

export function titleOf(conversation) {
  const text = conversation.messages.find((message) => message.role === "user")?.content.trim() ?? "";
  return text.length > 60 ? `${text.slice(0, 60)}…` : text || "New chat";
}

export function save(conversation) {
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify({ ...conversation, updated: Date.now() }));
  } catch {
    throw new Error("This browser keeps no more conversations; export and delete some.");
  }
}

export const remove = (id) => localStorage.removeItem(PREFIX + id);

function read(name) {
  try {
    const found = JSON.parse(localStorage.getItem(name));
    return Array.isArray(found.messages) ? found : null;
  } catch {
    return null;
  }
}

export function all() {
  return Object.keys(localStorage)
    .filter((name) => name.startsWith(PREFIX))
    .map(read)
    .filter((found) => found !== null)
    .sort((one, other) => other.updated - one.updated);
}
