#!/usr/bin/env bash
# What XREAD returns has three shapes, if it is sent with a client's general call: a list of pairs (the stream's name
# and its entries), an object, or one list in which names and entries take turns. Which one it is depends on the
# client's version and protocol. node-redis 5.12.1 gives pairs, and an object with RESP 3; node-redis 6.3.1 speaks
# RESP 3 by default, so it gives an object. ioredis 5.11.1 gives pairs. ioredis 6.0.0 speaks RESP 3 by default, too:
# call("XREAD") gives one list, but call("xread") gives pairs. Its README says that replies have the same shape with
# both protocols; that holds only for a name in lower case.
# Asked of Redis 7.0.15 with Node 20.20.2. Needs node, npm, redis-server and redis-cli. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
server=
end() {
  if [[ -n "$server" ]]; then
    kill "$server" 2>/dev/null || true
    wait "$server" || true
  fi
  rm -rf "$folder"
}
trap end EXIT
npm install --prefix "$folder" --loglevel=error --no-package-lock --no-audit --no-fund \
  redis5@npm:redis@5.12.1 redis6@npm:redis@6.3.1 \
  ioredis5@npm:ioredis@5.11.1 ioredis6@npm:ioredis@6.0.0 >"$folder/npm.log"
port=$(node -e 'const server = require("net").createServer().listen(0, "127.0.0.1", () => {
  console.log(server.address().port);
  server.close();
})')
redis-server --bind 127.0.0.1 --port "$port" --save "" --dir "$folder" >"$folder/redis.log" &
server=$!
until grep -q "Ready to accept connections" "$folder/redis.log"; do
  kill -0 "$server" 2>/dev/null || { cat "$folder/redis.log"; exit 1; }
  sleep 0.02
done
redis-cli -h 127.0.0.1 -p "$port" XADD events 1-0 name value >"$folder/added"
cat >"$folder/ask.mjs" <<'JAVASCRIPT'
import { Redis as Redis5 } from "ioredis5";
import { Redis as Redis6 } from "ioredis6";
import { createClient as createClient5 } from "redis5";
import { createClient as createClient6 } from "redis6";

const url = `redis://127.0.0.1:${process.argv[2]}`;
const READ = ["STREAMS", "events", "0"];
const show = (name, response) => console.log(`${name}: ${JSON.stringify(response)}`);

for (const [name, createClient] of [["node-redis 5.12.1", createClient5], ["node-redis 6.3.1", createClient6]]) {
  for (const options of [{}, { RESP: 2 }, { RESP: 3 }]) {
    const client = createClient({ url, ...options });
    client.on("error", () => {});
    await client.connect();
    show(`${name}, ${options.RESP ?? "default"}, XREAD`, await client.sendCommand(["XREAD", ...READ]));
    client.destroy();
  }
}
// ioredis 5 has no such option.
for (const [name, Redis, choices] of [["ioredis 5.11.1", Redis5, [{}]],
  ["ioredis 6.0.0", Redis6, [{}, { protocol: 2 }, { protocol: 3 }]]]) {
  for (const options of choices) {
    const client = new Redis(url, options);
    const choice = options.protocol ?? "default";
    show(`${name}, ${choice}, XREAD`, await client.call("XREAD", ...READ));
    show(`${name}, ${choice}, xread`, await client.call("xread", ...READ));
    client.disconnect();
  }
}
JAVASCRIPT
timeout 60 node "$folder/ask.mjs" "$port" | tee "$folder/seen" || true
cat >"$folder/expected" <<'SEEN'
node-redis 5.12.1, default, XREAD: [["events",[["1-0",["name","value"]]]]]
node-redis 5.12.1, 2, XREAD: [["events",[["1-0",["name","value"]]]]]
node-redis 5.12.1, 3, XREAD: {"events":[["1-0",["name","value"]]]}
node-redis 6.3.1, default, XREAD: {"events":[["1-0",["name","value"]]]}
node-redis 6.3.1, 2, XREAD: [["events",[["1-0",["name","value"]]]]]
node-redis 6.3.1, 3, XREAD: {"events":[["1-0",["name","value"]]]}
ioredis 5.11.1, default, XREAD: [["events",[["1-0",["name","value"]]]]]
ioredis 5.11.1, default, xread: [["events",[["1-0",["name","value"]]]]]
ioredis 6.0.0, default, XREAD: ["events",[["1-0",["name","value"]]]]
ioredis 6.0.0, default, xread: [["events",[["1-0",["name","value"]]]]]
ioredis 6.0.0, 2, XREAD: [["events",[["1-0",["name","value"]]]]]
ioredis 6.0.0, 2, xread: [["events",[["1-0",["name","value"]]]]]
ioredis 6.0.0, 3, XREAD: ["events",[["1-0",["name","value"]]]]
ioredis 6.0.0, 3, xread: [["events",[["1-0",["name","value"]]]]]
SEEN
diff "$folder/expected" "$folder/seen" || { echo "This has changed; expected: the lines with <"; exit 1; }
