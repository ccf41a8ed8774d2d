#!/usr/bin/env bash
# ws 8.23.0 goes on emitting "message" after the server called `socket.close()`: for whatever the client sends until it
# answers with a close of its own, while the socket's readyState is CLOSING (2). By default, a client that does not
# answer has 30 seconds (`closeTimeout`). So a handler that must not act for a closed socket has to look at readyState
# itself. `send()` differs: after `close()` it fails.
# Seen with Node 20.20.2. Needs node and npm. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm install --prefix "$folder" --loglevel=error --no-package-lock --no-audit --no-fund ws@8.23.0 >"$folder/npm.log"
cat >"$folder/ask.mjs" <<'JAVASCRIPT'
import { once } from "node:events";
import { WebSocket, WebSocketServer } from "ws";

const server = new WebSocketServer({ host: "127.0.0.1", port: 0 });
await once(server, "listening");
const client = new WebSocket(`ws://127.0.0.1:${server.address().port}`);
const [[socket]] = await Promise.all([once(server, "connection"), once(client, "open")]);
socket.on("message", (data) => console.log(`message "${data}", readyState ${socket.readyState}`));

// A client that does not read yet does not answer the close either.
client.pause();
socket.close(4401, "over");
console.log(`close() called, readyState ${socket.readyState}`);
socket.send("after close()", (error) => console.log(`send(): ${error?.message}`));
for (const text of ["first", "second"]) {
  client.send(text);
  await once(socket, "message", { signal: AbortSignal.timeout(20_000) });
}
client.resume();
const [code] = await once(socket, "close");
console.log(`closed with ${code}, readyState ${socket.readyState}`);
server.close();
JAVASCRIPT
timeout 60 node "$folder/ask.mjs" | tee "$folder/seen" || true
cat >"$folder/expected" <<'SEEN'
close() called, readyState 2
send(): WebSocket is not open: readyState 2 (CLOSING)
message "first", readyState 2
message "second", readyState 2
closed with 4401, readyState 3
SEEN
diff "$folder/expected" "$folder/seen" || { echo "This has changed; expected: the lines with <"; exit 1; }
