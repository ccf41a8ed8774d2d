#!/usr/bin/env bash
# A server that speaks TLS 1.3 sends session tickets right after the handshake. The blocking client of redis-py 8.1.0
# with hiredis 3.5.0 looks only at whether the socket has bytes, so a ticket is a response to it that nobody asked for: it
# connects again, meets the next ticket, and raises "Connection not ready". That needs a connection that has read nothing
# yet: protocol=2, no CLIENT SETINFO, no password, database 0. Whether it fails depends on who is faster: with
# redis-server 7.0.15 on a busy machine, 166 of 500 new connections did. Here each waits until the tickets were sent.
# Version 7.4.0, version 8.1.0 without hiredis, and the client for asyncio know tickets from responses. To read any
# response first (PING, in redis_connect_func) helps. Fails if that changes. Needs the openssl command.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
for packages in "redis==7.4.0 hiredis==3.5.0" "redis==8.1.0" "redis==8.1.0 hiredis==3.5.0"; do
  # shellcheck disable=SC2086  # several packages
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --target "$folder/$packages" $packages
done
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
  -addext subjectAltName=IP:127.0.0.1 -keyout "$folder/key" -out "$folder/certificate" 2>"$folder/openssl" ||
  { cat "$folder/openssl"; exit 1; }
cat >"$folder/ask.py" <<'PYTHON'
import asyncio
import socketserver
import ssl
import sys
import threading

import redis

folder = sys.argv[1]
tickets_sent = threading.Semaphore(0)


class Server(socketserver.ThreadingTCPServer):
    """Responds +PONG to a PING."""

    daemon_threads = True

    def finish_request(self, request, _):
        with context.wrap_socket(request, server_side=True) as connection:
            tickets_sent.release()  # the handshake is done, and on one machine what was sent has arrived
            while connection.recv(4096):
                connection.sendall(b"+PONG\r\n")


def on_connect(connection):
    connection.on_connect()
    assert tickets_sent.acquire(timeout=30)


async def on_connect_in_a_loop(connection):
    await connection.on_connect()
    assert await asyncio.to_thread(tickets_sent.acquire, timeout=30)


def read_first(connection):
    on_connect(connection)
    connection.send_command("PING")
    connection.read_response()


async def ping():
    options["redis_connect_func"] = on_connect_in_a_loop
    async with redis.asyncio.Redis(**options) as client:
        return await client.ping()


context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.minimum_version = ssl.TLSVersion.TLSv1_3
context.load_cert_chain(f"{folder}/certificate", f"{folder}/key")
with Server(("127.0.0.1", 0), None) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = {"host": "127.0.0.1", "port": server.server_address[1], "ssl": True, "protocol": 2}
    options |= {"ssl_ca_certs": f"{folder}/certificate", "lib_name": None, "lib_version": None}
    for title, function in (("blocking", on_connect), ("a response read first", read_first)):
        with redis.Redis(**options, redis_connect_func=function) as client:
            try:
                print(f"  {title}:", client.ping())
            except redis.RedisError as error:
                print(f"  {title}: {type(error).__name__}: {error}")
    print("  asyncio:", asyncio.run(ping()))
    server.shutdown()
PYTHON
for packages in "$folder"/redis*; do
  echo "${packages##*/}"
  PYTHONPATH=$packages PYTHONWARNINGS=ignore "$folder/venv/bin/python" "$folder/ask.py" "$folder"
done | tee "$folder/seen"
cat >"$folder/expected" <<'SEEN'
redis==7.4.0 hiredis==3.5.0
  blocking: True
  a response read first: True
  asyncio: True
redis==8.1.0
  blocking: True
  a response read first: True
  asyncio: True
redis==8.1.0 hiredis==3.5.0
  blocking: ConnectionError: Connection not ready
  a response read first: True
  asyncio: True
SEEN
diff "$folder/expected" "$folder/seen" || { echo "This has changed; expected: the lines with <"; exit 1; }
