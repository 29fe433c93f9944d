/**
 * What an OpenAI-compatible server answers (https://platform.openai.com/docs/api-reference). Fields that the API
 * requires are required here; further ones are left as they are, for servers add their own.
 *
 * @typedef {{id: string, object: "model"}} Model
 * @typedef {{prompt_tokens: number, completion_tokens: number, total_tokens: number}} Usage
 * @typedef {{id: string, type: "function", function: {name: string, arguments: string}}} ToolCall
 * @typedef {{role: string, content?: string | null, tool_calls?: ToolCall[] | null}} ChatMessage
 * @typedef {{token: string, logprob: number, top_logprobs?: TokenLogprob[]}} TokenLogprob
 * @typedef {{content?: TokenLogprob[] | null}} ChatLogprobs
 * @typedef {{index: number, message: ChatMessage, finish_reason: string, logprobs?: ChatLogprobs | null}} ChatChoice
 * @typedef {{role?: string | null, content?: string | null}} Delta
 * @typedef {{index: number, delta: Delta, finish_reason?: string | null}} ChatChunkChoice
 * @typedef {{index: number, text: string, finish_reason?: string | null}} CompletionChoice
 * @typedef {{id: string, object: string, created: number, model: string, usage?: Usage | null}} Answer
 * @typedef {Answer & {choices: ChatChoice[]}} ChatCompletion
 * @typedef {Answer & {choices: ChatChunkChoice[]}} ChatChunk
 * @typedef {Answer & {choices: CompletionChoice[]}} Completion
 */

/** A check of one value; throws with the path to what is wrong. @typedef {(value: any, path: string) => void} Shape */

/** @type {Shape} */
const text = (value, path) => expectType(typeof value === "string", "text", path);
/** @type {Shape} */
const integer = (value, path) => expectType(Number.isInteger(value), "an integer", path);
/** @type {Shape} */
const number = (value, path) => expectType(typeof value === "number", "a number", path);

/** @returns {Shape} */
const optional = (shape) => (value, path) => value === undefined || value === null || shape(value, path);
/** @returns {Shape} */
const exactly = (expected) => (value, path) => expectType(value === expected, `'${expected}'`, path);

/** @returns {Shape} */
const list =
  (shape, least = 0) =>
  (value, path) => {
    expectType(Array.isArray(value) && value.length >= least, least ? "a list that is not empty" : "a list", path);
    value.forEach((item, index) => shape(item, `${path}[${index}]`));
  };

/** @returns {Shape} */
const object = (fields) => (value, path) => {
  expectType(typeof value === "object" && value !== null && !Array.isArray(value), "an object", path);
  for (const [name, shape] of Object.entries(fields)) shape(value[name], `${path}.${name}`);
};

const usage = object({ prompt_tokens: integer, completion_tokens: integer, total_tokens: integer });
const toolCall = object({
  id: text,
  type: exactly("function"),
  function: object({ name: text, arguments: text }),
});
const tokenLogprob = object({
  token: text,
  logprob: number,
  top_logprobs: optional(list(object({ token: text, logprob: number }))),
});
const chatChoice = object({
  index: integer,
  message: object({ role: text, content: optional(text), tool_calls: optional(list(toolCall)) }),
  finish_reason: text,
  logprobs: optional(object({ content: optional(list(tokenLogprob)) })),
});
const chatChunkChoice = object({
  index: integer,
  delta: object({ role: optional(text), content: optional(text) }),
  finish_reason: optional(text),
});
const completionChoice = object({ index: integer, text, finish_reason: optional(text) });

/** @returns {Shape} */
const answer = (kind, choices) =>
  object({ id: text, object: exactly(kind), created: integer, model: text, choices, usage: optional(usage) });

/** @template T @param {Shape} shape @returns {(value: any) => T} */
const checked = (shape) => (value) => {
  shape(value, "$");
  return value;
};

/** @type {(value: any) => ChatCompletion} */
export const chatCompletion = checked(answer("chat.completion", list(chatChoice, 1)));
/** @type {(value: any) => ChatChunk} */
export const chatChunk = checked(answer("chat.completion.chunk", list(chatChunkChoice)));
/** @type {(value: any) => Completion} */
export const completion = checked(answer("text_completion", list(completionChoice, 1)));
/** @type {(value: any) => Completion} */
export const completionChunk = checked(answer("text_completion", list(completionChoice)));

/** @type {(value: any) => Model[]} */
export const modelList = (value) => {
  object({ data: list(object({ id: text, object: exactly("model") })) })(value, "$");
  return value.data;
};

function expectType(condition, what, path) {
  if (!condition) throw new TypeError(`${path} is not ${what}`);
}
