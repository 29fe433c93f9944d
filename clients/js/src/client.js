/** A client of OpenAI-compatible servers: one method per thing the API can do. */

import { parseError, ProtocolError } from "./errors.js";
import { Connection, encode, raiseForStatus } from "./http.js";
import { chatChunk, chatCompletion, completion, completionChunk, modelList } from "./shapes.js";

export { ApiError, InputError, ProtocolError, TransportError } from "./errors.js";
export { SseParser } from "./sse.js";

/**
 * @typedef {import("./shapes.js").Model} Model
 * @typedef {import("./shapes.js").ChatCompletion} ChatCompletion
 * @typedef {import("./shapes.js").ChatChunk} ChatChunk
 * @typedef {import("./shapes.js").Completion} Completion
 * @typedef {import("./http.js").RawResponse} RawResponse
 * @typedef {{role: string, content: string}} Message
 * @typedef {{model: string, [field: string]: unknown}} Fields What goes into the request as it is.
 */

const CHAT = "/v1/chat/completions";
const COMPLETIONS = "/v1/completions";
const MODELS = "/v1/models";
const DONE = "[DONE]";

/**
 * A client of one server. Every method throws `InputError` for what can be no part of a request, `TransportError` when
 * there is no answer, `ApiError` when it is an error, and `ProtocolError` when it is not in the API's form.
 */
export class OpenAIClient {
  #connection;

  /**
   * @param {string} baseUrl With or without `/v1`.
   * @param {{apiKey?: string, timeout?: number}} [options] `timeout` is how many seconds the server may be silent.
   */
  constructor(baseUrl, { apiKey, timeout = 60 } = {}) {
    this.#connection = new Connection(baseUrl, apiKey, timeout);
  }

  /** The address, without `/v1`. */
  get url() {
    return this.#connection.root;
  }

  /**
   * Return the models that the server has.
   * @returns {Promise<Model[]>}
   */
  async models() {
    return this.#decoded(await this.get(MODELS), MODELS, modelList);
  }

  /**
   * Answer a conversation.
   * @param {Message[]} messages
   * @param {Fields} fields
   * @returns {Promise<ChatCompletion>}
   */
  async chat(messages, fields) {
    return this.#decoded(await this.post(CHAT, { ...fields, messages, stream: false }), CHAT, chatCompletion);
  }

  /**
   * Answer a conversation piece by piece; leaving the loop ends the request.
   * @param {Message[]} messages
   * @param {Fields} fields
   * @returns {AsyncGenerator<ChatChunk, void, void>}
   */
  chatStream(messages, fields) {
    return this.#stream(CHAT, { ...fields, messages, stream: true }, chatChunk);
  }

  /**
   * Continue a text.
   * @param {string} prompt
   * @param {Fields} fields
   * @returns {Promise<Completion>}
   */
  async completion(prompt, fields) {
    return this.#decoded(await this.post(COMPLETIONS, { ...fields, prompt, stream: false }), COMPLETIONS, completion);
  }

  /**
   * Continue a text piece by piece; leaving the loop ends the request.
   * @param {string} prompt
   * @param {Fields} fields
   * @returns {AsyncGenerator<Completion, void, void>}
   */
  completionStream(prompt, fields) {
    return this.#stream(COMPLETIONS, { ...fields, prompt, stream: true }, completionChunk);
  }

  /**
   * Return whatever the server has at `path`, which starts with a slash; no status is an error.
   * @param {string} path
   * @returns {Promise<RawResponse>}
   */
  get(path) {
    return this.#connection.request("GET", path);
  }

  /**
   * Return whatever the server answers at `path`; a string is sent as it is, and no status is an error.
   * @param {string} path
   * @param {object | string} json
   * @returns {Promise<RawResponse>}
   */
  async post(path, json) {
    return this.#connection.request("POST", path, typeof json === "string" ? json : encode(json));
  }

  async *#stream(path, body, shape) {
    for await (const data of this.#connection.events(path, encode(body))) {
      if (data === DONE) return;
      yield this.#parsed(data, path, shape, () => parseError(200, data));
    }
    throw new ProtocolError(`${this.url}${path} ended its stream without ${DONE}; see the server's log.`);
  }

  #decoded(answer, path, shape) {
    raiseForStatus(answer, this.url + path);
    return this.#parsed(answer.body, path, shape, () => null);
  }

  #parsed(text, path, shape, instead) {
    try {
      return shape(JSON.parse(text));
    } catch (error) {
      const reason = error instanceof TypeError ? error.message : "no JSON";
      const remedy = "check that the URL is an OpenAI-compatible server";
      throw (
        instead() ?? new ProtocolError(`${this.url}${path} did not answer in OpenAI's form (${reason}); ${remedy}.`)
      );
    }
  }
}
