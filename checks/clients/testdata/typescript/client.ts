// Uses openapi-fetch with the types that openapi-typescript generated, and validates responses with ajv.
import { Ajv2020 } from "ajv/dist/2020.js";
import formats from "ajv-formats";
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

declare const process: { env: Record<string, string> };

const baseUrl = process.env.SERVICE;
const email = "info@münchen.de";
const password = "secret123";
const client = createClient<paths>({ baseUrl });

const ajv = new Ajv2020({ strict: false });
formats.default(ajv);
ajv.addSchema(await (await fetch(baseUrl + "/openapi.json")).json(), "api");

function check(schema: keyof components["schemas"], value: unknown) {
  if (!ajv.validate({ $ref: "api#/components/schemas/" + schema }, value)) {
    throw new Error(`${schema}: ${JSON.stringify(value)}: ${ajv.errorsText()}`);
  }
}

async function me(pair?: components["schemas"]["TokenPair"]) {
  check("TokenPair", pair);
  const { data } = await client.GET("/me", { headers: { Authorization: "Bearer " + pair?.access_token } });
  check("User", data);
  if (data?.email !== email) {
    throw new Error(`me: got ${data?.email}, want ${email}`);
  }
}

await me((await client.POST("/auth/register", { body: { email, password, name: "Grete" } })).data);
const login = await client.POST("/auth/login", { body: { username: email, password } }); // sends JSON
await me(login.data);
await me((await client.POST("/auth/refresh", { body: { refresh_token: login.data!.refresh_token } })).data);
const short = await client.POST("/auth/register", { body: { email, password: "short", name: "Grete" } });
check("ValidationError", short.error);
