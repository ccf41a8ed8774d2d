// An API in Express that lets in who has a session token of Clerk's, unless the session has ended.
//
//   (cd <checkout>/clients/typescript && npm install --no-package-lock && npm pack)
//   npm install express @clerk/express redis <checkout>/clients/typescript/clerk-session-feed-0.1.0.tgz
//   export REDIS_URL=redis://… CLERK_SECRET_KEY=sk_… CLERK_PUBLISHABLE_KEY=pk_…
//   CLERK_AUTHORIZED_PARTIES=https://example.com PORT=3000 node express.mjs
//   curl -H "Authorization: Bearer <what getToken() returns in the browser>" http://127.0.0.1:3000/me
//
// CLERK_AUTHORIZED_PARTIES: the origins of your front ends, separated by commas. With CLERK_JWT_KEY, the JWKS public key
// from the API keys page of Clerk's dashboard in PEM, nobody is asked for a key.
//
// 401: there is no valid token, or the session has ended. 503: Redis can't say, and a request that can't be checked is
// refused.
//
// A mirror has the state of all sessions in memory, so no request waits for Redis. When the mirror is not ready yet, or
// may have missed something for more than five seconds, it asks Redis.
import { clerkMiddleware, getAuth } from "@clerk/express";
import { SessionFeed } from "clerk-session-feed";
import { sessionGuard } from "clerk-session-feed/express";
import express from "express";
import { createClient } from "redis";

const NEEDED = ["REDIS_URL", "CLERK_SECRET_KEY", "CLERK_PUBLISHABLE_KEY", "CLERK_AUTHORIZED_PARTIES"];
const missing = NEEDED.find((name) => !process.env[name]);
if (missing) {
  console.error(`${missing}: is missing; set it as the top of express.mjs says`);
  process.exit(1);
}
const { REDIS_URL, CLERK_AUTHORIZED_PARTIES, PORT = "3000" } = process.env;

const client = createClient({ url: REDIS_URL });
client.on("error", ({ code, message }) => console.error(`Redis: ${message || code}; trying again …`));
await client.connect();
const feed = new SessionFeed(client); // one for all requests
const mirror = feed.mirror({ pastMaxAge: "ask" });

const app = express();
app.use(clerkMiddleware({ authorizedParties: CLERK_AUTHORIZED_PARTIES.split(",") }));
app.use(sessionGuard(mirror)); // whoever has a session, has a live one behind this line
app.get("/me", (request, response) => {
  const { userId, sessionId } = getAuth(request);
  if (userId) response.json({ session_id: sessionId });
  else response.status(401).json({ title: "Sign in first" }); // a guard lets pass who has no session
});

const server = app.listen(Number(PORT), "127.0.0.1", () => {
  console.log(`http://127.0.0.1:${server.address().port}/me`);
});
for (const signal of ["SIGINT", "SIGTERM"])
  process.once(signal, async () => {
    server.close();
    await feed.close(); // the mirror, too
    client.destroy();
  });
