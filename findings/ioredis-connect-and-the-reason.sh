#!/usr/bin/env bash
# ioredis 5.11.1 and 6.0.0 don't say why a connection failed: where nobody listens, `connect()` rejects with
# "Connection is closed.", without a `code` or a `cause`. The reason (ECONNREFUSED) is only in the event "error". By
# default the client goes on trying after that rejection; with a retryStrategy that returns null, it has ended.
# Seen with Node 20.20.2. Needs node and npm. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm install --prefix "$folder" --loglevel=error --no-package-lock --no-audit --no-fund \
  ioredis5@npm:ioredis@5.11.1 ioredis6@npm:ioredis@6.0.0 >"$folder/npm.log"
cat >"$folder/ask.mjs" <<'JAVASCRIPT'
import { once } from "node:events";
import { createServer } from "node:net";
import { Redis as Redis5 } from "ioredis5";
import { Redis as Redis6 } from "ioredis6";

// A port that was free a moment ago: nobody listens there.
const server = createServer().listen(0, "127.0.0.1");
await once(server, "listening");
const { port } = server.address();
server.close();
await once(server, "close");

for (const [name, Redis] of [["ioredis 5.11.1", Redis5], ["ioredis 6.0.0", Redis6]]) {
  for (const [choice, options] of [["default", {}], ["no retries", { retryStrategy: () => null }]]) {
    const client = new Redis({ host: "127.0.0.1", port, lazyConnect: true, ...options });
    const events = [];
    client.on("error", (error) => events.push(error.code));
    const error = await client.connect().catch((reason) => reason);
    console.log(`${name}, ${choice}: "${error.message}", code ${error.code}, cause ${error.cause}`);
    console.log(`  event "error": ${events}; then: ${client.status}`);
    client.disconnect();
  }
}
JAVASCRIPT
timeout 60 node "$folder/ask.mjs" | tee "$folder/seen" || true
cat >"$folder/expected" <<'SEEN'
ioredis 5.11.1, default: "Connection is closed.", code undefined, cause undefined
  event "error": ECONNREFUSED; then: reconnecting
ioredis 5.11.1, no retries: "Connection is closed.", code undefined, cause undefined
  event "error": ECONNREFUSED; then: end
ioredis 6.0.0, default: "Connection is closed.", code undefined, cause undefined
  event "error": ECONNREFUSED; then: reconnecting
ioredis 6.0.0, no retries: "Connection is closed.", code undefined, cause undefined
  event "error": ECONNREFUSED; then: end
SEEN
diff "$folder/expected" "$folder/seen" || { echo "This has changed; expected: the lines with <"; exit 1; }
