#!/usr/bin/env bash
# clerk-backend-api 7.0.0 (Clerk's SDK for Python) reads a session's `actor`, which says who impersonates the user, as an
# object without fields: its `sub` is lost. One session with a status that this version doesn't know makes a whole list
# unreadable. A request that gets 429 with Retry-After is not sent again; one that gets 503 is, even if it is a POST.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check clerk-backend-api==7.0.0
cat >"$folder/ask.py" <<'PYTHON'
import http.server
import json
import threading

from clerk_backend_api import Clerk

SESSION = {"object": "session", "id": "sess_1", "user_id": "user_1", "client_id": "client_1", "status": "active"}
SESSION |= dict.fromkeys(("last_active_at", "expire_at", "abandon_at", "updated_at", "created_at"), 1795422761000)
answers = []


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        status, value = answers.pop(0) if len(answers) > 1 else answers[0]
        requests.append(self.command)
        body = json.dumps(value).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": len(body), "Retry-After": 1}
        for name in headers:
            self.send_header(name, str(headers[name]))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer

    def log_message(self, *_):
        pass


def ask(call, *to_send):
    answers[:] = to_send
    requests.clear()
    try:
        return call()
    except Exception as error:
        return type(error).__name__


requests = []
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
sessions = Clerk(bearer_auth="sk_test_x", server_url=f"http://127.0.0.1:{server.server_port}/v1").sessions
get = lambda: sessions.get(session_id="sess_1")
revoke = lambda: sessions.revoke(session_id="sess_1")

print("actor:", ask(get, (200, SESSION | {"actor": {"sub": "user_2"}})).actor.model_dump())
print("list:", ask(lambda: sessions.list(user_id="user_1"), (200, [SESSION, SESSION | {"status": "frozen"}])))
print("429:", ask(get, (429, {"errors": []}), (200, SESSION)), requests)
print("503:", ask(revoke, (503, {"errors": []}), (200, SESSION)).id, requests)
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" | tee "$folder/seen"
expected=$'actor: {}\nlist: ResponseValidationError\n429: SDKError [\'GET\']\n503: sess_1 [\'POST\', \'POST\']'
[[ "$(cat "$folder/seen")" == "$expected" ]] || { echo "This has changed; expected:"; echo "$expected"; exit 1; }
