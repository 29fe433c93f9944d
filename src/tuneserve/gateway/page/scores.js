// How likely a model finds the tokens of an answer, its own or another's.

import { post, stream } from "./api.js";

const ALTERNATIVES = 5;
// The least likely that is still of its class, from 0 on.
const CLASSES = [0.5, 0.2, 0.05, 0.01, 0.001];

export const letters = (text) => Array.from(text);

// Yields the answer so far as tokens: {text, logprob, top: [{text, logprob}], end}, which counts the letters up to its end.
export async function* answerTokens(body, signal) {
  const tokens = [];
  // A token may end within a letter.
  const decoder = new TextDecoder();
  let end = 0;
  const asked = { ...body, logprobs: true, top_logprobs: ALTERNATIVES };
  for await (const event of stream("v1/chat/completions", asked, signal)) {
    const found = event.choices[0]?.logprobs?.content ?? [];
    const text = ({ token, logprob }) => ({ text: token, logprob });
    for (const each of found) {
      end += letters(decoder.decode(new Uint8Array(each.bytes), { stream: true })).length;
      tokens.push({ ...text(each), bytes: each.bytes, top: each.top_logprobs.map(text), end });
    }
    if (found.length) yield tokens;
  }
  yield tokens;
}

// Returns the same of a given answer to `messages`, as `model` cuts it into tokens.
export async function scoredAnswer(model, messages, answer, signal) {
  const asked = post("tokenize", { model, messages, add_generation_prompt: true }, signal);
  const answered = post("tokenize", { model, prompt: answer, add_special_tokens: false }, signal);
  const [before, after] = [(await asked).tokens, (await answered).tokens];
  if (!after.length) return [];
  const body = { model, prompt: [...before, ...after], max_tokens: 0, echo: true, logprobs: ALTERNATIVES };
  const { logprobs } = (await post("v1/completions", body, signal)).choices[0];
  const { tokens, token_logprobs: values, top_logprobs: tops, text_offset: offsets } = logprobs;
  const all = letters(answer).length;
  return after.map((_, index) => {
    const place = before.length + index;
    const top = Object.entries(tops[place] ?? {}).map(([text, logprob]) => ({ text, logprob }));
    top.sort((one, other) => other.logprob - one.logprob);
    const end = index + 1 < after.length ? offsets[place + 1] - offsets[before.length] : all;
    return { text: tokens[place], logprob: values[place], top, end };
  });
}

export const surpriseClass = (logprob) => `s${CLASSES.filter((least) => Math.exp(logprob) < least).length}`;

export function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return `${share >= 99.95 ? "100" : share >= 1 ? share.toFixed(1) : share >= 0.001 ? share.toPrecision(1) : "<0.001"}%`;
}

export const meanSurprise = (tokens) => -tokens.reduce((sum, token) => sum + token.logprob, 0) / tokens.length;
