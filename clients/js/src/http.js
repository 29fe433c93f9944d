/** HTTP as this client needs it: bounded answers, and every failure in one sentence. */

import { apiError, InputError, ProtocolError, quoted, TransportError } from "./errors.js";
import { SseParser } from "./sse.js";

const MAX_ANSWER_BYTES = 64 * 2 ** 20;
const EVENT_STREAM = "text/event-stream";
const LONGEST_TIMEOUT = 2 ** 31 / 1000 - 1; // what a timer can count

/** @typedef {{status: number, contentType: string, body: string}} RawResponse An answer as it came. */

/** Requests to one server. */
export class Connection {
  /** @type {Record<string, string>} */
  #headers;
  #timeout;

  /**
   * @param {string} baseUrl
   * @param {string | undefined} apiKey
   * @param {number} timeout Seconds that the server may be silent.
   */
  constructor(baseUrl, apiKey, timeout) {
    this.root = rootOf(baseUrl);
    if (!(timeout > 0 && timeout <= LONGEST_TIMEOUT)) {
      throw new InputError(`timeout is ${timeout} seconds; choose one above 0, and at most ${LONGEST_TIMEOUT}.`);
    }
    this.#timeout = timeout;
    this.#headers = apiKey === undefined ? {} : { authorization: `Bearer ${checkedKey(apiKey)}` };
  }

  /**
   * Return the answer to one request, whatever its status.
   * @param {string} method
   * @param {string} path
   * @param {string} [body]
   * @returns {Promise<RawResponse>}
   */
  async request(method, path, body) {
    const answer = this.#open(method, path, body);
    const { value: response } = await answer.next();
    return readAll(response, answer, this.root + path);
  }

  /**
   * Yield the data of each event of the answer to a POST.
   * @param {string} path
   * @param {string} body
   * @returns {AsyncGenerator<string, void, void>}
   */
  async *events(path, body) {
    const answer = this.#open("POST", path, body);
    try {
      const { value: response } = await answer.next();
      if (response.status !== 200) {
        raiseForStatus(await readAll(response, answer, this.root + path), this.root + path);
      }
      const kind = response.headers.get("content-type") ?? "";
      if (kind.split(";")[0].trim().toLowerCase() !== EVENT_STREAM) {
        const instead = quoted(kind) || "without a content type";
        throw new ProtocolError(
          `${this.root}${path} answered ${instead} instead of ${EVENT_STREAM}; check that the server can stream.`,
        );
      }
      const parser = new SseParser();
      for await (const chunk of answer) yield* parser.feed(chunk);
    } finally {
      await answer.return();
    }
  }

  /**
   * Yield the response, then its bytes; ending this early ends the request.
   * @param {string} method
   * @param {string} path
   * @param {string} [body]
   * @returns {AsyncGenerator<any, void, void>}
   */
  async *#open(method, path, body) {
    const silence = new AbortController();
    let timer;
    const wait = () => {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), this.#timeout * 1000);
    };
    try {
      wait();
      const headers = body === undefined ? this.#headers : { ...this.#headers, "content-type": "application/json" };
      const options = /** @type {const} */ ({ redirect: "manual", signal: silence.signal });
      const response = await fetch(this.root + path, { method, headers, body, ...options }).catch((error) => {
        throw this.#translated(error, silence.signal.aborted, "cannot be reached", "check the address and that the");
      });
      yield response;
      const reader = response.body?.getReader();
      try {
        for (;;) {
          wait();
          const { done, value } = (await reader?.read()) ?? { done: true };
          if (done) return;
          clearTimeout(timer);
          yield value;
        }
      } catch (error) {
        throw this.#translated(error, silence.signal.aborted, "broke off the connection", "see whether the");
      } finally {
        await reader?.cancel().catch(() => {});
      }
    } finally {
      clearTimeout(timer);
    }
  }

  #translated(error, silent, what, remedy) {
    if (silent) {
      const seconds = `${this.#timeout} seconds`;
      return new TransportError(`${this.root} was silent for ${seconds}; see the server's log, or wait longer.`);
    }
    return new TransportError(`${this.root} ${what} (${reasonOf(error)}); ${remedy} server is running.`);
  }
}

/**
 * Return if the status is 200, else throw what it means.
 * @param {RawResponse} answer
 * @param {string} url
 */
export function raiseForStatus(answer, url) {
  if (answer.status >= 400) throw apiError(answer.status, answer.body);
  if (answer.status !== 200) {
    const remedy = "give the URL that it redirects to, if any";
    throw new ProtocolError(`${url} answered with status ${answer.status}; ${remedy}.`);
  }
}

/**
 * Return a request body.
 * @param {object} fields
 * @returns {string}
 */
export function encode(fields) {
  return JSON.stringify(fields, (name, value) => {
    if (typeof value === "number" && !Number.isFinite(value)) {
      throw new InputError(`${name} is ${value}, which JSON cannot say; give a finite number.`);
    }
    return value;
  });
}

async function readAll(response, chunks, url) {
  const parts = [];
  let size = 0;
  for await (const chunk of chunks) {
    parts.push(chunk);
    size += chunk.length;
    if (size > MAX_ANSWER_BYTES) {
      const remedy = "ask it for less, or check that the URL is an OpenAI-compatible server";
      throw new ProtocolError(`${url} answered with more than ${MAX_ANSWER_BYTES} bytes; ${remedy}.`);
    }
  }
  const contentType = response.headers.get("content-type") ?? "";
  return { status: response.status, contentType, body: Buffer.concat(parts).toString("utf-8") };
}

function reasonOf(error) {
  const cause = error.cause ?? error;
  return quoted(cause.message || cause.errors?.[0]?.message || cause.code || String(error));
}

function rootOf(baseUrl) {
  let url;
  try {
    url = new URL(baseUrl.trim());
  } catch {
    throw new InputError(`${JSON.stringify(baseUrl)} is no URL; give one like http://localhost:8000.`);
  }
  if (!["http:", "https:"].includes(url.protocol) || !url.hostname) {
    throw new InputError(`${JSON.stringify(baseUrl)} is no HTTP address; give one like http://localhost:8000.`);
  }
  if (url.username || url.password) {
    throw new InputError("the URL contains a user name or a password; leave them out and give an API key.");
  }
  if (url.search || url.hash) {
    throw new InputError(`${JSON.stringify(baseUrl)} has a query or a fragment; leave them out.`);
  }
  return `${url.origin}${url.pathname}`.replace(/\/+$/, "").replace(/\/v1$/, "").replace(/\/+$/, "");
}

function checkedKey(apiKey) {
  if (!/^[\x21-\x7e]+$/.test(apiKey)) {
    throw new InputError("the API key is empty, or has spaces or characters that are not ASCII; copy it again.");
  }
  return apiKey;
}
