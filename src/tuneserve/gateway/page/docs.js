"use strict";
// Shows openapi.json: a section per route, with a table of its fields and those of what is within them.

const byId = (id) => document.getElementById(id);

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

const nameOf = (schema) => schema.$ref.split("/").pop();

function typeOf(schema) {
  if (schema.$ref) return nameOf(schema);
  const branches = schema.anyOf || schema.oneOf;
  if (branches) return branches.map(typeOf).filter((type) => type !== "null").join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.filter((value) => value !== null).map((value) => JSON.stringify(value)).join(", ") || "null";
  if (schema.type === "array") return `list of ${schema.items ? typeOf(schema.items) : "any"}`;
  const low = schema.minimum ?? schema.exclusiveMinimum;
  const range = low === undefined ? "" : `, ${low} to ${schema.maximum}`;
  return (schema.type || "any") + range;
}

function references(schema, found) {
  if (schema.$ref) found.add(nameOf(schema));
  if (schema.properties?.data?.contentSchema) references(schema.properties.data.contentSchema, found);
  for (const part of [...(schema.anyOf || []), ...(schema.oneOf || []), ...(schema.items ? [schema.items] : [])]) {
    references(part, found);
  }
  return found;
}

function table(schema) {
  const rows = make("table");
  const required = schema.required || [];
  for (const [name, field] of Object.entries(schema.properties || {})) {
    const row = make("tr");
    row.append(make("th", name + (required.includes(name) ? " *" : "")), make("td", typeOf(field)), make("td", field.description || ""));
    rows.append(row);
  }
  return rows;
}

function schemas(heading, root, all) {
  const box = make("details");
  box.append(make("summary", heading));
  const waiting = [...references(root, new Set())];
  const shown = new Set();
  while (waiting.length) {
    const name = waiting.shift();
    if (shown.has(name)) continue;
    shown.add(name);
    box.append(make("h3", name), make("p", (all[name].description || "").replaceAll("``", "")), table(all[name]));
    for (const field of Object.values(all[name].properties || {})) waiting.push(...references(field, new Set()));
  }
  return box;
}

function show(spec) {
  byId("title").textContent = `${spec.info.title} ${spec.info.version}`;
  byId("status").textContent = `${spec.info.description} Fields with * are required.`;
  const sections = [];
  for (const [path, methods] of Object.entries(spec.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const section = make("section");
      section.append(make("h2", `${method.toUpperCase()} ${path}`), make("p", operation.summary));
      const body = operation.requestBody && operation.requestBody.content["application/json"].schema;
      if (body) section.append(schemas("Request", body, spec.components.schemas));
      for (const [status, answer] of Object.entries(operation.responses)) {
        for (const [kind, content] of Object.entries(answer.content)) {
          section.append(schemas(`${status} ${kind}: ${content.schema.description || answer.description}`, content.schema, spec.components.schemas));
        }
      }
      sections.push(section);
    }
  }
  byId("operations").replaceChildren(...sections);
}

async function load() {
  const key = byId("key").value;
  const answer = await fetch("openapi.json", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  byId("key-form").hidden = answer.status !== 401;
  if (answer.ok) show(await answer.json());
  else byId("status").textContent = (await answer.json()).error.message;
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  load();
});
load();
