/** What a server may refuse, as long as it says so; to take a field and ignore it is a failure. */

import { expect, Finding, shown, textOf } from "./result.js";

/** @typedef {import("./result.js").Check} Check */

const NO_SUCH_PATH = [404, 405];
const TOOL = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the weather in a city.",
    parameters: {
      type: "object",
      properties: { city: { type: "string", enum: ["Oslo", "Rome"] } },
      required: ["city"],
      additionalProperties: false,
    },
  },
};
// Few documents satisfy it, so that a small model cannot ramble.
const SCHEMA = {
  type: "object",
  properties: { even: { type: "boolean" }, size: { type: "string", enum: ["small", "large"] } },
  required: ["even", "size"],
  additionalProperties: false,
};

/** `n` 2 gives two choices. @type {Check} */
export async function severalChoices(target) {
  const answer = await target.chat({ n: 2, temperature: 1, max_tokens: 8 });
  const indexes = answer.choices.map((choice) => choice.index).sort((a, b) => a - b);
  const found = `[${indexes.join(", ")}]`;
  expect(found === "[0, 1]", `with n 2 the choices have the indexes ${found} instead of [0, 1].`);
  return "with n 2 there are two choices.";
}

/** `logprobs` gives log-probabilities, with alternatives. @type {Check} */
export async function logprobs(target) {
  const answer = await target.chat({ logprobs: true, top_logprobs: 2, temperature: 0, max_tokens: 8 });
  const tokens = answer.choices[0].logprobs?.content ?? [];
  expect(tokens.length, "the answer has no logprobs.");
  const probable = tokens.every((token) => token.logprob <= 0);
  expect(probable, "a logprob is above 0, which is no probability.");
  const counts = tokens.map((token) => token.top_logprobs?.length ?? 0);
  const alternatives = counts.every((count) => count === 1 || count === 2);
  expect(alternatives, "a token has not one or two top_logprobs.");
  return `there are logprobs for ${tokens.length} tokens.`;
}

/** A tool that `tool_choice` names is called, with arguments that are JSON. @type {Check} */
export async function tools(target) {
  const choice = { type: "function", function: { name: "get_weather" } };
  const fields = { tools: [TOOL], tool_choice: choice, temperature: 0, max_tokens: 64 };
  const answer = await target.chat(fields, "What is the weather in Oslo?");
  const call = answer.choices[0].message.tool_calls?.[0]?.function;
  expect(call, "the tool that tool_choice names is not called.");
  expect(call.name === "get_weather", `the tool ${shown(call.name)} is called instead of 'get_weather'.`);
  const given = parsed(call.arguments);
  expect(isObject(given) && "city" in given, "the call's arguments do not have the field 'city'.");
  return "the tool that tool_choice names is called.";
}

/** `response_format` with a JSON schema gives a document that satisfies it. @type {Check} */
export async function jsonSchema(target) {
  const format = { type: "json_schema", json_schema: { name: "number", schema: SCHEMA, strict: true } };
  const fields = { response_format: format, temperature: 0, max_tokens: 64 };
  const value = parsed(textOf(await target.chat(fields, "Describe the number eight as JSON.")));
  const fits =
    isObject(value) &&
    Object.keys(value).sort().join() === "even,size" &&
    typeof value.even === "boolean" &&
    ["small", "large"].includes(value.size);
  expect(fits, "the answer does not satisfy the schema.");
  return "the answer satisfies the schema.";
}

/** `/health` says 200. @type {Check} */
export async function health(target) {
  const { status } = await target.client.get("/health");
  if (NO_SUCH_PATH.includes(status)) throw new Finding("unsupported", "there is no /health.");
  expect(status === 200, `/health is answered with ${status} instead of 200.`);
  return "/health is answered with 200.";
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
