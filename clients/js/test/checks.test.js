// Protects the checker: a server that is right passes everything, and each fault fails exactly its own check.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";

import { REACHABLE, runChecks } from "../src/checks.js";
import { OpenAIClient } from "../src/client.js";
import { MODEL, startFakeServer } from "./fake-server.js";

const NAMES = JSON.parse(await readFile(new URL("names.json", import.meta.url), "utf-8"));
const FAULTS = [
  ["models html", "models list"],
  ["any model", "unknown model"],
  ["unknown model 400", "unknown model"],
  ["unknown model bare", "unknown model"],
  ["chat role", "chat"],
  ["chat odd reason", "chat"],
  ["stream no choices", "chat streaming"],
  ["stream no role", "chat streaming"],
  ["stream no done", "chat streaming"],
  ["stream no reason", "chat streaming"],
  ["stream odd reason", "chat streaming"],
  ["stream two reasons", "chat streaming"],
  ["stream goes on", "chat streaming"],
  ["stream new ids", "chat streaming"],
  ["stream without end", "chat streaming"],
  ["stream lost", "chat streaming"],
  ["stream plain text", "chat streaming"],
  ["stream error", "chat streaming"],
  ["usage stream missing", "streaming usage"],
  ["usage stream wrong", "streaming usage"],
  ["usage stream choices", "streaming usage"],
  ["usage stream no done", "streaming usage"],
  ["usage missing", "usage"],
  ["usage wrong", "usage"],
  ["max_tokens ignored", "max_tokens"],
  ["max_tokens reason", "max_tokens"],
  ["stop ignored", "stop"],
  ["stop included", "stop"],
  ["stop early", "stop"],
  ["stop reason", "stop"],
  ["seed ignored", "seed"],
  ["temperature ignored", "temperature 0"],
  ["completions empty", "completions"],
  ["completions odd reason", "completions"],
  ["completion stream empty", "completions streaming"],
  ["completion stream no done", "completions streaming"],
  ["completion stream no reason", "completions streaming"],
  ["completion stream new ids", "completions streaming"],
  ["one at a time", "concurrent requests"],
  ["crowd silent", "concurrent requests"],
  ["same ids", "concurrent requests"],
  ["json 422", "invalid JSON"],
  ["value 422", "invalid value"],
  ["cold accepted", "invalid value"],
  ["errors bare", "error form"],
  ["errors without code", "error form"],
  ["errors with a wrong message", "error form"],
  ["errors with a wrong type", "error form"],
  ["errors with a wrong param", "error form"],
  ["errors with a wrong code", "error form"],
  ["n ignored", "n"],
  ["n broken", "n"],
  ["logprobs ignored", "logprobs"],
  ["logprobs positive", "logprobs"],
  ["logprobs alone", "logprobs"],
  ["tools ignored", "tools"],
  ["tools other", "tools"],
  ["tools broken arguments", "tools"],
  ["response_format ignored", "json_schema"],
  ["response_format extra", "json_schema"],
  ["response_format broken", "json_schema"],
  ["health broken", "health"],
];

async function check(faults, model) {
  const server = await startFakeServer(...faults);
  try {
    return await resultsOf(server.url, model);
  } finally {
    await server.close();
  }
}

async function resultsOf(url, model) {
  const results = [];
  for await (const result of runChecks(new OpenAIClient(url, { timeout: 20 }), model)) results.push(result);
  return results;
}

const named = (results, outcome) => results.filter((each) => each.outcome === outcome).map((each) => each.name);

test("a server that is right passes every check", async () => {
  const results = await check([]);
  assert.deepEqual(named(results, "pass"), NAMES);
  assert.deepEqual(
    results.filter((result) => !result.detail.endsWith(".") || result.milliseconds < 0),
    [],
  );
});

test("every check is shown to fail", () => {
  const covered = new Set(FAULTS.map(([, name]) => name));
  assert.deepEqual(covered, new Set(NAMES.filter((name) => name !== REACHABLE)));
});

for (const [fault, name] of FAULTS) {
  test(`${fault}: fails "${name}" and nothing else`, async () => {
    const results = await check([fault], name === "models list" ? MODEL : undefined);
    assert.deepEqual(named(results, "fail"), [name]);
    assert.deepEqual(
      named(results, "pass"),
      NAMES.filter((each) => each !== name),
    );
  });
}

for (const [faults, name, detail] of [
  [["chat silent"], "chat", "the message has no text."],
  [["stream no choices"], "chat streaming", "the stream has no chunk with a choice."],
  [["stream goes on"], "chat streaming", "the stream goes on after its finish_reason."],
  [["stream without end"], "chat streaming", "the stream goes on after 10000 chunks."],
  [["usage stream missing"], "streaming usage", "the last chunk has no usage."],
  [["stop included"], "stop", "the answer contains the stop string 'one'."],
  [
    ["json accepted", "cold accepted"],
    "error form",
    "neither broken JSON nor temperature -1 is answered with an error.",
  ],
]) {
  test(`${faults}: "${name}" says what was found`, async () => {
    const failed = (await check(faults)).find((result) => result.name === name && result.outcome === "fail");
    assert.equal(failed.detail, detail);
  });
}

for (const [fault, name] of [
  ["n refused", "n"],
  ["logprobs refused", "logprobs"],
  ["tools refused", "tools"],
  ["response_format refused", "json_schema"],
  ["health missing", "health"],
]) {
  test(`${fault}: is an optional feature that is not supported`, async () => {
    const results = await check([fault]);
    assert.deepEqual(named(results, "unsupported"), [name]);
    assert.deepEqual(named(results, "fail"), []);
  });
}

test("missing completions fail both of their checks", async () => {
  const results = await check(["completions missing"]);
  assert.deepEqual(named(results, "fail"), ["completions", "completions streaming"]);
});

test("another object than a chat completion fails with where it differs", async () => {
  const chat = (await check(["chat object"])).find((result) => result.name === "chat");
  assert.equal(chat.outcome, "fail");
  assert.match(chat.detail, /\$\.object is not 'chat\.completion'/);
});

test("a model of few words skips what it cannot show", async () => {
  const results = await check(["short model"]);
  assert.deepEqual(named(results, "skipped"), ["max_tokens"]);
  assert.deepEqual(named(results, "fail"), []);
});

for (const fault of ["models empty", "models locked"]) {
  test(`${fault}: without a model the rest is skipped`, async () => {
    const results = await check([fault]);
    assert.deepEqual(named(results, "fail"), ["models list"]);
    assert.deepEqual(named(results, "skipped"), NAMES.slice(2));
  });
}

test("an unreachable server ends it", async () => {
  const server = await startFakeServer();
  await server.close();
  const results = await resultsOf(server.url);
  assert.deepEqual(named(results, "fail"), [REACHABLE]);
  assert.equal(results.length, 1);
  assert.match(results[0].detail, /cannot be reached/);
});
