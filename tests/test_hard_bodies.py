"""The largest body that is allowed, filled with what is slowest to read: nobody else has to wait for it."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from support import SECRET, ServiceProcess

from service import simulator

SIZE = 1_048_576


@pytest.mark.parametrize(
    ("path", "outcome"), [("data.user", "applied"), ("data.actor", "dead_lettered")], ids=["unread", "read"]
)
def test_others_are_answered_while_the_deepest_body_is_read(
    service: ServiceProcess, path: str, outcome: str
) -> None:
    text = json.dumps(simulator.with_values(simulator.sample(), {path: {"sub": "a", "deep": "@"}}))
    depth = (SIZE - len(text)) // 2
    body = text.replace('"@"', "[" * depth + "]" * depth).encode()
    origin = f"http://127.0.0.1:{service.port}"
    meanwhile = 0

    with ThreadPoolExecutor() as pool, httpx.Client(base_url=origin, timeout=30) as client:
        answer = pool.submit(
            httpx.post,
            f"{origin}/webhooks/clerk",
            content=body,
            headers=simulator.sign(SECRET, body),
            timeout=30,
        )
        while not answer.done():
            assert client.get("/readyz").status_code == 200
            meanwhile += 1

    assert answer.result().json()["outcome"] == outcome
    # On the event loop, there would be two: one before, and one that waits for the end.
    assert meanwhile > 5
