/** Server-sent events, read strictly (WHATWG HTML, section 9.2 "Server-sent events"). */

import { ProtocolError } from "./errors.js";

const MAX_EVENT_LENGTH = 8 * 2 ** 20;

/**
 * Turns bytes, cut anywhere, into the `data` of each event; other fields and comments carry nothing we need. An event
 * that the stream ends in the middle of is dropped, as the standard says. One event has at most `maxLength` UTF-16
 * units, so that a server cannot fill the memory.
 */
export class SseParser {
  #decoder = new TextDecoder("utf-8", { fatal: true }); // drops a byte order mark
  #limit;
  #line = "";
  /** @type {string[]} */
  #data = [];
  #dataLength = 0;
  #afterReturn = false;

  constructor(maxLength = MAX_EVENT_LENGTH) {
    this.#limit = maxLength;
  }

  /**
   * Take the next bytes and return the events they complete.
   * @param {Uint8Array} chunk
   * @returns {string[]}
   * @throws {ProtocolError} An event is too large or not UTF-8; the stream cannot be read further.
   */
  feed(chunk) {
    let text = this.#decode(chunk);
    if (this.#afterReturn && text) {
      // The line feed of a CRLF that was cut in two ends no second line.
      if (text[0] === "\n") text = text.slice(1);
      this.#afterReturn = false;
    }
    if (!text) return [];
    this.#afterReturn = text.endsWith("\r");
    const ends = text.split(/\r\n|\r|\n/);
    const rest = ends.pop() ?? "";
    const events = [];
    for (const end of ends) {
      this.#extend(end);
      const line = this.#line;
      this.#line = "";
      if (line) this.#take(line);
      else if (this.#data.length) events.push(this.#dispatch());
    }
    this.#extend(rest);
    return events;
  }

  #decode(chunk) {
    try {
      return this.#decoder.decode(chunk, { stream: true });
    } catch {
      throw new ProtocolError("the server sent an event that is not UTF-8; see the server's log.");
    }
  }

  #extend(part) {
    if (this.#dataLength + this.#line.length + part.length > this.#limit) {
      throw new ProtocolError(
        `the server sent an event larger than ${this.#limit} characters; ask it for less, or check that the URL is ` +
          "an OpenAI-compatible server.",
      );
    }
    this.#line += part;
  }

  #take(line) {
    const colon = line.indexOf(":");
    if ((colon < 0 ? line : line.slice(0, colon)) !== "data") return;
    this.#data.push(colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1));
    this.#dataLength += line.length;
  }

  #dispatch() {
    const event = this.#data.join("\n");
    this.#data = [];
    this.#dataLength = 0;
    return event;
  }
}
