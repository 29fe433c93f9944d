/** What can go wrong between this client and a server; each message is one sentence that names the remedy. */

const LONGEST_QUOTE = 200;
const REMEDIES = {
  401: "give the API key it asks for",
  403: "give an API key that is allowed this",
  404: "check the URL and the model's name",
  429: "send less at once, or wait and try again",
};

/** What the caller gave can be no part of a request. */
export class InputError extends Error {}

/** The server could not be reached, did not answer in time, or broke off. */
export class TransportError extends Error {}

/** The server answered something that is not in the OpenAI API's form. */
export class ProtocolError extends Error {}

/** The server answered with an error; `status` is 200 for one in the middle of a stream. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {{message: string, type?: string | null, code?: string | null, param?: string | null}} details
   */
  constructor(status, { message, type = null, code = null, param = null }) {
    const where = status < 400 ? "in the middle of the stream" : `with status ${status}`;
    const remedy = REMEDIES[status] ?? (status >= 400 && status < 500 ? "correct the request" : "see the server's log");
    super(`the server answered ${where} (${message}); ${remedy}.`);
    this.status = status;
    this.explanation = message;
    this.type = type;
    this.code = code;
    this.param = param;
  }
}

/**
 * Return the error that a body describes, in OpenAI's form or any other.
 * @param {number} status
 * @param {string} body
 * @returns {ApiError}
 */
export function apiError(status, body) {
  return parseError(status, body) ?? new ApiError(status, { message: quoted(body) || "no explanation" });
}

/**
 * Return the error that a body describes in OpenAI's form, or null if it does not.
 * @param {number} status
 * @param {string} body
 * @returns {ApiError | null}
 */
export function parseError(status, body) {
  let error;
  try {
    error = JSON.parse(body)?.error;
  } catch {
    return null;
  }
  if (typeof error?.message !== "string") return null;
  const text = (value) => (typeof value === "string" || typeof value === "number" ? String(value) : null);
  return new ApiError(status, {
    message: quoted(error.message),
    type: text(error.type),
    code: text(error.code),
    param: text(error.param),
  });
}

/**
 * Return what a server said on one line, cut when long, and without what would move a terminal's cursor.
 * @param {string} text
 * @returns {string}
 */
export function quoted(text) {
  const line = [
    ...text
      .slice(0, 4 * LONGEST_QUOTE)
      .split(/\s+/)
      .filter(Boolean)
      .join(" "),
  ];
  const shown = line.slice(0, LONGEST_QUOTE).join("").replace(/\p{C}/gu, "\ufffd");
  return line.length > LONGEST_QUOTE ? `${shown}…` : shown.replace(/\.+$/, "");
}
