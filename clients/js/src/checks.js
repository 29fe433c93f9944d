/** Is a server OpenAI-compatible: the list of checks, and running them. */

import * as refusals from "./checks/errors.js";
import * as generation from "./checks/generation.js";
import * as optional from "./checks/optional.js";
import { expect, Finding, Target } from "./checks/result.js";
import { ApiError, ProtocolError, quoted, TransportError } from "./errors.js";

/**
 * @typedef {import("./checks/result.js").Check} Check
 * @typedef {import("./checks/result.js").CheckResult} CheckResult
 * @typedef {import("./checks/result.js").Outcome} Outcome
 */

export const REACHABLE = "server reachable";
const MODELS = "models list";
const LONGEST_DETAIL = 500;
/** @type {Record<string, Check>} */
const REQUIRED = {
  "unknown model": refusals.unknownModel,
  chat: generation.chat,
  "chat streaming": generation.chatStreaming,
  "streaming usage": generation.streamingUsage,
  usage: generation.usage,
  max_tokens: generation.maxTokens,
  stop: generation.stop,
  seed: generation.seed,
  "temperature 0": generation.temperatureZero,
  completions: generation.completions,
  "completions streaming": generation.completionsStreaming,
  "concurrent requests": generation.concurrentRequests,
  "invalid JSON": refusals.invalidJson,
  "invalid value": refusals.invalidValue,
  "error form": refusals.errorForm,
};
/** @type {Record<string, Check>} */
const OPTIONAL = {
  n: optional.severalChoices,
  logprobs: optional.logprobs,
  tools: optional.tools,
  json_schema: optional.jsonSchema,
  health: optional.health,
};
// Statuses that say something about the caller or the load, not about the feature.
const NO_REFUSALS = [401, 403, 408, 429];

/**
 * Run every check in order. The first result is `REACHABLE`, and the only one if it failed. A feature that is optional
 * and refused with a 4xx is "unsupported"; what the model at hand cannot show is "skipped".
 * @param {import("./client.js").OpenAIClient} client
 * @param {string} [model] The first that the server lists, if left out.
 * @returns {AsyncGenerator<CheckResult, void, void>}
 */
export async function* runChecks(client, model) {
  const reached = await timed(REACHABLE, () => reach(client), false);
  yield reached;
  if (reached.outcome !== "pass") return;
  /** @type {string[]} */
  const names = [];
  yield await timed(MODELS, () => list(client, names), false);
  const checks = Object.entries({ ...REQUIRED, ...OPTIONAL });
  const chosen = model ?? names[0];
  if (chosen === undefined) {
    const detail = "no model is known; name one.";
    yield* checks.map(([name]) => ({ name, outcome: /** @type {const} */ ("skipped"), detail, milliseconds: 0 }));
    return;
  }
  const target = new Target(client, chosen);
  for (const [name, check] of checks) {
    yield await timed(name, () => check(target), Object.hasOwn(OPTIONAL, name));
  }
}

async function reach(client) {
  const { status } = await client.get("/v1/models");
  return `${client.url} answers with status ${status}.`;
}

async function list(client, names) {
  for (const model of await client.models()) names.push(model.id);
  expect(names.length, "the list of models is empty.");
  return `it lists ${quoted(names[0])}${names.length > 1 ? ` and ${names.length - 1} more` : ""}.`;
}

/** @returns {Promise<CheckResult>} */
async function timed(name, check, mayRefuse) {
  const started = performance.now();
  const [outcome, said] = await run(check, mayRefuse);
  const milliseconds = Math.round(performance.now() - started);
  const detail = said.length > LONGEST_DETAIL ? `${said.slice(0, LONGEST_DETAIL)}…` : said;
  return { name, outcome, detail, milliseconds };
}

/** @returns {Promise<[Outcome, string]>} */
async function run(check, mayRefuse) {
  try {
    return ["pass", await check()];
  } catch (error) {
    if (error instanceof Finding) return [error.outcome, error.message];
    if (error instanceof ApiError) {
      const refused = mayRefuse && error.status >= 400 && error.status < 500 && !NO_REFUSALS.includes(error.status);
      if (refused) return ["unsupported", `it is refused with status ${error.status} (${error.explanation}).`];
      return ["fail", error.message];
    }
    if (error instanceof TransportError || error instanceof ProtocolError) return ["fail", error.message];
    throw error;
  }
}
