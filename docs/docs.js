// The page is built from the API's OpenAPI description. Everything that the service returns becomes a text node and is
// never parsed as markup, which the page's Content-Security-Policy enforces.

const source = new URL("/openapi.json", location.origin);
const byId = (id) => document.getElementById(id);
let api, scheme;
let session = null; // token pair and account; kept only in memory, so that a reload discards it

// el returns a new element. Attributes that are null or undefined are left out.
function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  Object.entries(attributes).filter(([, value]) => value != null).forEach((pair) => node.setAttribute(...pair));
  node.append(...children);
  return node;
}

function button(text, onClick) {
  const node = el("button", { type: "button" }, text);
  node.addEventListener("click", onClick);
  return node;
}

// prose returns the paragraphs of a description. Of CommonMark it supports paragraphs and code spans.
const prose = (text = "") => text.split("\n\n").filter(Boolean).map((paragraph) =>
  el("p", {}, ...paragraph.split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part))));

// resolve returns node, or what its $ref points to.
function resolve(node) {
  return node?.$ref ? resolve(node.$ref.slice(2).split("/").reduce((at, key) => at[key], api)) : node;
}

// bodyOf returns the content type, the schema and the examples of an operation's request body.
function bodyOf({ requestBody }) {
  const [type, media] = Object.entries(requestBody?.content ?? {})[0] ?? [];
  return { type, schema: resolve(media?.schema) ?? {}, examples: Object.values(media?.examples ?? {}) };
}

// fieldsOf returns an operation's parameters and the properties of its body, filled in from an example.
function fieldsOf({ parameters = [] }, { properties = {}, required = [] }, example) {
  const inBody = Object.entries(properties).map(([name, schema]) => ({ name, in: "body", schema,
    description: schema.description, required: required.includes(name), example: example?.value[name] }));
  return [...parameters.map((parameter) => ({ ...resolve(parameter) })), ...inBody];
}

function hint({ required, description, schema }) {
  const [min, max] = [schema.minLength ?? schema.minimum, schema.maxLength ?? schema.maximum];
  const range = max && `${min ? `${min} to` : "up to"} ${max}${schema.type === "string" ? " characters" : ""}`;
  const rule = [required ? "required" : "optional", schema.format ?? schema.type, range].filter(Boolean).join(", ");
  return [rule, description].filter(Boolean).join(". ");
}

// drawField returns a plain text input without client-side validation, so that the service's own errors can be seen.
function drawField(prefix, field) {
  const id = `${prefix}-${field.name}`;
  const type = field.schema.format === "password" ? "password" : "text";
  const value = typeof field.example === "string" ? field.example : JSON.stringify(field.example);
  field.input = el("input", { id, type, name: field.name, value, "aria-describedby": `${id}-hint`,
    autocomplete: "off", autocapitalize: "none", spellcheck: "false" });
  if (field.name.endsWith("token") && session) field.input.value = session.refresh_token;
  return el("div", { class: "field" }, el("label", { for: id }, field.name), field.input,
    el("p", { id: `${id}-hint`, class: "hint" }, hint(field)));
}

// valueOf returns the value of a field for a JSON body. Text that is not JSON stays text.
function valueOf({ schema, input }) {
  try {
    return schema.type === "string" ? input.value : JSON.parse(input.value);
  } catch {
    return input.value;
  }
}

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// build returns a request and the equivalent curl command.
function build(method, path, operation, type, fields) {
  const sent = fields.filter((field) => field.required || field.input.value !== "");
  const pairsIn = (place, read = ({ input }) => input.value) =>
    sent.filter((field) => field.in === place).map((field) => [field.name, read(field)]);
  const [query, pairs] = [new URLSearchParams(pairsIn("query")).toString(), pairsIn("body")];
  const inPath = Object.fromEntries(pairsIn("path"));
  const filled = path.replace(/\{(\w+)\}/g, (template, name) => encodeURIComponent(inPath[name] || template));
  const url = new URL(`.${filled}${query && `?${query}`}`, source);
  const headers = {};
  let [body, data] = [undefined, []];
  if (operation.security && session) headers.Authorization = `Bearer ${session.access_token}`;
  if (type === "application/json") {
    headers["Content-Type"] = type;
    body = JSON.stringify(Object.fromEntries(pairsIn("body", valueOf)));
    data = [`--data-raw ${quote(body)}`];
  } else if (type) {
    body = new URLSearchParams(pairs);
    data = pairs.map((pair) => `--data-urlencode ${quote(pair.join("="))}`);
  }
  const lines = Object.entries(headers).map((header) => `-H ${quote(header.join(": "))}`);
  const curl = [`curl -i -X ${method} ${quote(url.href)}`, ...lines, ...data].join(" \\\n  ");
  return { url, method, headers, body, curl, values: Object.fromEntries(pairs) };
}

// send sends a request without cookies or the browser's cache, so that the response shown is the service's own.
async function send({ url, method, headers, body }) {
  const start = performance.now();
  const response = await fetch(url, { method, headers, body, cache: "no-store", credentials: "omit" });
  let text = await response.text();
  const took = Math.round(performance.now() - start);
  let json = null;
  try {
    json = JSON.parse(text);
    text = JSON.stringify(json, null, 2);
  } catch { /* Text that is not JSON is shown as it is. */ }
  return { response, text, json, took };
}

// sendFresh sends the request that build returns. If its access token is not valid, sendFresh exchanges the refresh
// token for a new pair and sends the request once more. A rejected refresh token ends the session.
async function sendFresh(build) {
  const sent = await send(build());
  const challenge = sent.response.headers.get("WWW-Authenticate") ?? "";
  if (!session || sent.response.status !== 401 || !challenge.includes("invalid_token")) return sent;
  const { response, json } = await send({ url: new URL(scheme.refreshUrl, source), method: "POST",
    body: new URLSearchParams({ grant_type: "refresh_token", refresh_token: session.refresh_token }) });
  if (response.ok || response.status === 401) useTokens(response.ok ? json : null);
  return response.ok ? send(build()) : sent;
}

// useTokens makes pair the current session. Null ends the session.
function useTokens(pair, account) {
  session = pair && { ...pair, account: account ?? session?.account ?? "unknown user" };
  byId("session").textContent = session ? `Authorized as ${session.account}` : "Not authorized";
  document.body.classList.toggle("authorized", session !== null);
  byId("credentials").hidden = byId("authorize").hidden = session !== null;
  byId("logout").hidden = session === null;
  for (const input of document.querySelectorAll("input[name$=token]")) {
    input.value = session?.refresh_token ?? input.defaultValue;
  }
}

async function copy(text, note) {
  try {
    await navigator.clipboard.writeText(text.textContent);
    note.textContent = "Copied";
  } catch {
    // The clipboard requires HTTPS or localhost. Elsewhere the text is selected instead.
    getSelection().selectAllChildren(text);
    note.textContent = "Selected. Copy it with the keyboard.";
  }
}

// block returns a titled text with an optional button. The button's action gets the text's element and a note.
function block(title, text, label, action) {
  const pre = el("pre", { tabindex: 0, role: "group", "aria-label": title }, text);
  const note = el("span", { role: "status", class: "hint" });
  const bar = el("div", { class: "bar" }, el("h3", {}, title), note);
  if (label) bar.append(button(label, () => action(pre, note)));
  return el("div", { class: `block ${title}` }, bar, pre);
}

// execute sends the request that build returns, and shows its curl command, outcome and response.
async function execute(operation, build, { command, outcome, result }) {
  let request;
  const show = () => {
    request = build();
    command.replaceChildren(block("curl", request.curl, "Copy", copy));
    return request;
  };
  result.replaceChildren();
  outcome.replaceChildren("Waiting for a response");
  delete outcome.dataset.status;
  try {
    const { response, text, json, took } = await sendFresh(show);
    const meaning = resolve(operation.responses[response.status])?.description ?? "This status is not documented.";
    const headers = [...response.headers].map((header) => header.join(": ")).join("\n");
    const use = (pre, note) => {
      useTokens(json, request.values.username ?? request.values.email);
      note.textContent = "In use";
    };
    result.append(block("headers", headers), block("body", text, json?.access_token && "Use this token", use));
    outcome.replaceChildren(el("b", {}, `${response.status} ${response.statusText}`), ` in ${took} ms. ${meaning}`);
    outcome.dataset.status = response.status;
  } catch (error) {
    outcome.textContent = `No response: ${error.message}`;
  }
}

// drawForm returns an operation's form, and the elements that execute fills.
function drawForm(id, method, path, operation) {
  const { type, schema, examples } = bodyOf(operation);
  const box = el("div", { class: "fields" });
  const options = examples.map(({ summary }, i) => el("option", { value: i }, summary));
  const select = el("select", { id: `${id}-example` }, ...options);
  const form = el("form", { novalidate: "" }, box, el("button", { type: "submit" }, "Execute"));
  const outcome = el("p", { class: "outcome", role: "status" });
  const parts = { command: el("div", {}), outcome, result: el("div", {}) };
  let fields;
  const fill = () => {
    fields = fieldsOf(operation, schema, examples[select.value]);
    box.replaceChildren(...fields.map((field) => drawField(id, field)));
  };
  fill();
  select.addEventListener("change", fill);
  if (examples.length > 1) form.prepend(el("label", { for: select.id }, "Example"), select);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (form.ariaBusy === "true") return; // A request is in flight.
    form.ariaBusy = "true";
    await execute(operation, () => build(method, path, operation, type, fields), parts);
    form.ariaBusy = "false";
  });
  return [form, ...Object.values(parts)];
}

function drawResponses(operation) {
  const rows = Object.entries(operation.responses).flatMap(([status, response]) => {
    const { description, headers, content } = resolve(response);
    const examples = Object.values(content?.["application/json"].examples ?? {}).map(resolve);
    const texts = new Set(examples.map(({ value }) => JSON.stringify(value)));
    return [el("dt", {}, status), el("dd", {}, description, el("p", { class: "hint" }, Object.keys(headers).join(", ")),
      ...[...texts].map((text) => el("code", {}, text)))];
  });
  return el("details", { class: "responses" }, el("summary", {}, "Documented responses"), el("dl", {}, ...rows));
}

function drawOperation(path, method, operation) {
  const { operationId, summary, description, security } = operation;
  const lock = security && el("span", { class: "lock", role: "img", "aria-label": "requires a token" });
  return el("details", { id: `op-${operationId}`, class: "operation" },
    el("summary", {}, el("span", { class: `method ${method}` }, method.toUpperCase()), " ", el("code", {}, path), " ",
      el("span", { class: "what" }, summary), " ", lock ?? ""),
    el("div", { class: "inside" }, ...prose(description),
      ...drawForm(operationId, method.toUpperCase(), path, operation), drawResponses(operation)));
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

// report shows the state of the login in the dialog.
function report(text, kind = "") {
  byId("login-status").textContent = text;
  byId("login-status").className = kind;
}

async function login(event) {
  event.preventDefault();
  const form = new FormData(byId("login"));
  const body = new URLSearchParams({ grant_type: "password", username: form.get("username"),
    password: form.get("password"), scope: form.getAll("scope").join(" ") });
  report("Waiting for a response");
  try {
    const { response, json } = await send({ url: new URL(scheme.tokenUrl, source), method: "POST", body });
    if (!response.ok) throw new Error(typeof json?.detail === "string" ? json.detail : `status ${response.status}`);
    useTokens(json, form.get("username"));
    byId("password").value = "";
    report(`Authorized as ${session.account}`, "good");
    byId("close").focus();
  } catch (error) {
    report(`Login failed: ${error.message}`, "bad");
    byId("password").select();
  }
}

async function logout() {
  report("Waiting for a response");
  try {
    const path = "/auth/logout";
    const { response } = await sendFresh(() => build("POST", path, api.paths[path].post, undefined, []));
    if (!response.ok && response.status !== 401) throw new Error(`status ${response.status}`);
    useTokens(null);
    report("Logged out. The session has ended.");
    byId("username").focus();
  } catch (error) {
    report(`Logout failed: ${error.message}`, "bad");
  }
}

async function start() {
  api = await (await fetch(source)).json();
  scheme = api.components.securitySchemes.OAuth2PasswordBearer.flows.password;
  drawPage();
  useTokens(null);
  byId("login").addEventListener("submit", login);
  byId("open").addEventListener("click", () => {
    report(session ? `Authorized as ${session.account}` : "", session ? "good" : "");
    byId("dialog").showModal();
  });
  byId("close").addEventListener("click", () => byId("dialog").close());
  byId("logout").addEventListener("click", logout);
}

start().catch((error) => byId("operations").replaceChildren(`Cannot load the API description: ${error.message}`));
