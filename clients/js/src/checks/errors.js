/** How a server must refuse what it cannot do. */

import { expect, messages, PROMPT } from "./result.js";

/** @typedef {import("./result.js").Check} Check */

const CHAT = "/v1/chat/completions";
const NO_MODEL = "tuneserve-check-no-such-model";
const BROKEN = '{"model": ';
const FIELDS = ["message", "type", "param", "code"];

/** A model that does not exist is a 404. @type {Check} */
export async function unknownModel(target) {
  const body = { model: NO_MODEL, messages: messages(PROMPT), max_tokens: 1 };
  const answer = await target.client.post(CHAT, body);
  expectStatus(answer, 404, "an unknown model");
  const flaw = flawOf(answer.body);
  expect(!flaw, `the 404 is not in OpenAI's error form: ${flaw}.`);
  return "an unknown model is answered with 404.";
}

/** A body that is not JSON is a 400. @type {Check} */
export async function invalidJson(target) {
  expectStatus(await target.client.post(CHAT, BROKEN), 400, "broken JSON");
  return "broken JSON is answered with 400.";
}

/** A value that makes no sense is a 400. @type {Check} */
export async function invalidValue(target) {
  expectStatus(await target.client.post(CHAT, cold(target)), 400, "temperature -1");
  return "temperature -1 is answered with 400.";
}

/** Refusals have an `error` object with message, type, param and code. @type {Check} */
export async function errorForm(target) {
  let refusals = 0;
  for (const [what, body] of /** @type {[string, object | string][]} */ ([
    ["broken JSON", BROKEN],
    ["temperature -1", cold(target)],
  ])) {
    const answer = await target.client.post(CHAT, body);
    if (answer.status < 400) continue;
    refusals += 1;
    const flaw = flawOf(answer.body);
    expect(!flaw, `${what} is not answered in OpenAI's error form: ${flaw}.`);
  }
  expect(refusals, "neither broken JSON nor temperature -1 is answered with an error.");
  return "errors have a message, a type, a param and a code.";
}

function cold(target) {
  return { model: target.model, messages: messages(PROMPT), max_tokens: 1, temperature: -1 };
}

function expectStatus(answer, status, what) {
  expect(answer.status === status, `${what} is answered with ${answer.status} instead of ${status}.`);
}

/** Return what keeps a body from being OpenAI's error form, or nothing; a number is taken as a code too. */
function flawOf(body) {
  let error;
  try {
    error = JSON.parse(body)?.error;
  } catch {
    return "it is not JSON";
  }
  if (typeof error !== "object" || error === null || Array.isArray(error)) return "there is no object 'error'";
  const missing = FIELDS.find((field) => !Object.hasOwn(error, field));
  if (missing) return `there is no '${missing}' in 'error'`;
  if (typeof error.message !== "string" || !error.message) return "'message' is no text";
  if (typeof error.type !== "string") return "'type' is no text";
  if (error.param !== null && typeof error.param !== "string") return "'param' is neither text nor null";
  if (error.code !== null && typeof error.code !== "string" && !Number.isInteger(error.code)) {
    return "'code' is neither text nor a number nor null";
  }
  return "";
}
