// A certified OpenID provider for the tests: npm oidc-provider on loopback, with a few addresses under /test/ by which
// a test sees what was asked and makes the provider fail. Prints its issuer as the first line.
//
// usage: node server.mjs '{"cloud": URL, "audience": URL, "auth_method": "client_secret_basic"}'
import { generateKeyPairSync } from "node:crypto";
import { createServer } from "node:http";

import Provider from "oidc-provider";

const { cloud, audience, auth_method: authMethod } = JSON.parse(process.argv[2]);

const key = (type, options, alg) => ({
  ...generateKeyPairSync(type, options).privateKey.export({ format: "jwk" }),
  alg,
  use: "sig",
  kid: alg,
});

/** Everything secret that went through the token endpoint. */
const secrets = [];
/** What came to the token endpoint, without secrets. */
const tokenRequests = [];
/** Grants with a refresh token. */
const grants = new Set();
let isDown = false;
/** What the claim of everybody says. */
let tenants = [];

const person = {
  redirect_uris: [`${cloud}/api/auth/callback`],
  post_logout_redirect_uris: [`${cloud}/`],
  backchannel_logout_uri: `${cloud}/api/auth/backchannel-logout`,
  backchannel_logout_session_required: true,
  grant_types: ["authorization_code", "refresh_token"],
  response_types: ["code"],
};
const program = {
  redirect_uris: [],
  response_types: [],
  grant_types: ["client_credentials"],
  token_endpoint_auth_method: authMethod,
};

const configuration = {
  clients: [
    { client_id: "public", token_endpoint_auth_method: "none", ...person },
    {
      client_id: "confidential",
      client_secret: "confidential-secret-canary",
      token_endpoint_auth_method: authMethod,
      ...person,
    },
    { client_id: "robot", client_secret: "robot-secret-canary", ...program },
    { client_id: "stranger", client_secret: "stranger-secret-canary", ...program },
    { client_id: "backend", client_secret: "backend-secret-canary", ...program },
  ],
  clientAuthMethods: ["none", authMethod],
  jwks: {
    keys: [
      key("rsa", { modulusLength: 2048 }, "RS256"),
      key("ec", { namedCurve: "P-256" }, "ES256"),
    ],
  },
  scopes: ["openid", "profile", "email", "offline_access"],
  claims: { openid: ["sub", "edgecloud_tenants"], profile: ["name"], email: ["email", "email_verified"] },
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({
      sub: id,
      name: `${id} at work`,
      email: `${id}@example.test`,
      email_verified: true,
      edgecloud_tenants: tenants,
    }),
  }),
  pkce: { required: () => true },
  rotateRefreshToken: true,
  // Short, so that a renewal can be awaited.
  ttl: { ClientCredentials: (_, token) => (token.resourceServer ? 600 : 20) },
  features: {
    backchannelLogout: { enabled: true },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: (_, __, oneOf) => oneOf,
      useGrantedResource: () => false,
      getResourceServerInfo: (_, resource) => ({
        scope: "api",
        audience: resource,
        accessTokenFormat: "jwt",
        accessTokenTTL: 600,
        jwt: { sign: { alg: "ES256" } },
      }),
    },
  },
  cookies: { keys: ["for the tests only"] },
  // The default refuses to call loopback addresses, where the tests' cloud is.
  fetch: (url, options) => {
    const { dispatcher, ...rest } = options;
    return globalThis.fetch(url, rest);
  },
};

const server = createServer();
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
const issuer = `http://127.0.0.1:${server.address().port}`;
const provider = new Provider(issuer, configuration);
provider.on("refresh_token.saved", (token) => grants.add(token.grantId));

provider.use(async (ctx, next) => {
  await next();
  if (ctx.path === "/token") {
    const { grant_type, client_id, client_secret, code_verifier } = ctx.oidc?.body ?? {};
    secrets.push(
      ...[ctx.oidc?.body?.code, code_verifier, ctx.oidc?.body?.refresh_token],
      ...[ctx.body?.access_token, ctx.body?.refresh_token, ctx.body?.id_token],
    );
    tokenRequests.push({
      grant_type,
      client_id_in_body: client_id !== undefined,
      client_secret_in_body: client_secret !== undefined,
      authorization: ctx.headers.authorization?.split(" ")[0] ?? null,
      code_verifier: code_verifier !== undefined,
      status: ctx.status,
    });
  }
});

/** What a test asks of the provider. */
const controls = {
  "GET /test/token-requests": () => tokenRequests,
  "GET /test/secrets": () => secrets.filter(Boolean),
  "POST /test/down": () => (isDown = true),
  "POST /test/up": () => (isDown = false),
  "POST /test/tenants": (query) => (tenants = query.get("are").split(",").filter(Boolean)),
  // As an administrator who ends everybody's sessions.
  "POST /test/revoke-grants": async () => {
    for (const grant of grants) {
      await provider.RefreshToken.revokeByGrantId(grant);
      await provider.AccessToken.revokeByGrantId(grant);
    }
    return grants.size;
  },
};
const handle = provider.callback();
server.on("request", async (request, response) => {
  const { pathname, searchParams } = new URL(request.url, issuer);
  const control = controls[`${request.method} ${pathname}`];
  if (control) {
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify(await control(searchParams)));
  } else if (isDown) {
    request.socket.destroy();
  } else {
    handle(request, response);
  }
});
console.log(issuer);
