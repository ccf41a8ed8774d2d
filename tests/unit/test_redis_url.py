"""docs/contract.md, section 2, REDIS_URL: what each form of it stands for."""

import pytest
from clerk_session_feed.redis_url import RedisUrl


@pytest.mark.parametrize(
    "url", ["redis://:p%40@h:1/2?client_name=x", "rediss://h/?ssl_ca_certs=/ca.crt", "unix://:p@/s?db=1"]
)
def test_a_single_servers_url_is_redis_pys_own(url: str) -> None:
    assert RedisUrl.parse(url) == RedisUrl("server", url)


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        (
            "redis+sentinel://h1:1,h2:2,[::1]:3/relay/4",
            RedisUrl("sentinel", "redis://h1:1/4", (("h1", 1), ("h2", 2), ("::1", 3)), "relay"),
        ),
        (
            "redis+sentinel://h1,h2/my%2Fmaster",
            RedisUrl("sentinel", "redis://h1/", (("h1", 26379), ("h2", 26379)), "my/master"),
        ),
        (
            "rediss+sentinel://app:p%2C%40@h1:1,h2:2/relay?ssl_ca_certs=/ca.crt",
            RedisUrl("sentinel", "rediss://app:p%2C%40@h1:1/?ssl_ca_certs=/ca.crt", (("h1", 1), ("h2", 2)), "relay"),
        ),
        ("redis+cluster://h1:1,h2", RedisUrl("cluster", "redis://h1:1/", (("h1", 1), ("h2", 6379)))),
        ("rediss+cluster://:p@h1:1/0", RedisUrl("cluster", "rediss://:p@h1:1/0", (("h1", 1),))),
    ],
)
def test_sentinels_and_cluster_nodes_are_taken_apart(url: str, parsed: RedisUrl) -> None:
    assert RedisUrl.parse(url) == parsed


def test_its_text_shows_no_password() -> None:
    assert "hunter2" not in repr(RedisUrl.parse("redis+cluster://:hunter2@h1:1"))


def fault_of(url: str) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # its text is what the tests look at
        RedisUrl.parse(url)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize("url", ['"redis://h', "redis://h/0'", 'redis://h?db=1"'])
def test_a_quotation_mark_at_an_end_is_no_part_of_it(url: str) -> None:
    assert fault_of(url).endswith("leave the quotes out")


@pytest.mark.parametrize(
    "url",
    ["redis://h ", " redis://h", "redis://h\n", "redis://h\r", "redis://:a b@h", "unix:///a\tb", "redis://h\x1b/0"],
)
def test_white_space_and_control_characters_are_refused(url: str) -> None:
    assert "white space or a control character" in fault_of(url)
