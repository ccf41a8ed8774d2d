#!/usr/bin/env bash
# A server sends session tickets right after the handshake of TLS 1.3. With hiredis, redis-py takes them for data on a new
# connection that nobody read, connects once more, and gives up: "Connection not ready". With its defaults nobody sees
# that, since it sends CLIENT SETINFO and reads the reply. It shows where a connection sends nothing at first (RESP2, no
# password, database 0, no driver_info), and only if the tickets are there before it looks: the client waits for them
# here. TLS 1.2 has no such tickets. redis-py without hiredis does not look like that.
# redis-py 8.1.0 with hiredis 3.5.0; certificates of trustme 1.2.1. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0 hiredis==3.5.0 trustme==1.2.1
cat >"$folder/ask.py" <<'PYTHON'
import contextlib
import pathlib
import socket
import ssl
import sys
import threading
import time

import redis
import trustme

folder = pathlib.Path(sys.argv[1])
authority = trustme.CA()
authority.cert_pem.write_to_path(str(folder / "ca.pem"))


def serve(listener, context):
    """Reply +OK to whatever comes."""
    for _ in range(2):  # it connects twice, at most
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with context.wrap_socket(connection, server_side=True) as tls:
                while tls.recv(4096):
                    tls.sendall(b"+OK\r\n")


def ask(version, **options):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.maximum_version = version
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener, context), daemon=True).start()
        url = f"rediss://127.0.0.1:{listener.getsockname()[1]}?ssl_ca_certs={folder}/ca.pem"

        def greet(connection):
            connection.on_connect()
            time.sleep(0.5)

        client = redis.Redis.from_url(url, protocol=2, redis_connect_func=greet, **options)
        try:
            return client.execute_command("ECHO", "1")
        except redis.ConnectionError as error:
            return f"ConnectionError: {error}"


once = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
print("redis-py", redis.__version__)
print("TLS 1.3, nothing sent at first:", ask(ssl.TLSVersion.TLSv1_3, driver_info=None, retry=once))
print("TLS 1.3, CLIENT SETINFO sent:", ask(ssl.TLSVersion.TLSv1_3, retry=once))
print("TLS 1.2, nothing sent at first:", ask(ssl.TLSVersion.TLSv1_2, driver_info=None, retry=once))
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" "$folder" | tee "$folder/seen"
cat >"$folder/expected" <<'SEEN'
redis-py 8.1.0
TLS 1.3, nothing sent at first: ConnectionError: Connection not ready
TLS 1.3, CLIENT SETINFO sent: b'OK'
TLS 1.2, nothing sent at first: b'OK'
SEEN
diff "$folder/expected" "$folder/seen" || { echo "This has changed; expected: the lines with <"; exit 1; }
