// Markdown as elements. What a model writes is data: no HTML, no images, links only to web addresses.

import { button, copy, make } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +)(?=\S)/;
const DASHES = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
const ADDRESS = /https?:\/\/[^\s<>"'`)\]]+/y;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const DEEPEST = 12;

export function render(text) {
  const parent = document.createDocumentFragment();
  blocks(text.replaceAll("\t", "    ").split("\n"), parent, 0);
  return parent;
}

function blocks(lines, parent, depth) {
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    if (!line.trim()) at += 1;
    else if (FENCE.test(line)) at = fence(lines, at, parent);
    else if (RULE.test(line)) at = rule(at, parent);
    else if (HEADING.test(line)) at = heading(lines, at, parent);
    else if (depth < DEEPEST && QUOTE.test(line)) at = quote(lines, at, parent, depth);
    else if (depth < DEEPEST && ITEM.test(line)) at = list(lines, at, parent, depth);
    else if (isTable(lines, at)) at = table(lines, at, parent);
    else at = paragraph(lines, at, parent, depth);
  }
}

const isTable = (lines, at) => lines[at].includes("|") && at + 1 < lines.length && lines[at + 1].includes("|") && DASHES.test(lines[at + 1]);

function begins(lines, at, depth) {
  const line = lines[at];
  const nested = depth < DEEPEST && (QUOTE.test(line) || ITEM.test(line));
  return !line.trim() || FENCE.test(line) || RULE.test(line) || HEADING.test(line) || nested || isTable(lines, at);
}

function rule(at, parent) {
  parent.append(make("hr"));
  return at + 1;
}

function fence(lines, at, parent) {
  const [, mark, language] = FENCE.exec(lines[at]);
  let end = at + 1;
  while (end < lines.length && !isClosing(lines[end], mark)) end += 1;
  const text = lines.slice(at + 1, end).join("\n");
  const bar = make("div", { className: "bar" }, make("span", { textContent: language || "text" }));
  const copier = button("Copy", async () => {
    copier.textContent = (await copy(text)) ? "Copied" : "Not allowed";
  });
  bar.append(copier);
  parent.append(make("div", { className: "code" }, bar, make("pre", { tabIndex: 0 }, make("code", { textContent: text }))));
  return end + 1;
}

function isClosing(line, mark) {
  const text = line.trim();
  return text.length >= mark.length && text === mark[0].repeat(text.length);
}

function heading(lines, at, parent) {
  const [, marks, text] = HEADING.exec(lines[at]);
  // The page has the first two levels itself.
  parent.append(inline(text.replace(/\s#+\s*$/, ""), make(`h${Math.min(6, marks.length + 2)}`)));
  return at + 1;
}

function quote(lines, at, parent, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const element = make("blockquote");
  blocks(lines.slice(at, end).map((line) => line.replace(QUOTE, "")), element, depth + 1);
  parent.append(element);
  return end;
}

function list(lines, at, parent, depth) {
  const [, , first] = ITEM.exec(lines[at]);
  const isOrdered = /\d/.test(first);
  const element = isOrdered ? make("ol", { start: parseInt(first, 10) }) : make("ul");
  while (at < lines.length) {
    const match = ITEM.exec(lines[at]);
    if (!match || /\d/.test(match[2]) !== isOrdered || RULE.test(lines[at])) break;
    const indent = match[0].length;
    const inner = [lines[at].slice(indent)];
    for (at += 1; at < lines.length && belongs(lines, at, indent, depth); at += 1) inner.push(unindented(lines[at], indent));
    const item = make("li");
    if (inner.some((line, index) => index && begins(inner, index, 0))) blocks(inner, item, depth + 1);
    else inline(inner.join("\n"), item);
    element.append(item);
    while (at + 1 < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1])) at += 1;
  }
  parent.append(element);
  return at;
}

function belongs(lines, at, indent, depth) {
  const line = lines[at];
  if (line.trim()) return line.startsWith(" ".repeat(indent)) || (!begins(lines, at, depth) && lines[at - 1].trim() !== "");
  return at + 1 < lines.length && lines[at + 1].startsWith(" ".repeat(indent));
}

const unindented = (line, indent) => (line.startsWith(" ".repeat(indent)) ? line.slice(indent) : line.trimStart());

function cells(line) {
  return line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table(lines, at, parent) {
  const row = (line, tag) => make("tr", {}, ...cells(line).map((cell) => inline(cell, make(tag))));
  const body = make("tbody");
  let end = at + 2;
  for (; end < lines.length && lines[end].includes("|"); end += 1) body.append(row(lines[end], "td"));
  parent.append(make("div", { className: "wide-table", tabIndex: 0 }, make("table", {}, make("thead", {}, row(lines[at], "th")), body)));
  return end;
}

function paragraph(lines, at, parent, depth) {
  let end = at + 1;
  while (end < lines.length && !begins(lines, end, depth)) end += 1;
  parent.append(inline(lines.slice(at, end).join("\n"), make("p")));
  return end;
}

function inline(text, parent, depth = 0) {
  let plain = "";
  const unclosed = new Set();
  const flush = () => {
    if (plain) parent.append(plain);
    plain = "";
  };
  for (let at = 0; at < text.length; ) {
    const found = depth < DEEPEST ? span(text, at, depth, unclosed) : null;
    if (found) {
      flush();
      parent.append(found.element);
      at = found.end;
    } else {
      if (text[at] === "\\" && PUNCTUATION.test(text[at + 1] ?? "")) at += 1;
      plain += text[at];
      at += 1;
    }
  }
  flush();
  return parent;
}

function span(text, at, depth, unclosed) {
  switch (text[at]) {
    case "`":
      return code(text, at, unclosed);
    case "*":
    case "_":
    case "~":
      return emphasis(text, at, depth, unclosed);
    case "[":
      return link(text, at, depth);
    case "h":
      return address(text, at);
    default:
      return null;
  }
}

function code(text, at, unclosed) {
  let length = 1;
  while (text[at + length] === "`") length += 1;
  const mark = "`".repeat(length);
  if (text[at - 1] === "`" || unclosed.has(mark)) return null;
  const end = text.indexOf(mark, at + length);
  if (end < 0) {
    unclosed.add(mark);
    return null;
  }
  return { element: make("code", { textContent: text.slice(at + length, end).trim() }), end: end + length };
}

const TAGS = { "**": "strong", __: "strong", "*": "em", _: "em", "~~": "del" };

function emphasis(text, at, depth, unclosed) {
  const double = text.slice(at, at + 2);
  const mark = double in TAGS ? double : text[at];
  const isWord = (character) => character !== undefined && /[\p{L}\p{N}]/u.test(character);
  if (!(mark in TAGS) || unclosed.has(mark) || !text[at + mark.length]?.trim()) return null;
  if (mark[0] === "_" && isWord(text[at - 1])) return null;
  let end = text.indexOf(mark, at + mark.length + 1);
  while (end >= 0 && (!text[end - 1].trim() || (mark.length === 1 && text[end + 1] === mark) || (mark[0] === "_" && isWord(text[end + mark.length])))) {
    end = text.indexOf(mark, end + mark.length + (text[end + 1] === mark ? 1 : 0));
  }
  if (end < 0) {
    unclosed.add(mark);
    return null;
  }
  // Of three marks in a row the first ends what is within.
  while (mark.length === 2 && text[end + 2] === mark[0]) end += 1;
  const inner = text.slice(at + mark.length, end);
  return { element: inline(inner, make(TAGS[mark]), depth + 1), end: end + mark.length };
}

function anchor(address, element) {
  Object.assign(element, { href: address, target: "_blank", rel: "noopener noreferrer nofollow" });
  return element;
}

function link(text, at, depth) {
  const middle = text.indexOf("](", at);
  const end = middle < 0 ? -1 : text.indexOf(")", middle);
  if (end < 0 || text.slice(at, middle).includes("\n\n")) return null;
  const [target] = text.slice(middle + 2, end).trim().split(/\s/);
  if (!/^(https?:\/\/|mailto:)/i.test(target)) return null;
  return { element: anchor(target, inline(text.slice(at + 1, middle), make("a"), depth + 1)), end: end + 1 };
}

function address(text, at) {
  ADDRESS.lastIndex = at;
  const match = ADDRESS.exec(text);
  if (!match || /\w/.test(text[at - 1] ?? "")) return null;
  const target = match[0].replace(/[.,;:!?]+$/, "");
  return { element: anchor(target, make("a", { textContent: target })), end: at + target.length };
}
