"""(a) Flask under gunicorn's threads, svix, redis-py: `gunicorn --worker-class gthread --threads 16 …:app`.

Left out, that the service does: what session_script.py says; a limit on the body, and on how long one may
take to arrive; answers as problem JSON; 503 when Redis is away (here a 500, after redis-py's retries, which
may send a script twice); logs; metrics; a health check that asks Redis.
"""

import os

import orjson
import redis
from flask import Flask, Response, request
from svix.webhooks import Webhook, WebhookVerificationError

from benchmarks.contenders import session_script

app = Flask(__name__, static_folder=None)
webhook = Webhook(os.environ["CLERK_WEBHOOK_SIGNING_SECRET"])
apply_session = redis.Redis.from_url(os.environ["REDIS_URL"]).register_script(session_script.SCRIPT)


def answer(body: dict[str, object], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, mimetype="application/json")


@app.get("/healthz")
def healthz() -> Response:
    return answer({"status": "ok"})


@app.post("/webhooks/clerk")
def receive() -> Response:
    body = request.get_data(cache=False)
    try:
        webhook.verify(body, dict(request.headers))
    except WebhookVerificationError:
        return answer({"error": "invalid signature"}, 400)
    event = orjson.loads(body)
    if not event["type"].startswith("session."):
        return answer({"outcome": "ignored"})
    outcome, cursor, revision, _ = apply_session(*session_script.call(request.headers["svix-id"], body, event))
    return answer(
        {
            "outcome": outcome.decode(),
            "session_id": event["data"]["id"],
            "cursor": cursor.decode(),
            "revision": int(revision) if revision else None,
        }
    )
