"""(b) FastAPI under uvicorn (uvloop, httptools), svix, redis.asyncio: `uvicorn …:app`.

Left out, that the service does: what session_script.py says; a limit on the body, and on how long one may
take to arrive; answers as problem JSON; 503 when Redis is away (here a 500, after redis-py's retries, which
may send a script twice); a bound on connections to Redis; logs; metrics; a health check that asks Redis.
"""

import os

import orjson
import redis.asyncio
from fastapi import FastAPI, Request, Response
from svix.webhooks import Webhook, WebhookVerificationError

from benchmarks.contenders import session_script

app = FastAPI(openapi_url=None)
webhook = Webhook(os.environ["CLERK_WEBHOOK_SIGNING_SECRET"])
apply_session = redis.asyncio.from_url(os.environ["REDIS_URL"]).register_script(session_script.SCRIPT)


def answer(body: dict[str, object], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


@app.get("/healthz")
async def healthz() -> Response:
    return answer({"status": "ok"})


@app.post("/webhooks/clerk")
async def receive(request: Request) -> Response:
    body = await request.body()
    try:
        webhook.verify(body, dict(request.headers))
    except WebhookVerificationError:
        return answer({"error": "invalid signature"}, 400)
    event = orjson.loads(body)
    if not event["type"].startswith("session."):
        return answer({"outcome": "ignored"})
    keys, arguments = session_script.call(request.headers["svix-id"], body, event)
    outcome, cursor, revision, _ = await apply_session(keys, arguments)
    return answer(
        {
            "outcome": outcome.decode(),
            "session_id": event["data"]["id"],
            "cursor": cursor.decode(),
            "revision": int(revision) if revision else None,
        }
    )
