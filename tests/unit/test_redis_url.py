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


@pytest.mark.parametrize(
    "url",
    [
        "redis://default:1234#abc@host/0",
        "redis://default:1234#@host",
        "redis://h/0#",
        "redis://h?db=0#x",
        "unix://:1234#abc@/run/redis.sock",
        "redis+sentinel://app:1234#abc@h:1/main",
        "redis+cluster://app:1234#abc@h:1",
    ],
)
def test_a_password_with_a_number_sign_is_not_taken_for_a_host(url: str) -> None:
    assert fault_of(url) == "has a #: in a password, write it as %23"


def test_a_word_of_another_client_about_certificates_is_no_password() -> None:
    said = fault_of("rediss://h/0#insecure")
    assert said == "ends in #insecure, which is not known here: for any certificate, use ?ssl_cert_reqs=none"
    assert "in a password" in fault_of("rediss://app:1#insecure@h/0")


@pytest.mark.parametrize(
    "url",
    [
        "redis://default:1234/abc@host/0",
        "redis://default:1234/5@host/0",
        "redis://default:12@34/5@host/0",
        "redis://default:1234?abc@host/0",
        "redis://default:1234?timeout=5@host/0",
        "redis://default:p@12?timeout=5@host/0",
        "unix://:12/34@/run/redis.sock",
        "unix://:12?34@/run/redis.sock",
        "redis+sentinel://app:1234/main@h:1/main",
        "redis+sentinel://app:1234/abc@h:1",
        "redis+cluster://app:1234?abc@h:1",
    ],
)
def test_the_beginning_of_a_password_is_not_taken_for_a_host(url: str) -> None:
    said = fault_of(url)

    assert "write @ as %40, / as %2F" in said
    assert "12" not in said


@pytest.mark.parametrize(
    "url",
    [
        "redis://hun\\ter",
        "redis://app:a@b\\c@d\\e",
        "redis://hun!ter",
        "redis+sentinel://a,b$c/m",
        "redis://h%41",
        "redis://a|b:1",
    ],
)
def test_a_host_has_no_character_that_only_passwords_have(url: str) -> None:
    assert "that no host has" in fault_of(url)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("redis+cluster://app:a@b\\c@h", "h"),
        ("redis+cluster://my_redis-1.internal", "my_redis-1.internal"),
        ("redis+cluster://m\u00fcller.example", "m\u00fcller.example"),
        ("redis+cluster://[fe80::1%eth0]:1", "fe80::1%eth0"),
        ("redis+cluster://10.0.0.1", "10.0.0.1"),
    ],
)
def test_what_a_host_may_be(url: str, host: str) -> None:
    assert RedisUrl.parse(url).hosts[0][0] == host


def test_a_sockets_path_may_have_an_at_sign() -> None:
    assert RedisUrl.parse("unix:///run/redis@main.sock").server_url.startswith("unix:///run/redis@main.sock")
