"""What `dev` says at its start shows no secret that it was given."""

import pytest

from service.dev import introduction


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://h/0?client_name=a&db=1", "redis://h/0?client_name=a&db=1"),
        ("rediss://user:hunter@h/0", "rediss://…@h/0"),
        ("redis://:hun@ter@h/0", "redis://…@h/0"),
        (
            "redis+sentinel://:hunter@h1,h2/m/0?sentinel_password=hunter",
            "redis+sentinel://…@h1,h2/m/0?sentinel_password=…",
        ),
        ("redis://h?ssl_password=hunter&db=1", "redis://h?ssl_password=…&db=1"),
        ("redis://h?pass%77ord=hunter", "redis://h?pass%77ord=…"),
        ("redis://h?PASSWORD=hunter", "redis://h?PASSWORD=…"),
        ("redis://h?password=hun@ter", "redis://…@ter"),
        ("redis://h/0?auth=hunter&db=1", "redis://h/0?auth=…&db=1"),
        ("redis://h/0?auth[]=hunter", "redis://h/0?auth[]=…"),
        ("redis://h/0?timeout=1;password=hunter", "redis://h/0?timeout=…"),
        ("redis://h/0?abortConnect=false,password=hunter", "redis://h/0?abortConnect=…"),
        ("redis://h/0?db=1%3Bpassword=hunter", "redis://h/0?db=…"),
        ("redis://h/0?credential=hunter&key=hunter", "redis://h/0?credential=…&key=…"),
        ("rediss://h/0?ssl_ca_certs=/ca.crt&tls=true", "rediss://h/0?ssl_ca_certs=/ca.crt&tls=true"),
    ],
)
def test_a_redis_url_is_shown_without_what_is_secret(url: str, shown: str) -> None:
    assert introduction.without_password(url) == shown
