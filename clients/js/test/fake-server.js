/** A small OpenAI-compatible server that can be made faulty in one respect at a time. */

import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import { text } from "node:stream/consumers";

export const MODEL = "fake-1";
const WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];
// As the checker asks them: four at once.
const AT_ONCE = 4;

class Refusal extends Error {
  constructor(status, message, param = null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

/**
 * Start a server that answers with counted words, one token each.
 * @param {...string} faults What it does wrong.
 */
export async function startFakeServer(...faults) {
  const fake = new FakeServer(new Set(faults));
  await fake.start();
  return fake;
}

class FakeServer {
  seen = [];
  #faults;
  #server = createServer((request, response) => this.#handle(request, response));
  #waiting = [];
  #warm = { false: 0, true: 0 };
  #unseeded = 1000;

  constructor(faults) {
    this.#faults = faults;
  }

  async start() {
    this.#server.listen(0, "127.0.0.1");
    await once(this.#server, "listening");
    this.url = `http://127.0.0.1:${this.#server.address().port}`;
  }

  async close() {
    this.#server.close();
    this.#server.closeAllConnections();
    await once(this.#server, "close");
  }

  async #handle(request, response) {
    const body = await text(request);
    this.seen.push({ method: request.method, path: request.url, headers: request.headers, body });
    try {
      const answer = request.method === "GET" ? this.#get(request.url) : await this.#post(request.url, body);
      const [status, kind, content] = answer;
      response.writeHead(status, { "content-type": kind }).end(content);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      const [status, kind, content] = this.#refusal(error);
      response.writeHead(status, { "content-type": kind }).end(content);
    }
  }

  #refusal({ status, message, param }) {
    const bare = status === 404 ? "unknown model bare" : "errors bare";
    if ([400, 404].includes(status) && this.#faults.has(bare)) return json({ detail: message }, status);
    const error = { message, type: "invalid_request_error", param, code: null };
    if (status === 400 && this.#faults.has("errors without code")) delete error.code;
    const wrong = Object.keys(error).find((field) => this.#faults.has(`errors with a wrong ${field}`));
    if (status === 400 && wrong) error[wrong] = [];
    return json({ error }, status);
  }

  #get(path) {
    if (path === "/health") {
      return json({}, this.#faults.has("health broken") ? 500 : this.#faults.has("health missing") ? 404 : 200);
    }
    if (path !== "/v1/models") throw new Refusal(404, "nothing here");
    if (this.#faults.has("models html")) return [200, "text/html", "<html>a proxy's login page</html>"];
    if (this.#faults.has("models locked")) throw new Refusal(401, "no key");
    return json({ object: "list", data: this.#faults.has("models empty") ? [] : [{ id: MODEL, object: "model" }] });
  }

  async #post(path, body) {
    let fields;
    try {
      fields = { stream: false, ...JSON.parse(body) };
    } catch {
      if (this.#faults.has("json accepted")) return json({});
      throw new Refusal(this.#faults.has("json 422") ? 422 : 400, "no JSON");
    }
    if (fields.model !== MODEL && !this.#faults.has("any model")) {
      throw new Refusal(this.#faults.has("unknown model 400") ? 400 : 404, "no such model", "model");
    }
    if (fields.temperature < 0 && !this.#faults.has("cold accepted")) {
      throw new Refusal(this.#faults.has("value 422") ? 422 : 400, "too cold", "temperature");
    }
    if (path === "/v1/chat/completions") {
      this.#optional(fields);
      if (inCrowd(fields)) await this.#together();
      return fields.stream ? this.#stream(fields, true) : this.#chat(fields);
    }
    if (path !== "/v1/completions" || this.#faults.has("completions missing")) throw new Refusal(404, "nothing here");
    return fields.stream ? this.#stream(fields, false) : this.#completion(fields);
  }

  #optional(fields) {
    for (const name of ["n", "logprobs", "tools", "response_format"].filter((field) => field in fields)) {
      if (this.#faults.has(`${name} refused`)) throw new Refusal(400, `${name} is not supported`, name);
      if (this.#faults.has(`${name} broken`)) throw new Refusal(500, `${name} hurts`);
    }
  }

  /** Hold each of the requests at once until the others are here, so that a serial client would hang. */
  async #together() {
    const first = this.#waiting.length === 0;
    const all = this.#faults.has("one at a time") ? 2 : AT_ONCE;
    const here = new Promise((resolve) => this.#waiting.push(resolve));
    if (this.#waiting.length >= all) this.#waiting.forEach((resolve) => resolve());
    await here;
    if (this.#faults.has("one at a time") && !first) throw new Refusal(503, "busy");
  }

  #words(fields) {
    const count = this.#faults.has("short model") ? 2 : 40;
    let source = Array.from({ length: count }, (_, index) => WORDS[index % WORDS.length]);
    let limit = fields.max_tokens ?? 40;
    if ((fields.temperature ?? 1) > 0) {
      const ignored = fields.seed === undefined || this.#faults.has("seed ignored");
      source = rotated(source, ignored ? this.#unseeded++ : fields.seed);
    } else if (
      this.#faults.has("temperature ignored") &&
      limit > 3 &&
      !["prompt", "stop", "stream_options"].some((field) => field in fields) &&
      // The first whole answer and the first streamed one are what the other checks hold theirs against.
      this.#warm[fields.stream]++ > 0
    ) {
      source = rotated(source, this.#unseeded++);
    }
    const all = source.map((word, index) => (index ? ` ${word}` : word));
    if (this.#faults.has("max_tokens ignored")) limit = 40;
    const tokens = all.slice(0, limit);
    const whole = tokens.join("");
    for (const stop of this.#faults.has("stop ignored") ? [] : (fields.stop ?? [])) {
      if (!whole.includes(stop)) continue;
      const end = whole.indexOf(stop) + (this.#faults.has("stop included") ? stop.length : 0);
      const early = this.#faults.has("stop early") ? 1 : 0;
      return [[whole.slice(0, end - early)], this.#faults.has("stop reason") ? "length" : "stop"];
    }
    const natural = all.length <= limit || (this.#faults.has("max_tokens reason") && limit === 3);
    return [tokens, natural ? "stop" : "length"];
  }

  #envelope(kind, choices, usage) {
    const id = this.#faults.has("same ids") ? "same" : randomUUID();
    return { id, object: kind, created: 1, model: MODEL, choices, ...(usage && { usage }) };
  }

  #usage(tokens, fault) {
    if (this.#faults.has(`${fault} missing`)) return undefined;
    const total = 9 + tokens.length + (this.#faults.has(`${fault} wrong`) ? 1 : 0);
    return { prompt_tokens: 9, completion_tokens: tokens.length, total_tokens: total };
  }

  #chat(fields) {
    const choices = [];
    let counted = [];
    for (let index = 0; index < (this.#faults.has("n ignored") ? 1 : (fields.n ?? 1)); index++) {
      const [tokens, reason] = this.#words(fields);
      counted = tokens;
      const role = this.#faults.has("chat role") ? "user" : "assistant";
      const message = { role, content: tokens.join(""), ...this.#special(fields) };
      if (this.#faults.has("chat silent") || (this.#faults.has("crowd silent") && inCrowd(fields))) {
        message.content = "";
      }
      const odd = this.#faults.has("chat odd reason") && reason === "length" && tokens.length > 3;
      const choice = { index, message, finish_reason: odd ? "odd" : reason };
      if (fields.logprobs && !this.#faults.has("logprobs ignored")) {
        choice.logprobs = { content: tokens.map((token) => this.#logprob(token)) };
      }
      choices.push(choice);
    }
    const kind = this.#faults.has("chat object") ? "chat.reply" : "chat.completion";
    return json(this.#envelope(kind, choices, this.#usage(counted, "usage")));
  }

  #logprob(token) {
    const logprob = this.#faults.has("logprobs positive") ? 0.5 : -0.5;
    return { token, logprob, top_logprobs: this.#faults.has("logprobs alone") ? [] : [{ token, logprob }] };
  }

  #special(fields) {
    if (fields.tools && !this.#faults.has("tools ignored")) {
      const name = this.#faults.has("tools other") ? "get_time" : "get_weather";
      const given = this.#faults.has("tools broken arguments") ? "{" : '{"city": "Oslo"}';
      const call = { id: "call_1", type: "function", function: { name, arguments: given } };
      return { content: null, tool_calls: [call] };
    }
    if (fields.response_format && !this.#faults.has("response_format ignored")) {
      const extra = this.#faults.has("response_format extra") ? { note: "" } : {};
      return { content: JSON.stringify({ even: true, size: "small", ...extra }) };
    }
    return {};
  }

  #completion(fields) {
    const [tokens, reason] = this.#words(fields);
    const content = this.#faults.has("completions empty") ? "" : tokens.join("");
    const odd = this.#faults.has("completions odd reason");
    const choice = { index: 0, text: content, finish_reason: odd ? "odd" : reason };
    return json(this.#envelope("text_completion", [choice], this.#usage(tokens, "usage")));
  }

  #stream(fields, chat) {
    const [tokens, reason] = this.#words(fields);
    const withUsage = fields.stream_options?.include_usage ?? false;
    // A fault of a stream is one of the plain stream only, so that no other check meets it.
    const prefix = withUsage ? "usage stream " : chat ? "stream " : "completion stream ";
    const wrong = (fault) => this.#faults.has(prefix + fault);
    let deltas = tokens.map((token) => [{ content: token }, null]);
    if (wrong("lost")) deltas.splice(1, 1);
    if (wrong("empty")) deltas = [];
    if (chat && !wrong("no role")) deltas.unshift([{ role: "assistant", content: "" }, null]);
    if (!wrong("no reason")) deltas.push([{}, wrong("odd reason") ? "odd" : reason]);
    if (wrong("two reasons")) deltas.push([{}, reason]);
    if (wrong("without end")) deltas = Array(1000).fill(deltas).flat();
    if (wrong("goes on")) deltas.push([{ content: " more" }, null]);
    if (wrong("no choices")) deltas = [];
    const kind = chat ? "chat.completion.chunk" : "text_completion";
    const chunks = deltas.map(([delta, ends]) => {
      const piece = chat ? { delta } : { text: delta.content ?? "" };
      return this.#envelope(kind, [{ index: 0, ...piece, finish_reason: ends }]);
    });
    if (withUsage) {
      const last = wrong("choices") ? chunks.at(-1).choices : [];
      chunks.push(this.#envelope(kind, last, this.#usage(tokens, "usage stream")));
    }
    if (!wrong("new ids")) chunks.forEach((chunk) => (chunk.id = "stream-1"));
    let body = chunks.map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`).join("");
    if (wrong("error")) body = 'data: {"error": {"message": "out of memory", "type": "server_error"}}\n\n';
    if (!wrong("no done")) body += "data: [DONE]\n\n";
    return [200, wrong("plain text") ? "text/plain" : "text/event-stream; charset=utf-8", body];
  }
}

function inCrowd({ messages }) {
  return /Count from (?!one)/.test(messages[0].content);
}

function rotated(words, by) {
  return words.map((_, index) => WORDS[(index + by) % WORDS.length]);
}

function json(value, status = 200) {
  return [status, "application/json", JSON.stringify(value)];
}
