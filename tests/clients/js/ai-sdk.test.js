// The Vercel AI SDK over each of its providers.
import assert from "node:assert/strict";
import { test } from "node:test";

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, Output, isStepCount, streamText, tool } from "ai";
import { z } from "zod";

import { ANSWER, real, scripted } from "./servers.js";

const Num = z.object({ even: z.boolean(), size: z.enum(["small", "large"]) });
const openai = (url) => createOpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const compatible = (url) =>
  createOpenAICompatible({ name: "tuneserve", baseURL: `${url}/v1`, apiKey: "none", includeUsage: true, supportsStructuredOutputs: true });
const anthropic = (url) => createAnthropic({ baseURL: `${url}/v1`, apiKey: "none" });
const PROVIDERS = {
  "@ai-sdk/openai (chat)": (url, model) => openai(url).chat(model),
  "@ai-sdk/openai (responses)": (url, model) => openai(url).responses(model),
  "@ai-sdk/openai-compatible": (url, model) => compatible(url)(model),
  "@ai-sdk/anthropic": (url, model) => anthropic(url)(model),
};
const tools = {
  get_weather: tool({
    description: "The weather of a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => `21 degrees in ${city}`,
  }),
};

for (const [name, of] of Object.entries(PROVIDERS)) {
  test(`${name}: generateText and streamText`, async () => {
    const asked = { model: of(real, "tickets"), prompt: "I was charged twice.", temperature: 0, maxOutputTokens: 40, maxRetries: 0 };
    const whole = await generateText(asked);
    assert.match(whole.text, /"billing"/);
    const stream = streamText(asked);
    let text = "";
    for await (const part of stream.textStream) text += part;
    assert.equal(text, whole.text);
    const usage = await stream.usage;
    assert.equal(usage.outputTokens, whole.usage.outputTokens);
    assert.equal(usage.inputTokens, whole.usage.inputTokens);
    assert.equal(await stream.finishReason, "stop");
  });

  test(`${name}: a loop of tools, whole and streamed`, async () => {
    const asked = {
      model: of(scripted, "tuned"), prompt: "The weather in Oslo?", tools, stopWhen: isStepCount(3), maxRetries: 0,
    };
    assert.equal((await generateText(asked)).text, ANSWER);
    const stream = streamText(asked);
    let text = "";
    for await (const part of stream.textStream) text += part;
    assert.equal(text, ANSWER);
    assert.equal((await stream.steps).length, 2);
  });

  test(`${name}: structured output`, async () => {
    const { output } = await generateText({
      model: of(real, "tickets"), prompt: "Describe eight.", output: Output.object({ schema: Num }), temperature: 0,
      maxOutputTokens: 80, maxRetries: 0,
    });
    assert.equal(typeof output.even, "boolean");
  });
}

for (const [name, model] of [
  ["@ai-sdk/openai", openai(real).embedding("demo")],
  ["@ai-sdk/openai-compatible", compatible(real).embeddingModel("demo")],
]) {
  test(`${name}: embedMany`, async () => {
    const { embeddings } = await embedMany({ model, values: ["Hello", "Good-bye"], maxRetries: 0 });
    assert.deepEqual(embeddings.map((each) => each.length), [576, 576]);
  });
}
