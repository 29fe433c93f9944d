/** The command line: arguments in, a table or JSON out, and the exit code that scripts rely on. */

import { parseArgs } from "node:util";

import { REACHABLE, runChecks } from "./checks.js";
import { InputError, OpenAIClient } from "./client.js";

/**
 * @typedef {import("./checks.js").CheckResult} CheckResult
 * @typedef {{write: (text: string) => unknown, isTTY?: boolean}} Sink
 */

// A small model on a busy CPU takes its time over 24 tokens.
const SILENT_SECONDS = 180;
const WORDS = { pass: "pass", fail: "FAIL", unsupported: "not supported", skipped: "skipped" };
const COUNTED = { pass: "passed", fail: "failed", unsupported: "not supported", skipped: "skipped" };
const COLOURS = { pass: 32, fail: 31, unsupported: 33, skipped: 2 };
const OPTIONS = /** @type {const} */ ({
  model: { type: "string" },
  "api-key": { type: "string" },
  json: { type: "boolean", default: false },
  help: { type: "boolean", short: "h", default: false },
});

/** @param {string} name */
const help = (name) => `Usage: ${name} URL [--model MODEL] [--api-key KEY] [--json]

Find out, feature by feature, whether a server is OpenAI-compatible: models, chat, completions, streams, usage, sampling,
n, logprobs, a named tool, json_schema, errors and /health. 'tuneserve check' has these checks and further ones: the
responses, messages and embeddings APIs, tokens, and fields that only some servers have.

  URL              the server, like http://localhost:8000, with or without /v1
  --model MODEL    the model to ask; the first that the server lists
  --api-key KEY    the server's key; also taken from TUNESERVE_API_KEY
  --json           print the results as JSON
  -h, --help       print this

Exit codes: 0 all that is required passes, 1 something fails, 2 bad usage or no server.
Example: ${name} http://localhost:8000
`;

/**
 * Run the command line and return its exit code.
 * @param {string[]} args
 * @param {{name?: string, env?: Record<string, string | undefined>, stdout?: Sink, stderr?: Sink}} [surroundings]
 * @returns {Promise<0 | 1 | 2>}
 */
export async function main(
  args,
  { name = "tuneserve-check", env = process.env, stdout = process.stdout, stderr = process.stderr } = {},
) {
  try {
    const { values, positionals } = parsed(args, name);
    if (values.help) {
      stdout.write(help(name));
      return 0;
    }
    if (positionals.length !== 1) {
      throw new InputError(`give one URL, not ${positionals.length}; see ${name} --help.`);
    }
    const apiKey = values["api-key"] ?? (env.TUNESERVE_API_KEY || undefined);
    const client = new OpenAIClient(positionals[0], { apiKey, timeout: SILENT_SECONDS });
    return await check(client, values.model, values.json ?? false, stdout);
  } catch (error) {
    if (!(error instanceof InputError)) throw error;
    stderr.write(`error: ${error.message}\n`);
    return 2;
  }
}

/**
 * @param {string[]} args
 * @param {string} name
 * @returns {{values: {model?: string, "api-key"?: string, json?: boolean, help?: boolean}, positionals: string[]}}
 */
function parsed(args, name) {
  try {
    return /** @type {any} */ (parseArgs({ args, options: OPTIONS, allowPositionals: true }));
  } catch (error) {
    const [reason] = String(/** @type {Error} */ (error).message).split(/[.\n]/);
    throw new InputError(`${reason[0].toLowerCase()}${reason.slice(1)}; see ${name} --help.`);
  }
}

async function check(client, model, json, stdout) {
  /** @type {CheckResult[]} */
  const results = [];
  for await (const result of runChecks(client, model)) {
    results.push(result);
    if (!json) stdout.write(row(result, stdout.isTTY ?? false));
  }
  const failed = results.filter((result) => result.outcome === "fail").map((result) => result.name);
  if (json) {
    stdout.write(`${JSON.stringify({ url: client.url, passed: !failed.length, checks: results }, null, 2)}\n`);
  } else {
    stdout.write(`${summary(results)}\n`);
  }
  if (failed.includes(REACHABLE)) return 2;
  return failed.length ? 1 : 0;
}

/** @param {CheckResult} result @param {boolean} colour */
function row({ name, outcome, detail, milliseconds }, colour) {
  const word = WORDS[outcome].padEnd(13);
  const shown = colour ? `\u001b[${COLOURS[outcome]}m${word}\u001b[0m` : word;
  return `${shown}  ${name.padEnd(21)}  ${String(milliseconds).padStart(6)} ms  ${detail}\n`;
}

/** @param {CheckResult[]} results */
function summary(results) {
  const count = (outcome) => results.filter((result) => result.outcome === outcome).length;
  return Object.entries(COUNTED)
    .map(([outcome, word]) => `${count(outcome)} ${word}`)
    .join(", ");
}

/**
 * Run the command line of this process.
 * @param {string} [name]
 */
export async function run(name) {
  // The reader of a pipe may leave before the end.
  process.stdout.on("error", (error) => process.exit(/** @type {any} */ (error).code === "EPIPE" ? 141 : 2));
  process.exitCode = await main(process.argv.slice(2), { name });
}
