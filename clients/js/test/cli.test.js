// Protects the command line: what it prints, its exit codes, and the script that runs it.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { text } from "node:stream/consumers";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { main } from "../src/cli.js";
import { MODEL, startFakeServer } from "./fake-server.js";

async function run(args, env = {}) {
  let [stdout, stderr] = ["", ""];
  const sinks = { stdout: { write: (part) => (stdout += part) }, stderr: { write: (part) => (stderr += part) } };
  const code = await main(args, { env, ...sinks });
  return { code, stdout, stderr };
}

async function fake(t, ...faults) {
  const server = await startFakeServer(...faults);
  t.after(() => server.close());
  return server;
}

test("all that is required passing is exit code 0", async (t) => {
  const { code, stdout, stderr } = await run([(await fake(t, "tools refused")).url]);
  assert.deepEqual([code, stderr], [0, ""]);
  const lines = stdout.trimEnd().split("\n");
  assert.match(lines[3], /^pass +chat +\d+ ms {2}it answered with \d+ characters\.$/);
  assert.match(stdout, /^not supported {2}tools /m);
  assert.equal(lines.at(-1), "21 passed, 0 failed, 1 not supported, 0 skipped");
});

test("a failure is exit code 1", async (t) => {
  const { code, stdout } = await run([(await fake(t, "usage missing")).url]);
  assert.equal(code, 1);
  assert.match(stdout, /^FAIL +usage /m);
});

test("JSON has every result", async (t) => {
  const server = await fake(t, "usage missing");
  const { code, stdout } = await run([`${server.url}/v1`, "--json"]);
  const report = JSON.parse(stdout);
  assert.deepEqual([code, report.url, report.passed, report.checks.length], [1, server.url, false, 22]);
  const { name, outcome, detail } = report.checks.find((check) => check.outcome === "fail");
  assert.deepEqual([name, outcome, detail], ["usage", "fail", "the answer has no usage."]);
});

for (const flags of [[], ["--json"]]) {
  test(`nobody there is exit code 2 ${flags}`, async () => {
    const server = await startFakeServer();
    await server.close();
    const { code, stdout } = await run([server.url, ...flags]);
    assert.equal(code, 2);
    assert.match(stdout, /cannot be reached/);
  });
}

for (const args of [[], ["a", "b"], ["--nope"], ["http://host", "--model"], ["--json=1", "x"], ["localhost:8000"]]) {
  test(`bad usage is exit code 2 and one sentence: ${JSON.stringify(args)}`, async () => {
    const { code, stdout, stderr } = await run(args);
    assert.deepEqual([code, stdout], [2, ""]);
    assert.match(stderr, /^error: [^\n]+;[^\n]+\.\n$/);
  });
}

for (const flag of ["--help", "-h"]) {
  test(`${flag} explains itself`, async () => {
    const { code, stdout } = await run([flag]);
    assert.equal(code, 0);
    assert.match(stdout, /^Usage: .+--api-key/);
  });
}

test("the key comes from the option, else from the environment; the model from the option", async (t) => {
  const server = await fake(t);
  await run([server.url, "--api-key", "sk-1", "--model", MODEL], { TUNESERVE_API_KEY: "sk-2" });
  const first = server.seen.length;
  await run([server.url], { TUNESERVE_API_KEY: "sk-2" });
  const keys = server.seen.map((request) => request.headers.authorization);
  assert.deepEqual([...new Set(keys.slice(0, first))], ["Bearer sk-1"]);
  assert.deepEqual([...new Set(keys.slice(first))], ["Bearer sk-2"]);
});

for (const script of ["../bin/tuneserve-check.js", "../../../scripts/unsloth-inference_tool.js"]) {
  test(`${script} is a program`, async (t) => {
    const server = await fake(t, "usage missing");
    const path = fileURLToPath(new URL(script, import.meta.url));
    const program = spawn(process.execPath, [path, server.url], { stdio: ["ignore", "pipe", "inherit"] });
    const [output, [code]] = await Promise.all([text(program.stdout), once(program, "exit")]);
    assert.match(output, /21 passed, 1 failed/);
    assert.equal(code, 1);
  });
}
