// OpenAI's Node client.
import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

import { ANSWER, real, scripted } from "./servers.js";

const client = new OpenAI({ baseURL: `${real}/v1`, apiKey: "none", maxRetries: 0 });
const script = new OpenAI({ baseURL: `${scripted}/v1`, apiKey: "none", maxRetries: 0 });
const Num = z.object({ even: z.boolean(), size: z.enum(["small", "large"]) });
const messages = [{ role: "user", content: "I was charged twice." }];

test("chat: whole, streamed, with usage", async () => {
  const whole = await client.chat.completions.create({ model: "tickets", messages, temperature: 0, max_tokens: 40 });
  assert.match(whole.choices[0].message.content, /"billing"/);
  const stream = client.chat.completions.stream({
    model: "tickets", messages, temperature: 0, max_tokens: 40, stream_options: { include_usage: true },
  });
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
  assert.equal(text, whole.choices[0].message.content);
  assert.equal((await stream.totalUsage()).completion_tokens, whole.usage.completion_tokens);
});

test("chat: .parse() of a zod schema", async () => {
  const parsed = await client.chat.completions.parse({
    model: "demo", messages: [{ role: "user", content: "Describe eight." }], temperature: 0, max_tokens: 64,
    response_format: zodResponseFormat(Num, "number"),
  });
  assert.equal(typeof parsed.choices[0].message.parsed.even, "boolean");
});

test("tools: runTools, whole and streamed", async () => {
  for (const stream of [false, true]) {
    const runner = script.chat.completions.runTools({
      model: "tuned",
      stream,
      messages: [{ role: "user", content: "The weather in Oslo?" }],
      tools: [
        {
          type: "function",
          function: {
            name: "get_weather",
            description: "The weather of a city.",
            parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
            parse: JSON.parse,
            function: ({ city }) => `21 degrees in ${city}`,
          },
        },
      ],
    });
    assert.equal(await runner.finalContent(), ANSWER);
  }
});

test("responses: conversation, stream, parse", async () => {
  const body = { model: "demo", temperature: 0, max_output_tokens: 8 };
  const first = await client.responses.create({ ...body, input: "Hi" });
  const second = await client.responses.create({ ...body, input: "Go on.", previous_response_id: first.id });
  assert.ok(second.usage.input_tokens > first.usage.total_tokens);
  let text = "";
  for await (const event of await client.responses.create({ ...body, input: "Hi", stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  assert.equal(text, first.output_text);
  const parsed = await client.responses.parse({
    ...body, input: "Describe eight.", max_output_tokens: 64, text: { format: zodTextFormat(Num, "number") },
  });
  assert.equal(typeof parsed.output_parsed.even, "boolean");
});

test("embeddings: base and adapter", async () => {
  const [base, adapter] = await Promise.all(
    ["demo", "tickets"].map(async (model) => (await client.embeddings.create({ model, input: "Hello" })).data[0]),
  );
  assert.equal(base.embedding.length, 576);
  assert.notDeepEqual(base.embedding, adapter.embedding);
});

test("errors: unknown model, wrong value", async () => {
  await assert.rejects(client.chat.completions.create({ model: "other", messages }), OpenAI.NotFoundError);
  await assert.rejects(
    client.chat.completions.create({ model: "demo", messages, n: 1e9 }),
    (error) => error instanceof OpenAI.BadRequestError && error.param === "n",
  );
});
