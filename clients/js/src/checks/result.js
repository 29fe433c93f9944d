/** What a check can find, and what it is given to look at. */

import { quoted } from "../errors.js";

/**
 * @typedef {"pass" | "fail" | "unsupported" | "skipped"} Outcome
 * @typedef {{name: string, outcome: Outcome, detail: string, milliseconds: number}} CheckResult
 * @typedef {(target: Target) => Promise<string>} Check Returns what to say of a pass; throws Finding otherwise.
 */

export const PROMPT = "Count from one to twenty in words.";
export const GREEDY_TOKENS = 24;

/** Ends a check with an outcome other than a pass. */
export class Finding extends Error {
  /**
   * @param {Outcome} outcome
   * @param {string} detail
   */
  constructor(outcome, detail) {
    super(detail);
    this.outcome = outcome;
  }
}

/**
 * End the check as failed unless `condition` holds; `detail` says what was found instead.
 * @param {unknown} condition
 * @param {string} detail
 * @returns {asserts condition}
 */
export function expect(condition, detail) {
  if (!condition) throw new Finding("fail", detail);
}

/**
 * Return what a server said in quotation marks.
 * @param {string | null | undefined} value
 */
export const shown = (value) => (typeof value === "string" ? `'${quoted(value)}'` : "null");

/** @param {string} prompt */
export const messages = (prompt) => [{ role: "user", content: prompt }];

/** @param {import("../client.js").ChatCompletion} answer */
export const textOf = (answer) => answer.choices[0].message.content ?? "";

/** The server and model under test. */
export class Target {
  /** @type {import("../client.js").ChatCompletion | undefined} */
  #greedy;

  /**
   * @param {import("../client.js").OpenAIClient} client
   * @param {string} model
   */
  constructor(client, model) {
    this.client = client;
    this.model = model;
  }

  /**
   * Answer one message.
   * @param {object} fields
   * @param {string} [prompt]
   */
  chat(fields, prompt = PROMPT) {
    return this.client.chat(messages(prompt), { model: this.model, ...fields });
  }

  /** The answer at temperature 0 that other answers are held against; asked for once. */
  async greedy() {
    this.#greedy ??= await this.chat({ temperature: 0, max_tokens: GREEDY_TOKENS });
    return this.#greedy;
  }
}
