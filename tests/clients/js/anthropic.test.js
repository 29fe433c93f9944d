// Anthropic's Node client.
import assert from "node:assert/strict";
import { test } from "node:test";

import Anthropic from "@anthropic-ai/sdk";

import { ANSWER, real, scripted } from "./servers.js";

const client = new Anthropic({ baseURL: real, apiKey: "none", maxRetries: 0 });
const script = new Anthropic({ baseURL: scripted, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Tell me of the sea." }];
const textOf = (message) => message.content.map((block) => block.text ?? "").join("");

test("messages: whole, streamed, counted", async () => {
  const body = { model: "demo", messages, max_tokens: 12, temperature: 0 };
  const whole = await client.messages.create(body);
  const streamed = await client.messages.stream(body).finalMessage();
  assert.equal(textOf(streamed), textOf(whole));
  const { input_tokens: counted } = await client.messages.countTokens({ model: "demo", messages });
  for (const { usage } of [whole, streamed]) {
    assert.equal(usage.input_tokens + (usage.cache_read_input_tokens ?? 0), counted);
  }
});

test("tools: a call and its result", async () => {
  const tools = [
    { name: "get_weather", input_schema: { type: "object", properties: { city: { type: "string" } } } },
  ];
  const question = { role: "user", content: "The weather in Oslo?" };
  const body = { model: "tuned", max_tokens: 200, tools };
  const called = await script.messages.stream({ ...body, messages: [question] }).finalMessage();
  const call = called.content.find((block) => block.type === "tool_use");
  assert.deepEqual(call.input, { city: "Oslo" });
  const result = { type: "tool_result", tool_use_id: call.id, content: "21 degrees" };
  const turns = [question, { role: "assistant", content: called.content }, { role: "user", content: [result] }];
  assert.equal(textOf(await script.messages.create({ ...body, messages: turns })), ANSWER);
});

test("errors: unknown model", async () => {
  await assert.rejects(
    client.messages.create({ model: "other", messages, max_tokens: 3 }),
    Anthropic.NotFoundError,
  );
});
