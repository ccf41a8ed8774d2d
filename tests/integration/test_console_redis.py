"""What the console asks of Redis: the rights of the relay's user suffice, and partitions make no difference."""

import re
from typing import Any

from support.consoles import Deliveries
from support.documents import REDIS, section
from support.redis_clients import client_of
from support.relay import make_settings, run_relay

from service.app import create_app
from service.dev.embedded import EmbeddedRedis

TOKEN = "a-token-of-the-console"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PAGES = ("", "/sessions/sess_1", "/users/user_1", "/search?q=sess_", "/dead-letters", "/health")


def statuses(url: str, **settings: Any) -> tuple[dict[str, int], dict[str, str]]:
    app = create_app(make_settings(url, console_token=TOKEN, **settings))
    visitor = app.test_client()
    responses = {path: visitor.get(f"/console{path}", headers=BEARER) for path in PAGES}
    assert app.reader is not None
    app.reader.close()
    app.store.close()
    return {path: each.status_code for path, each in responses.items()}, {
        path: each.text for path, each in responses.items()
    }


def test_the_rights_of_the_relays_user_suffice(own_redis: EmbeddedRedis) -> None:
    with run_relay(own_redis.url) as relay:
        Deliveries(relay).send(id="sess_1", user_id="user_1")
        Deliveries(relay).send(id="sess_2", user_id="user_1", status="dormant")
    (rules,) = re.findall(r"^ACL SETUSER relay (.*)$", section(REDIS, "Rights"), re.MULTILINE)
    with client_of(own_redis.url) as client:
        client.execute_command("ACL", "SETUSER", "relay", "reset", *rules.split())
        client.execute_command("ACL", "LOG", "RESET")
        found, texts = statuses(own_redis.url.replace("//", "//relay:password@"))
        assert set(found.values()) == {200}
        assert "not readable" not in texts["/health"]
        assert client.execute_command("ACL", "LOG") == []
        assert all("password" not in text for text in texts.values())


def test_without_info_health_says_what_is_not_known(own_redis: EmbeddedRedis) -> None:
    (rules,) = re.findall(r"^ACL SETUSER relay (.*)$", section(REDIS, "Rights"), re.MULTILINE)
    with client_of(own_redis.url) as client:
        client.execute_command("ACL", "SETUSER", "relay", "reset", *rules.replace("+info ", "").split())
    found, texts = statuses(own_redis.url.replace("//", "//relay:password@"))
    assert found["/health"] == 200
    assert "lacks +info" in texts["/health"]


def test_sessions_of_all_partitions_are_shown(own_redis: EmbeddedRedis) -> None:
    with run_relay(own_redis.url, partitions=4) as relay:
        for number in range(1, 9):
            Deliveries(relay).send(id=f"sess_{number}", user_id=f"user_{number}")
    found, texts = statuses(own_redis.url, partitions=4)
    assert set(found.values()) == {200}
    for path in ("", "/search?q=sess_"):
        assert {f"sess_{number}" for number in range(1, 9)} <= set(re.findall(r"sess_\d", texts[path]))
    (cursors,) = re.findall(r'data-after="([^"]*)"', texts[""])
    assert re.fullmatch(r"0:\d+-\d+,1:\d+-\d+,2:\d+-\d+,3:\d+-\d+", cursors)
    assert "8 of 8 open sessions" in texts["/search?q=sess_"]
