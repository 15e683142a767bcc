// The page is drawn from the API's own description, so that it can't drift from it. Whatever the service answers
// becomes a text node: nothing here parses markup, and the page's Content-Security-Policy would refuse to.

const source = new URL("openapi.json", document.baseURI);
const byId = (id) => document.getElementById(id);
let api, scheme;
// The token pair lives in this variable alone: a reload forgets it, and it never reaches storage or a cookie.
let session = null;

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  Object.entries(attributes).filter(([, value]) => value != null).forEach((pair) => node.setAttribute(...pair));
  node.append(...children);
  return node;
}

function button(text, act) {
  const node = el("button", { type: "button" }, text);
  node.addEventListener("click", act);
  return node;
}

// Descriptions are CommonMark, of which only paragraphs and code spans are read.
const prose = (text = "") => text.split("\n\n").filter(Boolean).map((paragraph) =>
  el("p", {}, ...paragraph.split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part))));

function resolve(node) {
  return node?.$ref ? resolve(node.$ref.slice(2).split("/").reduce((at, key) => at[key], api)) : node;
}

// Each documented example of a body is a choice of its own, since it fixes the content type and, where the schema
// offers several, which of them the fields are made from.
function choicesOf(operation) {
  const content = Object.entries(operation.requestBody?.content ?? {});
  return content.flatMap(([type, media]) => Object.values(media.examples ?? {}).map(({ summary, value }) => {
    const schemas = (resolve(media.schema).oneOf ?? [media.schema]).map(resolve);
    const schema = schemas.find(({ required }) => required.every((name) => name in value)) ?? schemas[0];
    return { label: `${summary} (${type})`, type, value, schema };
  }));
}

function fieldsOf(operation, choice) {
  const { schema: { properties, required } = {}, value } = choice ?? {};
  const inBody = Object.entries(properties ?? {}).map(([name, schema]) => (
    { ...schema, name, in: "body", schema, required: required.includes(name), example: value[name] }));
  return [...operation.parameters ?? [], ...inBody];
}

function hint({ required, description, schema }) {
  const [least, most] = [schema.minLength ?? schema.minimum, schema.maxLength ?? schema.maximum];
  const range = most && `${least ? `${least} to` : "up to"} ${most}${schema.type === "string" ? " characters" : ""}`;
  const parts = [required ? "required" : "optional", schema.format ?? schema.type, range, description];
  return parts.filter(Boolean).join(", ");
}

// Every field is a plain text input that nothing checks here, so that the service's own refusals can be seen.
function drawField(prefix, field) {
  const id = `${prefix}-${field.name}`;
  const type = field.schema.format === "password" ? "password" : "text";
  field.input = el("input", { id, type, name: field.name, value: field.example, "aria-describedby": `${id}-hint`,
    autocomplete: "off", autocapitalize: "none", spellcheck: "false" });
  if (field.name === "refresh_token" && session) field.input.value = session.refresh_token;
  return el("div", { class: "field" }, el("label", { for: id }, field.name), field.input,
    el("p", { id: `${id}-hint`, class: "hint" }, hint(field)));
}

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// The request and the curl command are made side by side from the same fields, so that they say the same.
function build(method, path, operation, type, fields) {
  const sent = fields.filter((field) => field.required || field.input.value !== "");
  const pairsIn = (place) => sent.filter((field) => field.in === place).map(({ name, input }) => [name, input.value]);
  const [query, pairs] = [new URLSearchParams(pairsIn("query")).toString(), pairsIn("body")];
  const url = new URL(`.${path}${query && `?${query}`}`, source);
  const headers = {};
  let [body, data] = [undefined, []];
  if (operation.security && session) headers.Authorization = `Bearer ${session.access_token}`;
  if (type === "application/json") {
    headers["Content-Type"] = type;
    body = JSON.stringify(Object.fromEntries(pairs));
    data = [`--data-raw ${quote(body)}`];
  } else if (type) {
    const multipart = type === "multipart/form-data";
    body = multipart ? new FormData() : new URLSearchParams();
    pairs.forEach((pair) => body.append(...pair));
    data = pairs.map((pair) => `${multipart ? "--form-string" : "--data-urlencode"} ${quote(pair.join("="))}`);
  }
  const lines = Object.entries(headers).map((header) => `-H ${quote(header.join(": "))}`);
  const curl = [`curl -i -X ${method} ${quote(url.href)}`, ...lines, ...data].join(" \\\n  ");
  return { url, method, headers, body, curl, values: Object.fromEntries(pairs) };
}

// Nothing that the browser keeps, neither cookie nor cache, takes part: what is shown is what the service answered.
async function send({ url, method, headers, body }) {
  const start = performance.now();
  const response = await fetch(url, { method, headers, body, cache: "no-store", credentials: "omit" });
  let text = await response.text();
  const took = Math.round(performance.now() - start);
  let json = null;
  try {
    json = JSON.parse(text);
    text = JSON.stringify(json, null, 2);
  } catch { /* What is not JSON is shown as it came. */ }
  return { response, text, json, took };
}

function useTokens(pair, account) {
  session = pair && { ...pair, account: account ?? session?.account ?? "a token" };
  byId("session").textContent = session ? `Authorized as ${session.account}` : "Not authorized";
  document.body.classList.toggle("authorized", session !== null);
  byId("credentials").hidden = byId("authorize").hidden = session !== null;
  byId("logout").hidden = session === null;
  for (const input of document.querySelectorAll("input[name=refresh_token]")) {
    input.value = session?.refresh_token ?? input.defaultValue;
  }
}

async function copy(text, note) {
  try {
    await navigator.clipboard.writeText(text.textContent);
    note.textContent = "Copied";
  } catch {
    // A page without HTTPS has no clipboard, so the text is selected for the reader's own keys.
    getSelection().selectAllChildren(text);
    note.textContent = "Selected: copy it with your keyboard";
  }
}

function block(title, text, ...buttons) {
  const pre = el("pre", { tabindex: 0, role: "group", "aria-label": title }, text);
  const note = el("span", { role: "status", class: "hint" });
  buttons = buttons.map(([label, act]) => button(label, () => act(pre, note)));
  const bar = el("div", { class: "bar" }, el("h3", {}, title), note, ...buttons);
  return el("div", { class: `block ${title}` }, bar, pre);
}

async function execute(operation, request, { command, outcome, answer }) {
  command.replaceChildren(block("curl", request.curl, ["Copy", copy]));
  answer.replaceChildren();
  outcome.replaceChildren("Waiting for the answer");
  delete outcome.dataset.status;
  try {
    const { response, text, json, took } = await send(request);
    const meaning = resolve(operation.responses[response.status])?.description ?? "This status is not described.";
    const headers = [...response.headers].map((header) => header.join(": ")).join("\n");
    const use = ["Use this token", (pre, note) => {
      useTokens(json, request.values.username ?? request.values.email);
      note.textContent = "In use";
    }];
    answer.append(block("headers", headers), block("body", text, ...(json?.access_token ? [use] : [])));
    outcome.replaceChildren(el("b", {}, `${response.status} ${response.statusText}`), ` in ${took} ms. ${meaning}`);
    outcome.dataset.status = response.status;
  } catch (error) {
    outcome.textContent = `No answer: ${error.message}`;
  }
}

function drawForm(id, method, path, operation) {
  const [choices, box] = [choicesOf(operation), el("div", { class: "fields" })];
  const options = choices.map(({ label }, i) => el("option", { value: i }, label));
  const select = el("select", { id: `${id}-example` }, ...options);
  const form = el("form", { novalidate: "" }, box, el("button", { type: "submit" }, "Execute"));
  const outcome = el("p", { class: "outcome", role: "status" });
  const parts = { command: el("div", {}), outcome, answer: el("div", {}) };
  let fields;
  const fill = () => {
    fields = fieldsOf(operation, choices[select.value]);
    box.replaceChildren(...fields.map((field) => drawField(id, field)));
  };
  fill();
  select.addEventListener("change", fill);
  if (choices.length > 1) form.prepend(el("label", { for: select.id }, "Example"), select);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    // A second press while the first waits would show two answers in one place.
    if (form.ariaBusy === "true") return;
    form.ariaBusy = "true";
    await execute(operation, build(method, path, operation, choices[select.value]?.type, fields), parts);
    form.ariaBusy = "false";
  });
  return [form, parts.command, outcome, parts.answer];
}

function drawAnswers(operation) {
  const rows = Object.entries(operation.responses).flatMap(([status, answer]) => {
    const { description, headers, content } = resolve(answer);
    const examples = Object.values(content["application/json"].examples).map((example) => resolve(example).value);
    const texts = new Set(examples.map((value) => JSON.stringify(value)));
    return [el("dt", {}, status), el("dd", {}, description, el("p", { class: "hint" }, Object.keys(headers).join(", ")),
      ...[...texts].map((text) => el("code", {}, text)))];
  });
  return el("details", { class: "answers" }, el("summary", {}, "Documented answers"), el("dl", {}, ...rows));
}

function drawOperation(path, method, operation) {
  const { operationId, summary, description, security } = operation;
  const lock = security && el("span", { class: "lock", role: "img", "aria-label": "needs a token" });
  return el("details", { id: `op-${operationId}`, class: "operation" },
    el("summary", {}, el("span", { class: `method ${method}` }, method.toUpperCase()), " ", el("code", {}, path), " ",
      el("span", { class: "what" }, summary), " ", lock ?? ""),
    el("div", { class: "inside" }, ...prose(description),
      ...drawForm(operationId, method.toUpperCase(), path, operation), drawAnswers(operation)));
}

function drawPage() {
  const rows = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => [path, method, operation]));
  const sections = api.tags.map(({ name, description }) => el("section", { "aria-labelledby": `tag-${name}` },
    el("h2", { id: `tag-${name}` }, name, " ", el("small", {}, description)),
    ...rows.filter(([, , { tags }]) => tags.includes(name)).map((row) => drawOperation(...row))));
  byId("title").textContent = api.info.title;
  byId("operations").replaceChildren(...prose(api.info.description),
    el("p", {}, `Version ${api.info.version}, described in `, el("a", { href: source }, "openapi.json")), ...sections);
  byId("scopes").append(...Object.entries(scheme.scopes).map(([value, description]) => el("label", {},
    el("input", { type: "checkbox", name: "scope", value }), el("span", {}, el("b", {}, value), ` ${description}`))));
}

function say(text, kind) {
  byId("login-status").textContent = text;
  byId("login-status").className = kind;
}

async function login(event) {
  event.preventDefault();
  const form = new FormData(byId("login"));
  const body = new URLSearchParams({ grant_type: "password", scope: form.getAll("scope").join(" ") });
  ["username", "password"].forEach((name) => body.set(name, form.get(name)));
  say("Waiting for the answer", "");
  try {
    const { response, json } = await send({ url: new URL(scheme.tokenUrl, source), method: "POST", body });
    if (!response.ok) throw new Error(typeof json?.detail === "string" ? json.detail : `status ${response.status}`);
    useTokens(json, form.get("username"));
    byId("password").value = "";
    say(`Authorized as ${session.account}`, "good");
    byId("close").focus();
  } catch (error) {
    say(`Refused: ${error.message}`, "bad");
    byId("password").select();
  }
}

async function start() {
  api = await (await fetch(source)).json();
  scheme = api.components.securitySchemes.OAuth2PasswordBearer.flows.password;
  drawPage();
  useTokens(null);
  byId("login").addEventListener("submit", login);
  byId("open").addEventListener("click", () => {
    say(session ? `Authorized as ${session.account}` : "", session ? "good" : "");
    byId("dialog").showModal();
  });
  byId("close").addEventListener("click", () => byId("dialog").close());
  byId("logout").addEventListener("click", () => {
    useTokens(null);
    say("Logged out: this page has forgotten its tokens.", "");
    byId("username").focus();
  });
}

start().catch((error) => byId("operations").replaceChildren(`The description can't be read: ${error.message}`));
