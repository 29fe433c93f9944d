// Protects the event parser: the same events however the bytes are cut, and a bound on what is held.

import assert from "node:assert/strict";
import { test } from "node:test";

import { ProtocolError } from "../src/errors.js";
import { SseParser } from "../src/sse.js";

const encoder = new TextEncoder();

function parse(chunks, limit = 10_000) {
  const parser = new SseParser(limit);
  return chunks.flatMap((chunk) => parser.feed(typeof chunk === "string" ? encoder.encode(chunk) : chunk));
}

const STREAMS = [
  ["data: a\n\n", ["a"]],
  ["data:a\n\n", ["a"]],
  ["data:  a\n\n", [" a"]],
  ["data: a\ndata: b\n\n", ["a\nb"]],
  ["data\n\n", [""]],
  ["data: a\r\n\r\ndata: b\r\r", ["a", "b"]],
  ["data: a\r\ndata: b\r\n\r\n: end\r\n\r\n", ["a\nb"]],
  ["\ufeffdata: a\n\n", ["a"]],
  [": waiting\n\n: waiting\n\n", []],
  ["event: x\nid: 7\nretry\n\n", []],
  ["Data: a\n\n", []],
  ["data: never ended\n", []],
  ["data: naïve 🙂\u2028\n\n", ["naïve 🙂\u2028"]],
  ["id: 1\ndata: 🙂\n\n\n\r\n: x\ndata: [DONE]\n\n", ["🙂", "[DONE]"]],
];

for (const [stream, events] of STREAMS) {
  test(`${JSON.stringify(stream)} follows the standard, wherever it is cut`, () => {
    const bytes = encoder.encode(stream);
    assert.deepEqual(parse([bytes]), events);
    assert.deepEqual(parse([...bytes].map((byte) => Uint8Array.of(byte))), events);
    for (let first = 0; first <= bytes.length; first++) {
      for (let second = first; second <= bytes.length; second++) {
        const pieces = [bytes.slice(0, first), bytes.slice(first, second), bytes.slice(second)];
        assert.deepEqual(parse(pieces), events, `cut at ${first} and ${second}`);
      }
    }
  });
}

for (const stream of [`data: ${"x".repeat(100)}`, "data: x\n".repeat(20), "data\n".repeat(40), ":".repeat(101)]) {
  test(`${stream.slice(0, 9)}…: an event that grows without end is refused`, () => {
    assert.throws(() => parse([stream], 100), ProtocolError);
    assert.throws(() => parse([...stream], 100), /larger than 100/);
  });
}

test("many small events are no large one", () => {
  assert.equal(parse(["data: x\n\n: y\n".repeat(1000)], 100).length, 1000);
});

test("bytes that are not UTF-8 are refused", () => {
  assert.throws(() => parse([Uint8Array.of(100, 58, 0xff, 10, 10)]), /not UTF-8/);
});
