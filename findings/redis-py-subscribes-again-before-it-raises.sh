#!/usr/bin/env bash
# redis-py 8.1.0, told not to retry (`Retry(NoBackoff(), 0)`): a PubSub whose connection ends raises a ConnectionError,
# but first it connects again and subscribes again. So when the caller learns of the failure, Redis has a new
# subscription: PUBLISH counts it, and what is published to it is lost if the caller closes that PubSub and makes another
# one. It is so in redis.client and in redis.asyncio.
# Seen with Python 3.11. Needs python3 with venv, and redis-server. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0
redis-server --port 0 --unixsocket "$folder/redis.sock" --save '' --appendonly no >"$folder/redis.log" &
server=$!
cat >"$folder/ask.py" <<'PYTHON'
import asyncio
import sys
import time

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

path = sys.argv[1]
other = redis.Redis(unix_socket_path=path)
for _ in range(500):
    try:
        other.ping()
        break
    except redis.ConnectionError:
        time.sleep(0.01)


def report(kind, error, before):
    after = other.client_list("pubsub")
    is_new = {each["id"] for each in after}.isdisjoint(each["id"] for each in before)
    print(f"{kind}: {type(error).__name__}, then {len(after)} subscription, a new one: {is_new}")


def threads():
    client = redis.Redis(unix_socket_path=path, retry=Retry(NoBackoff(), 0))
    pubsub = client.pubsub()
    pubsub.subscribe("channel")
    assert pubsub.get_message(timeout=5)["type"] == "subscribe"
    before = other.client_list("pubsub")
    other.client_kill_filter(_id=before[0]["id"])
    try:
        pubsub.get_message(timeout=5)
    except redis.ConnectionError as error:
        time.sleep(0.2)  # for Redis to read what was sent
        report("redis.client", error, before)
    pubsub.close()


async def loop():
    client = redis.asyncio.Redis(unix_socket_path=path, retry=AsyncRetry(NoBackoff(), 0))
    pubsub = client.pubsub()
    await pubsub.subscribe("channel")
    assert (await pubsub.get_message(timeout=5))["type"] == "subscribe"
    before = other.client_list("pubsub")
    other.client_kill_filter(_id=before[0]["id"])
    try:
        await pubsub.get_message(timeout=5)
    except redis.ConnectionError as error:
        await asyncio.sleep(0.2)
        report("redis.asyncio", error, before)
    await pubsub.aclose()


threads()
while other.client_list("pubsub"):
    time.sleep(0.01)
asyncio.run(loop())
PYTHON
timeout 60 "$folder/venv/bin/python" "$folder/ask.py" "$folder/redis.sock" | tee "$folder/seen" || true
cat >"$folder/expected" <<'SEEN'
redis.client: ConnectionError, then 1 subscription, a new one: True
redis.asyncio: ConnectionError, then 1 subscription, a new one: True
SEEN
diff "$folder/expected" "$folder/seen" || { echo "This has changed; expected: the lines with <"; exit 1; }
