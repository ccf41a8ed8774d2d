"""/healthz, /readyz and /metrics."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from support.clock import eventually, in_time
from support.constants import EXPIRY_KEY, HOUR_MS
from support.redis_servers import frozen, scripted_redis
from support.relay import make_settings
from support.services import Endpoint, metric, run_plain_wsgi

from service.dev.embedded import EmbeddedRedis

TOKEN = "a-token-for-prometheus"
EXPIRY_LAG = "session_relay_expiry_lag_seconds"


@pytest.fixture
def own_endpoint(own_redis: EmbeddedRedis) -> Iterator[Endpoint]:
    with run_plain_wsgi(make_settings(own_redis.url, redis_timeout=5)) as endpoint:
        assert is_ready(endpoint)
        yield endpoint


def is_ready(endpoint: Endpoint) -> bool:
    return endpoint.http.get("/readyz").status_code == 200


def scraped(endpoint: Endpoint) -> str:
    response = endpoint.http.get("/metrics")
    assert response.status_code == 200
    return response.text


def assert_redis_is_away(text: str) -> None:
    """What Redis was to say is missing, and nothing else."""
    assert "session_relay_redis_up 0.0\n" in text
    assert "session_relay_dead_letters" not in text
    assert EXPIRY_LAG not in text
    assert "session_relay_deliveries_total{" in text
    assert "session_relay_build_info{" in text


def assert_not_ready(response: httpx.Response) -> None:
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "store_unavailable"
    assert response.json()["detail"]


def test_healthz(endpoint: Endpoint) -> None:
    response = endpoint.http.get("/healthz")

    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_healthz_needs_no_redis(endpoint_without_redis: Endpoint) -> None:
    assert endpoint_without_redis.http.get("/healthz").status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_head_has_no_body(endpoint: Endpoint, path: str) -> None:
    response = endpoint.http.head(path)

    assert (response.status_code, response.content) == (200, b"")


def test_readyz(endpoint: Endpoint, any_client: Any) -> None:
    response = endpoint.http.get("/readyz")

    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert list(any_client.scan_iter("*")) == [], "asking leaves no trace"


def test_not_ready_without_redis(endpoint_without_redis: Endpoint) -> None:
    assert_not_ready(endpoint_without_redis.http.get("/readyz"))


def test_not_ready_while_redis_is_full(own_endpoint: Endpoint, own_client: Any) -> None:
    own_client.config_set("maxmemory", "1")
    assert_not_ready(own_endpoint.http.get("/readyz"))

    own_client.config_set("maxmemory", "0")
    assert is_ready(own_endpoint)


def test_not_ready_while_redis_is_a_replica(
    own_endpoint: Endpoint, own_client: Any, start_redis: Callable[..., EmbeddedRedis]
) -> None:
    main = start_redis()
    own_client.replicaof("127.0.0.1", main.port)
    assert_not_ready(own_endpoint.http.get("/readyz"))

    own_client.replicaof("NO", "ONE")
    assert is_ready(own_endpoint)


def test_not_ready_without_the_replicas_asked_for(own_redis: EmbeddedRedis) -> None:
    with run_plain_wsgi(make_settings(own_redis.url, redis_min_replicas=1, redis_timeout=0.4)) as endpoint:
        assert_not_ready(endpoint.http.get("/readyz"))


def test_not_ready_while_redis_loads() -> None:
    with (
        scripted_redis(lambda _: b"-LOADING Redis is loading the dataset in memory") as server,
        run_plain_wsgi(make_settings(server.url)) as endpoint,
    ):
        assert_not_ready(endpoint.http.get("/readyz"))


def test_not_ready_within_a_second_while_redis_hangs(own_endpoint: Endpoint, own_redis: EmbeddedRedis) -> None:
    with frozen(own_redis):
        for _ in range(2):
            with in_time(2):
                assert_not_ready(own_endpoint.http.get("/readyz"))
                assert own_endpoint.http.get("/healthz").status_code == 200

    eventually(lambda: is_ready(own_endpoint))


def test_metrics(endpoint: Endpoint) -> None:
    endpoint.deliver({"type": "user.created"})

    response = endpoint.http.get("/metrics")

    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert "# TYPE session_relay_deliveries_total counter" in response.text


def test_metrics_tell_of_the_dead_letters_held(endpoint: Endpoint) -> None:
    before = scraped(endpoint)
    endpoint.deliver({"type": "session.created"}, "msg_1")

    after = scraped(endpoint)

    assert metric(before, "session_relay_redis_up") == 1
    assert [metric(text, "session_relay_dead_letters") for text in (before, after)] == [0, 1]


def test_metrics_tell_how_late_the_expiry_worker_is(endpoint: Endpoint, any_client: Any) -> None:
    now_ms = int(time.time() * 1000)
    any_client.zadd(EXPIRY_KEY, {"sess_late": now_ms - HOUR_MS, "sess_less_late": now_ms - 1000})

    assert metric(scraped(endpoint), EXPIRY_LAG) == pytest.approx(3600, abs=100)


def test_nothing_overdue_is_no_lag(endpoint: Endpoint, any_client: Any) -> None:
    any_client.zadd(EXPIRY_KEY, {"sess_1": int(time.time() * 1000) + HOUR_MS})

    assert f"{EXPIRY_LAG} 0.0\n" in scraped(endpoint)


def test_the_latest_of_all_partitions_counts(any_redis: EmbeddedRedis, any_client: Any) -> None:
    any_client.zadd("{clerk:2}:expiry", {"sess_1": int(time.time() * 1000) - HOUR_MS})
    with run_plain_wsgi(make_settings(any_redis.url, partitions=4)) as endpoint:
        assert metric(scraped(endpoint), EXPIRY_LAG) == pytest.approx(3600, abs=100)


def test_metrics_need_no_redis(endpoint_without_redis: Endpoint) -> None:
    assert_redis_is_away(scraped(endpoint_without_redis))


def test_metrics_within_a_second_while_redis_hangs(own_endpoint: Endpoint, own_redis: EmbeddedRedis) -> None:
    with frozen(own_redis), in_time(2):
        assert_redis_is_away(scraped(own_endpoint))


def test_metrics_come_at_once_after_a_timeout(own_redis: EmbeddedRedis) -> None:
    """The store refuses to be asked then."""
    with run_plain_wsgi(make_settings(own_redis.url, redis_timeout=0.2)) as endpoint, frozen(own_redis):
        assert_not_ready(endpoint.http.get("/readyz"))

        assert_redis_is_away(scraped(endpoint))


def test_metrics_while_another_program_has_the_keys(endpoint: Endpoint, any_client: Any) -> None:
    any_client.set(EXPIRY_KEY, "no sorted set")

    assert_redis_is_away(scraped(endpoint))
    any_client.delete(EXPIRY_KEY)


@pytest.fixture
def with_token(any_redis: EmbeddedRedis) -> Iterator[Endpoint]:
    with run_plain_wsgi(make_settings(any_redis.url, metrics_token=TOKEN)) as endpoint:
        yield endpoint


def test_metrics_with_the_token(with_token: Endpoint) -> None:
    response = with_token.http.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"})

    assert response.status_code == 200
    assert "session_relay_deliveries" in response.text


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", TOKEN, f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "\xff"]
)
def test_metrics_without_the_token(with_token: Endpoint, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization.encode("latin-1")}
    response = with_token.http.get("/metrics", headers=headers)  # type: ignore[arg-type]

    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["content-type"] == "application/problem+json"
    assert TOKEN not in response.text
    assert "session_relay" not in response.text


def test_a_token_may_hold_any_character(any_redis: EmbeddedRedis) -> None:
    with run_plain_wsgi(make_settings(any_redis.url, metrics_token="tøken")) as endpoint:
        answers = {
            sent: endpoint.http.get("/metrics", headers={b"authorization": b"Bearer " + sent}).status_code
            for sent in ("tøken".encode(), "tøken".encode("latin-1"), b"token", b"t\xff")
        }
    assert list(answers.values()) == [200, 401, 401, 401]


def test_the_token_guards_nothing_else(with_token: Endpoint) -> None:
    assert with_token.http.get("/healthz").status_code == 200
    assert with_token.http.get("/readyz").status_code == 200
    assert with_token.deliver({"type": "user.created"}).status_code == 200
