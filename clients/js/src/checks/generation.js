/** What a server must generate, in one piece and streamed. */

import { expect, Finding, GREEDY_TOKENS, messages, PROMPT, shown, textOf } from "./result.js";

/** @typedef {import("./result.js").Check} Check */

const FEW_TOKENS = 3;
const STOP_LENGTH = 4;
const MAX_CHUNKS = 10_000;
const TEXT = "One, two, three, four,";
const NUMBERS = ["two", "three", "four", "five"];
const GREEDY = { temperature: 0, max_tokens: GREEDY_TOKENS };

/** A chat completion has the assistant's words and says why it ended. @type {Check} */
export async function chat(target) {
  const answer = await target.greedy();
  const { message, finish_reason: reason } = answer.choices[0];
  expect(message.role === "assistant", `the message's role is ${shown(message.role)} instead of 'assistant'.`);
  expect(textOf(answer), "the message has no text.");
  expectReason(reason);
  return `it answered with ${[...textOf(answer)].length} characters.`;
}

/** Chunks have the role first, then the same text as in one piece, then one finish_reason, then [DONE]. @type {Check} */
export async function chatStreaming(target) {
  const chunks = await all(target.client.chatStream(messages(PROMPT), { model: target.model, ...GREEDY }));
  const choices = chunks.flatMap((chunk) => chunk.choices);
  expect(choices.length, "the stream has no chunk with a choice.");
  const role = choices[0].delta.role;
  expect(role === "assistant", `the first chunk's role is ${shown(role)} instead of 'assistant'.`);
  expectOneReason(choices);
  expectOneId(chunks);
  const text = choices.map((choice) => choice.delta.content ?? "").join("");
  const same = text === textOf(await target.greedy());
  expect(same, "the streamed text differs from the text in one piece at temperature 0.");
  return `it came in ${chunks.length} chunks.`;
}

/** With include_usage the last chunk has no choices and the usage of the whole request. @type {Check} */
export async function streamingUsage(target) {
  const fields = { model: target.model, ...GREEDY, stream_options: { include_usage: true } };
  const last = (await all(target.client.chatStream(messages(PROMPT), fields))).at(-1);
  expect(last?.usage, "the last chunk has no usage.");
  expect(last.choices.length === 0, "the chunk with the usage has choices too.");
  return summed(last.usage);
}

/** The usage counts prompt and completion, and adds them up. @type {Check} */
export async function usage(target) {
  return summed((await target.greedy()).usage);
}

/** An answer that would be longer ends after max_tokens with finish_reason 'length'. @type {Check} */
export async function maxTokens(target) {
  const answer = await target.chat({ temperature: 0, max_tokens: FEW_TOKENS });
  const used = answer.usage?.completion_tokens;
  expect(used === undefined || used <= FEW_TOKENS, `the answer has ${used} tokens with max_tokens ${FEW_TOKENS}.`);
  const reason = answer.choices[0].finish_reason;
  if (used !== undefined && reason === "stop" && textOf(answer) === textOf(await target.greedy())) {
    throw new Finding("skipped", `the model ends its answer by itself after ${used} tokens.`);
  }
  expect(reason === "length", `the finish_reason is ${shown(reason)} instead of 'length' after ${FEW_TOKENS} tokens.`);
  return `the answer ended after ${FEW_TOKENS} tokens with finish_reason 'length'.`;
}

/** The answer ends before the stop string, with finish_reason 'stop'. @type {Check} */
export async function stop(target) {
  const whole = textOf(await target.greedy());
  const characters = [...whole];
  const middle = Math.floor(characters.length / 2);
  const text = characters.slice(middle, middle + STOP_LENGTH).join("");
  const before = whole.slice(0, whole.indexOf(text));
  if (!before) {
    throw new Finding("skipped", "the model's answer is too short or too uniform to be stopped in its middle.");
  }
  const answer = await target.chat({ ...GREEDY, stop: [text] });
  const reason = answer.choices[0].finish_reason;
  expect(!textOf(answer).includes(text), `the answer contains the stop string ${shown(text)}.`);
  expect(reason === "stop", `the finish_reason is ${shown(reason)} instead of 'stop' at a stop string.`);
  const same = textOf(answer).trimEnd() === before.trimEnd();
  expect(same, "the text before the stop string differs from that without one.");
  return `the answer ended before ${shown(text)}.`;
}

/** The same seed gives the same answer at temperature 1. @type {Check} */
export async function seed(target) {
  const fields = { temperature: 1, seed: 7, max_tokens: GREEDY_TOKENS };
  const first = textOf(await target.chat(fields));
  expect(first === textOf(await target.chat(fields)), "two answers with the same seed differ.");
  return "two answers with the same seed are equal.";
}

/** Temperature 0 gives the same answer again. @type {Check} */
export async function temperatureZero(target) {
  const again = textOf(await target.chat(GREEDY));
  expect(again === textOf(await target.greedy()), "two answers at temperature 0 differ.");
  return "two answers at temperature 0 are equal.";
}

/** A text is continued. @type {Check} */
export async function completions(target) {
  const answer = await target.client.completion(TEXT, { model: target.model, ...GREEDY });
  const { text, finish_reason: reason } = answer.choices[0];
  expect(text, "the continuation has no text.");
  expectReason(reason);
  return `it continued the text with ${[...text].length} characters.`;
}

/** The chunks carry a text, then one finish_reason, then [DONE]. @type {Check} */
export async function completionsStreaming(target) {
  const chunks = await all(target.client.completionStream(TEXT, { model: target.model, ...GREEDY }));
  const choices = chunks.flatMap((chunk) => chunk.choices);
  expect(
    choices.some((choice) => choice.text),
    "the streamed continuation has no text.",
  );
  expectOneReason(choices);
  expectOneId(chunks);
  return `it came in ${chunks.length} chunks.`;
}

/** Four requests at once are all answered, each for itself. @type {Check} */
export async function concurrentRequests(target) {
  const ask = (number) => target.chat(GREEDY, `Count from ${number} to twenty in words.`);
  const answers = await Promise.all(NUMBERS.map(ask));
  expect(answers.every(textOf), "one of four answers at once has no text.");
  expect(new Set(answers.map((answer) => answer.id)).size === NUMBERS.length, "different answers have the same id.");
  return "four requests at once were all answered.";
}

async function all(stream) {
  const chunks = [];
  for await (const chunk of stream) {
    chunks.push(chunk);
    expect(chunks.length <= MAX_CHUNKS, `the stream goes on after ${MAX_CHUNKS} chunks.`);
  }
  return chunks;
}

function expectReason(reason) {
  expect(["stop", "length"].includes(reason), `the finish_reason is ${shown(reason)} instead of 'stop' or 'length'.`);
}

function expectOneReason(choices) {
  const reasons = choices.map((choice) => choice.finish_reason ?? null);
  const given = reasons.filter((reason) => reason !== null);
  expect(given.length === 1, `the stream has ${given.length} finish_reasons instead of one.`);
  expectReason(given[0]);
  expect(reasons.at(-1) !== null, "the stream goes on after its finish_reason.");
}

function expectOneId(chunks) {
  expect(new Set(chunks.map((chunk) => chunk.id)).size === 1, "the chunks of one answer have different ids.");
}

function summed(counts) {
  expect(counts, "the answer has no usage.");
  const { prompt_tokens: prompt, completion_tokens: completion, total_tokens: total } = counts;
  const sum = `${prompt} + ${completion} tokens, and ${total} in total`;
  expect(prompt > 0 && completion > 0 && prompt + completion === total, `the usage does not add up: ${sum}.`);
  return `the usage adds up: ${sum}.`;
}
