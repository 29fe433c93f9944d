// Protects the client: what it sends, what it makes of answers, and one sentence for each way they can go wrong.

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:net";
import { test } from "node:test";

import { ApiError, InputError, OpenAIClient, ProtocolError, TransportError } from "../src/client.js";
import { startFakeServer } from "./fake-server.js";

const HELLO = [{ role: "user", content: "hello" }];
const MODEL = { model: "fake-1" };
const CHUNK = JSON.stringify({ id: "1", object: "text_completion", created: 1, model: "m", choices: [] });

/** Answer every connection with the same bytes and close it, or hold it open; `answer` null is silence. */
async function answering(t, answer, { hold = false } = {}) {
  const sockets = [];
  const server = createServer((socket) => {
    sockets.push(socket);
    socket.on("error", () => {});
    if (answer !== null) socket.once("data", () => (hold ? socket.write(answer) : socket.end(answer)));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    sockets.forEach((socket) => socket.destroy());
    server.close();
  });
  return `http://127.0.0.1:${server.address().port}`;
}

async function fake(t, ...faults) {
  const server = await startFakeServer(...faults);
  t.after(() => server.close());
  return server;
}

function http(body, { kind = "application/json", status = "200 OK", headers = "" } = {}) {
  const length = Buffer.byteLength(body);
  const head = `HTTP/1.1 ${status}\r\nContent-Type: ${kind}\r\nConnection: close\r\n${headers}`;
  return Buffer.concat([Buffer.from(`${head}Content-Length: ${length}\r\n\r\n`), Buffer.from(body)]);
}

/** Assert that it fails with this class, in one sentence that names a remedy; return the error. */
async function failing(promise, kind) {
  const error = await promise.then(
    () => assert.fail("nothing was thrown"),
    (thrown) => thrown,
  );
  assert.ok(error instanceof kind, String(error));
  assert.match(error.message, /^[^\n]+;[^\n]+\.$/);
  return error;
}

async function all(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

test("everything works on a server that is right", async (t) => {
  const client = new OpenAIClient((await fake(t)).url);
  assert.deepEqual(
    (await client.models()).map((model) => model.id),
    ["fake-1"],
  );
  const fields = { ...MODEL, temperature: 0, max_tokens: 2 };
  const answer = await client.chat(HELLO, fields);
  assert.equal(answer.choices[0].message.content, "one two");
  assert.equal(answer.usage.total_tokens, 11);
  const chunks = await all(client.chatStream(HELLO, fields));
  const deltas = chunks.flatMap((chunk) => chunk.choices).map((choice) => choice.delta.content);
  assert.deepEqual(deltas, ["", "one", " two", undefined]);
  assert.equal((await client.completion("zero", fields)).choices[0].text, "one two");
  const pieces = await all(client.completionStream("zero", fields));
  assert.equal(pieces.map((piece) => piece.choices[0].text).join(""), "one two");
  assert.equal((await client.get("/health")).status, 200);
});

for (const suffix of ["", "/", "/v1", "/v1/", "//"]) {
  test(`the address may end in "${suffix}"`, async (t) => {
    const server = await fake(t);
    const client = new OpenAIClient(server.url + suffix);
    await client.models();
    assert.equal(client.url, server.url);
    assert.equal(server.seen[0].path, "/v1/models");
  });
}

test("key and fields are sent as they are", async (t) => {
  const server = await fake(t);
  const client = new OpenAIClient(server.url, { apiKey: "sk-secret" });
  await client.chat(HELLO, { ...MODEL, temperature: 0.5, logit_bias: {}, user: "ü" });
  const { path, headers, body } = server.seen[0];
  assert.equal(path, "/v1/chat/completions");
  assert.equal(headers.authorization, "Bearer sk-secret");
  const expected = { ...MODEL, messages: HELLO, temperature: 0.5, logit_bias: {}, user: "ü", stream: false };
  assert.deepEqual(JSON.parse(body), expected);
});

for (const url of [
  "",
  "localhost:8000",
  "ftp://host",
  "http://",
  "http://[::1",
  "http://host:99999",
  "http://host:abc",
  "http://user:secret@host",
  "http://host/v1?key=1",
  "http://host#part",
]) {
  test(`"${url}" is no address`, () => {
    assert.throws(
      () => new OpenAIClient(url),
      (error) => error instanceof InputError && !/secret/.test(error.message),
    );
  });
}

for (const apiKey of ["", "two words", "line\nbreak", "schlüssel"]) {
  test(`${JSON.stringify(apiKey)} is no key, and is not shown`, () => {
    const hidden = (error) => error instanceof InputError && (!apiKey || !error.message.includes(apiKey));
    assert.throws(() => new OpenAIClient("http://127.0.0.1:9", { apiKey }), hidden);
  });
}

for (const timeout of [0, -1, NaN, Infinity]) {
  test(`a timeout of ${timeout} is refused`, () => {
    assert.throws(() => new OpenAIClient("http://127.0.0.1:9", { timeout }), InputError);
  });
}

test("a number that JSON cannot say is refused", async (t) => {
  const client = new OpenAIClient((await fake(t)).url);
  await failing(client.chat(HELLO, { ...MODEL, temperature: NaN }), InputError);
});

test("an error has the fields of the answer", async (t) => {
  const client = new OpenAIClient((await fake(t)).url);
  for (const asked of [client.chat(HELLO, { model: "x" }), all(client.chatStream(HELLO, { model: "x" }))]) {
    const { status, explanation, type, param, code } = await failing(asked, ApiError);
    assert.deepEqual(
      [status, explanation, type, param, code],
      [404, "no such model", "invalid_request_error", "model", null],
    );
  }
});

for (const [body, explanation, code] of [
  ['{"error": {"message": "no", "code": 7}}', "no", "7"],
  ['{"error": {"message": "no\\u001b[2J\\nway."}}', "no\ufffd[2J way", null],
  ['{"error": "plain"}', '{"error": "plain"}', null],
  ['{"detail": "Not Found"}', '{"detail": "Not Found"}', null],
  ["", "no explanation", null],
  ["[".repeat(100_000), `${"[".repeat(200)}…`, null],
]) {
  test(`the error ${JSON.stringify(body.slice(0, 40))} is quoted on one line`, async (t) => {
    const url = await answering(t, http(body, { status: "502 Bad Gateway" }));
    const error = await failing(new OpenAIClient(url).models(), ApiError);
    assert.deepEqual([error.status, error.explanation, error.code], [502, explanation, code]);
  });
}

for (const [what, answer] of Object.entries({
  html: http("<html>"),
  "another type": http('{"data": [{"id": 7, "object": "model"}]}'),
  null: http("null"),
  "deep nesting": http("[".repeat(100_000)),
  "a redirect": http("", { status: "302 Found", headers: "Location: /login\r\n" }),
})) {
  test(`an answer in another form is refused: ${what}`, async (t) => {
    await failing(new OpenAIClient(await answering(t, answer)).models(), ProtocolError);
  });
}

for (const [body, kind, expected] of [
  ["data: {}\n\n", "text/event-stream", /OpenAI's form/],
  ["data: nonsense\n\n", "text/event-stream", /OpenAI's form/],
  [Buffer.from([100, 58, 0xff, 10]), "text/event-stream", /UTF-8/],
  ["", "text/event-stream", /without \[DONE\]/],
  ["data: [DONE]\n", "text/event-stream", /without \[DONE\]/],
  ["{}", "application/json", /application\/json instead of text\/event-stream/],
]) {
  test(`a stream in another form is refused: ${JSON.stringify(String(body))} as ${kind}`, async (t) => {
    const client = new OpenAIClient(await answering(t, http(body, { kind })));
    assert.match((await failing(all(client.chatStream(HELLO, MODEL)), ProtocolError)).message, expected);
  });
}

test("an error in the middle of a stream is thrown after what came before", async (t) => {
  const body = `data: ${CHUNK}\n\ndata: {"error": {"message": "out of memory", "type": "server_error"}}\n\n`;
  const client = new OpenAIClient(await answering(t, http(body, { kind: "text/event-stream" })));
  const stream = client.completionStream("x", MODEL);
  assert.equal((await stream.next()).value.id, "1");
  const error = await failing(stream.next(), ApiError);
  assert.deepEqual([error.status, error.type], [200, "server_error"]);
});

test("nobody there", async () => {
  const server = await startFakeServer();
  await server.close();
  const error = await failing(new OpenAIClient(server.url).models(), TransportError);
  assert.match(error.message, /cannot be reached/);
});

for (const [what, answer] of Object.entries({
  nothing: "",
  "another protocol": "SSH-2.0-OpenSSH\r\n",
  "half an answer": http("x".repeat(10)).subarray(0, -5),
})) {
  test(`a connection that breaks: ${what}`, async (t) => {
    await failing(new OpenAIClient(await answering(t, answer)).models(), TransportError);
  });
}

test("a server that is silent", async (t) => {
  const client = new OpenAIClient(await answering(t, null), { timeout: 0.05 });
  assert.match((await failing(client.models(), TransportError)).message, /silent for 0\.05 seconds/);
});

test("a server that falls silent in the middle of a stream", async (t) => {
  const half = http(`data: ${CHUNK}\n\n${" ".repeat(99)}`, { kind: "text/event-stream" }).subarray(0, -99);
  const client = new OpenAIClient(await answering(t, half, { hold: true }), { timeout: 0.3 });
  const stream = client.completionStream("x", MODEL);
  assert.equal((await stream.next()).value.id, "1");
  assert.match((await failing(stream.next(), TransportError)).message, /silent for 0\.3 seconds/);
});

test("leaving a stream ends its request", { timeout: 20_000 }, async (t) => {
  const ended = new Promise((resolve) => {
    const server = createServer((socket) => {
      socket.on("error", () => {});
      socket.once("data", () => {
        socket.write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n");
        socket.write(`data: ${CHUNK}\n\n`);
      });
      socket.on("close", resolve);
    });
    server.listen(0, "127.0.0.1");
    t.after(() => server.close());
    once(server, "listening").then(async () => {
      const client = new OpenAIClient(`http://127.0.0.1:${server.address().port}`);
      for await (const chunk of client.completionStream("x", MODEL)) {
        assert.equal(chunk.id, "1");
        break;
      }
    });
  });
  await ended;
});
