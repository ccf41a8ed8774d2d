#!/usr/bin/env bash
# duplicate() of Redis clients for Node (node-redis 5.12.1 and 6.3.1, ioredis 5.11.1 and 6.0.0, iovalkey 0.4.0) makes a
# client for the database in the options, not for the one that select() chose. The client itself keeps the chosen one,
# also when it connects again. So a duplicate for blocking reads or subscriptions may wait, without an error, in a
# database in which nothing happens. Seen with Node 20.20.2 and Redis 7.0.15. Needs node, npm and redis-server. Fails if
# that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "${server:-}" 2>"$folder/gone" || true; rm -rf "$folder"' EXIT
npm install --prefix "$folder" --loglevel=error --no-package-lock --no-audit --no-fund \
  redis5@npm:redis@5.12.1 redis6@npm:redis@6.3.1 ioredis5@npm:ioredis@5.11.1 ioredis6@npm:ioredis@6.0.0 \
  iovalkey@0.4.0 >"$folder/npm.log"
redis-server --port 0 --unixsocket "$folder/redis.sock" --dir "$folder" --save "" >"$folder/redis.log" &
server=$!
cat >"$folder/ask.mjs" <<'JAVASCRIPT'
import { existsSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { Redis as Redis5 } from "ioredis5";
import { Redis as Redis6 } from "ioredis6";
import { Redis as Valkey } from "iovalkey";
import * as redis5 from "redis5";
import * as redis6 from "redis6";

const [path] = process.argv.slice(2);
while (!existsSync(path)) await sleep(10);

const nodeRedis = ({ createClient }) => ({
  make: () => createClient({ socket: { path } }),
  ask: (client, ...command) => client.sendCommand(command),
  connect: (client) => client.connect(),
  end: (client) => client.destroy(),
});
const ioredis = (Redis) => ({
  make: () => new Redis({ path, lazyConnect: true }),
  ask: (client, ...command) => client.call(...command),
  connect: (client) => client.connect(),
  end: (client) => client.disconnect(),
});
const libraries = {
  "node-redis 5.12.1": nodeRedis(redis5),
  "node-redis 6.3.1": nodeRedis(redis6),
  "ioredis 5.11.1": ioredis(Redis5),
  "ioredis 6.0.0": ioredis(Redis6),
  "iovalkey 0.4.0": ioredis(Valkey),
};
for (const [name, { make, ask, connect, end }] of Object.entries(libraries)) {
  const database = async (client) => / db=(\d+)/.exec(await ask(client, "CLIENT", "INFO"))[1];
  const client = make();
  client.on("error", () => undefined);
  await connect(client);
  await client.select(3);
  const selected = await database(client);
  const copy = client.duplicate();
  copy.on("error", () => undefined);
  await connect(copy);
  const again = new Promise((resolve) => client.once("ready", resolve));
  await ask(copy, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes");
  await again;
  const [later, copied] = [await database(client), await database(copy)];
  console.log(`${name}: selected ${selected}, connected again ${later}, duplicate ${copied}`);
  end(client);
  end(copy);
}
JAVASCRIPT
timeout 60 node "$folder/ask.mjs" "$folder/redis.sock" | tee "$folder/seen" || true
cat >"$folder/expected" <<'SEEN'
node-redis 5.12.1: selected 3, connected again 3, duplicate 0
node-redis 6.3.1: selected 3, connected again 3, duplicate 0
ioredis 5.11.1: selected 3, connected again 3, duplicate 0
ioredis 6.0.0: selected 3, connected again 3, duplicate 0
iovalkey 0.4.0: selected 3, connected again 3, duplicate 0
SEEN
diff "$folder/expected" "$folder/seen" || { echo "This has changed; expected: the lines with <"; exit 1; }
