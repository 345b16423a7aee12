// A provider of OpenID Connect: node provider.mjs MODULES CLIENT_ID [CLIENT_SECRET]
//
// MODULES is where npm has installed packages. Its page signs in everybody as whom they say they are, and asks whether
// the client may know it. It vouches for an address of theirs in lab.example, which it tells when it is asked and not in
// the ID token, as the standard has it. Its keys are new each time. It writes one line with its address, whose port may
// be given in PROVIDER_PORT. Version 9 of oidc-provider needs a newer Node than these tests.
import { generateKeyPairSync, randomBytes } from "node:crypto";
import { createServer } from "node:http";
import path from "node:path";
import { text } from "node:stream/consumers";
import { pathToFileURL } from "node:url";

const [modules, client_id, client_secret] = process.argv.slice(2);
const { default: Provider, interactionPolicy } = await import(pathToFileURL(path.join(modules, "oidc-provider/lib/index.js")).href);

const PAGE = (prompt) => `<!doctype html>
<html lang="en"><meta charset="utf-8"><link rel="icon" href="data:,"><title>Provider</title>
<h1>${prompt === "login" ? "Who are you?" : "May it know?"}</h1>
<form method="post">
${prompt === "login" ? '<input name="login" aria-label="Name" required>' : ""}
<button name="answer" value="yes">Yes</button>
<button name="answer" value="no" formnovalidate>No</button>
</form></html>`;

/** The page on which somebody signs in, and consents. */
async function interact(provider, request, response) {
  const { prompt, params, session } = await provider.interactionDetails(request, response);
  if (request.method !== "POST") {
    response.setHeader("Content-Type", "text/html");
    response.end(PAGE(prompt.name));
    return;
  }
  const form = new URLSearchParams(await text(request));
  let result;
  if (form.get("answer") !== "yes") {
    result = { error: "access_denied", error_description: "somebody said no" };
  } else if (prompt.name === "login") {
    result = { login: { accountId: form.get("login") } };
  } else {
    const grant = new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
    grant.addOIDCScope(params.scope);
    result = { consent: { grantId: await grant.save() } };
  }
  await provider.interactionFinished(request, response, result);
}

function settings() {
  const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const policy = interactionPolicy.base();
  policy.get("consent").checks.remove("native_client_prompt"); // which asks each time
  const claims = (id) => ({ sub: id, email: `${id}@lab.example`, email_verified: true, preferred_username: id });
  return {
    clients: [
      {
        client_id,
        client_secret,
        token_endpoint_auth_method: client_secret ? "client_secret_basic" : "none",
        application_type: "native", // whose addresses on this machine may have any port (RFC 8252)
        redirect_uris: ["http://localhost/account/oidc/callback"],
        response_types: ["code"],
        grant_types: ["authorization_code"],
        id_token_signed_response_alg: "ES256",
      },
    ],
    claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["preferred_username"] },
    cookies: { keys: [randomBytes(32).toString("hex")] },
    features: { devInteractions: { enabled: false } },
    findAccount: (context, id) => ({ accountId: id, claims: async () => claims(id) }),
    interactions: { url: (context, interaction) => `/interaction/${interaction.uid}`, policy },
    jwks: { keys: [{ ...privateKey.export({ format: "jwk" }), kid: randomBytes(8).toString("hex"), use: "sig" }] },
    pkce: { required: () => true },
  };
}

const server = createServer();
server.listen(Number(process.env.PROVIDER_PORT ?? 0), "127.0.0.1", () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, settings());
  const standard = provider.callback();
  server.on("request", async (request, response) => {
    if (!request.url.startsWith("/interaction/")) return standard(request, response);
    try {
      await interact(provider, request, response);
    } catch (error) {
      console.error(error);
      response.writeHead(400).end(String(error));
    }
  });
  console.log(`issuer ${issuer}`);
});
