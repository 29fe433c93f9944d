// Protects compatibility in fact: the official openai package against a real server.
// TUNESERVE_URL is the server; TUNESERVE_EXPECT a regular expression that its answer to TUNESERVE_PROMPT satisfies.

import assert from "node:assert/strict";
import { before, test } from "node:test";

import OpenAI, { BadRequestError, NotFoundError } from "openai";

const { TUNESERVE_URL: url, TUNESERVE_EXPECT: expected, TUNESERVE_PROMPT: prompt = "Say hello." } = process.env;
if (!url) throw new Error("TUNESERVE_URL is not set; set it to a running server, like http://localhost:8000.");

const client = new OpenAI({
  baseURL: `${url.replace(/\/+$/, "").replace(/\/v1$/, "")}/v1`,
  apiKey: process.env.TUNESERVE_API_KEY || "none",
  maxRetries: 0,
  timeout: 300_000,
});
const messages = [{ role: "user", content: prompt }];
const expectation = expected ? new RegExp(expected, "s") : /\S/;
const fields = { temperature: 0, max_tokens: expected ? 200 : 24 };
let model;
let whole;

before(async () => {
  for await (const each of client.models.list()) model ??= each.id;
  assert.ok(model, "the server lists no model");
});

test("models are listed and found by name", async () => {
  const found = await client.models.retrieve(model);
  assert.deepEqual([found.id, found.object], [model, "model"]);
});

test("chat", async () => {
  const answer = await client.chat.completions.create({ model, messages, ...fields });
  const { message, finish_reason: reason } = answer.choices[0];
  assert.equal(message.role, "assistant");
  assert.match(message.content, expectation);
  assert.match(reason, /^(stop|length)$/);
  const { prompt_tokens: asked, completion_tokens: answered, total_tokens: total } = answer.usage;
  assert.equal(asked + answered, total);
  whole = message.content;
});

test("chat, streaming: the same text, in several pieces", async () => {
  const stream = await client.chat.completions.create({
    model,
    messages,
    ...fields,
    stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  const choices = chunks.flatMap((chunk) => chunk.choices);
  const text = choices.map((choice) => choice.delta.content ?? "").join("");
  assert.equal(choices[0].delta.role, "assistant");
  assert.match(text, expectation);
  assert.equal(text, whole);
  assert.ok(choices.filter((choice) => choice.delta.content).length > 1, "the text came in one piece");
  assert.match(choices.at(-1).finish_reason, /^(stop|length)$/);
  assert.ok(chunks.at(-1).usage.completion_tokens > 0);
});

test("chat, through the package's own stream helper", async () => {
  const stream = client.chat.completions.stream({ model, messages, ...fields });
  assert.equal(await stream.finalContent(), whole);
});

test("a stream may be left early", async () => {
  const stream = await client.chat.completions.create({ model, messages, ...fields, stream: true });
  for await (const chunk of stream) {
    assert.equal(chunk.object, "chat.completion.chunk");
    break;
  }
  const answer = await client.chat.completions.create({ model, messages, ...fields, max_tokens: 1 });
  assert.equal(answer.usage.completion_tokens, 1);
});

test("completions, in one piece and streaming", async () => {
  const request = { model, prompt: "One, two, three,", temperature: 0, max_tokens: 8 };
  const answer = await client.completions.create(request);
  assert.ok(answer.choices[0].text);
  let text = "";
  for await (const chunk of await client.completions.create({ ...request, stream: true })) {
    text += chunk.choices[0]?.text ?? "";
  }
  assert.equal(text, answer.choices[0].text);
});

test("requests at once are answered as they are alone", async () => {
  const ask = () => client.chat.completions.create({ model, messages, ...fields });
  const answers = await Promise.all([ask(), ask(), ask(), ask()]);
  for (const answer of answers) assert.match(answer.choices[0].message.content, expectation);
  assert.equal(new Set(answers.map((answer) => answer.id)).size, answers.length);
});

test("an unknown model is a NotFoundError", async () => {
  const asked = client.chat.completions.create({ model: "no-such-model", messages });
  await assert.rejects(asked, (error) => error instanceof NotFoundError && error.type === "invalid_request_error");
});

test("a value out of its range is a BadRequestError that names it", async () => {
  const asked = client.chat.completions.create({ model, messages, temperature: -1 });
  await assert.rejects(asked, (error) => error instanceof BadRequestError && error.param === "temperature");
});

test("a stream that is refused is a BadRequestError before it begins", async () => {
  const asked = client.chat.completions.create({ model, messages: [], stream: true });
  await assert.rejects(asked, BadRequestError);
});
