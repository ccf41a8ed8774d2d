"""docs/contract.md, section 2: how Clerk's Backend API is reached. `serve` neither needs nor reads that."""

from pathlib import Path
from typing import Final

import httpx
import pytest
from clerk_session_feed.errors import ConfigurationError
from hypothesis import given
from hypothesis import strategies as st
from support.constants import SECRET
from support.strategies import patient

from service.config import ClerkSettings, ReconcileSettings, Settings, load

KEY: Final = "sk_test_hunter2"
SET: Final = (
    *("CLERK_SECRET_KEY", "CLERK_API_URL", "REDIS_URL", "CLERK_WEBHOOK_SIGNING_SECRET", "CLERK_WEBHOOK_SECRET"),
    *("CLERK_SECRET", "LOG_LEVEL", "REDIS_KEY_PREFIX"),
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Start from an environment without settings, in a directory without a `.env`."""
    monkeypatch.chdir(tmp_path)
    for name in SET:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def fault_of(**values: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(ClerkSettings, **{"clerk_secret_key": KEY, **values})
    [fault] = caught.value.faults
    assert len(fault.splitlines()) == 1
    return fault


# The key.


@pytest.mark.parametrize("key", [KEY, "sk_live_AbC-1.2", "sk_x"])
def test_a_secret_key_is_read(key: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CLERK_SECRET_KEY", key)
    assert load(ClerkSettings).clerk_secret_key.get_secret_value() == key


def test_the_key_may_be_in_the_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"CLERK_SECRET_KEY='{KEY}'\n")
    assert load(ClerkSettings).clerk_secret_key.get_secret_value() == KEY


@pytest.mark.parametrize(
    "key",
    [
        *("pk_test_hunter2", "hunter2", SECRET, " sk_test_hunter2", "SK_test_hunter2"),
        *("'sk_test_hunter2'", '"sk_test_hunter2"', "sk_test_hunter2 ", "sk_test_hunter2\n", "sk_test_'hunter2'"),
        *("sk_test hunter2", "sk_", "sk_test_hunter2é", "sk_test_hunter2\x00", "sk_" + 600 * "hunter2"),
    ],
)
def test_a_key_that_can_be_none_is_refused_and_not_shown(key: str) -> None:
    fault = fault_of(clerk_secret_key=key)
    assert fault.startswith("CLERK_SECRET_KEY: ")
    assert "hunter2" not in fault
    assert SECRET not in fault


@pytest.mark.parametrize("key", ["pk_test_x", "sk_", "sk_test_x y"])
def test_a_fault_of_the_key_says_where_to_find_it(key: str) -> None:
    assert "Clerk's Dashboard, API keys" in fault_of(clerk_secret_key=key)


def test_a_missing_key_is_named_with_where_to_find_it() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(ClerkSettings)
    [fault] = caught.value.faults
    assert fault.startswith("CLERK_SECRET_KEY: is missing")
    assert "Clerk's Dashboard, API keys" in fault


def test_a_key_under_a_name_much_like_it_is_found(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CLERK_SECRET", KEY)
    with pytest.raises(ConfigurationError, match="CLERK_SECRET is there"):
        load(ClerkSettings)


def test_the_repr_hides_the_key() -> None:
    assert "hunter2" not in repr(load(ClerkSettings, clerk_secret_key=KEY))


# The address.


def test_clerk_s_own_address_is_the_default(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CLERK_API_URL", "")
    assert load(ClerkSettings, clerk_secret_key=KEY).clerk_api_url == "https://api.clerk.com/v1"


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("https://api.clerk.com/v1/", "https://api.clerk.com/v1"),
        ("http://127.0.0.1:8123/v1", "http://127.0.0.1:8123/v1"),
        ("HTTP://[::1]:8123", "HTTP://[::1]:8123"),
        ("http://clerk/", "http://clerk"),
        ("http://10.0.0.7", "http://10.0.0.7"),
        ("http://host.docker.internal:8123", "http://host.docker.internal:8123"),
    ],
)
def test_an_address_is_read_without_a_slash_at_its_end(url: str, read: str) -> None:
    assert load(ClerkSettings, clerk_secret_key=KEY, clerk_api_url=url).clerk_api_url == read


@pytest.mark.parametrize(
    "url",
    [
        *("api.clerk.com/v1", "ftp://api.clerk.com", "https://", "https:///v1", "https:api.clerk.com", "//api.clerk"),
        *("https://api.clerk.com:port/v1", "https://api.clerk.com:99999", "https://api clerk.com", "https://[::1/v1"),
        *("https://hunter2@api.clerk.com/v1", "https://relay:hunter2@api.clerk.com", "https://api.clerk/?k=hunter2"),
        *("https://api.clerk.com/v1#hunter2", "'https://api.clerk.com'", "https://.", "https://a..b", "https://[:]"),
        *("https://-a.test", "https://clerk:0/v1", "https://" + 64 * "a" + ".test", "https://api.clérk.com"),
    ],
)
def test_what_is_no_address_is_refused_and_not_shown(url: str) -> None:
    fault = fault_of(clerk_api_url=url)
    assert fault.startswith("CLERK_API_URL: ")
    assert "hunter2" not in fault


@pytest.mark.parametrize("url", ["http://api.clerk.com/v1", "HTTP://api.clerk.com", "http://8.8.8.8"])
def test_the_key_is_not_sent_in_plain_text_beyond_a_private_network(url: str) -> None:
    assert "use https://" in fault_of(clerk_api_url=url)


@given(
    scheme=st.sampled_from(["http://", "https://"]),
    rest=st.text(st.characters(min_codepoint=1, max_codepoint=0x17F))
    | st.from_regex(r"[a-z.:\-\[\]%_/0-9]+", fullmatch=True),
)
@patient
def test_every_address_that_is_accepted_can_be_asked(scheme: str, rest: str) -> None:
    try:
        url = load(ClerkSettings, clerk_secret_key=KEY, clerk_api_url=scheme + rest, _env_file=None).clerk_api_url
    except ConfigurationError:
        return
    assert httpx.URL(url).raw_host.decode().encode("idna")  # as it is looked up


# Who reads them.


def test_reconcile_needs_no_webhook_secret() -> None:
    settings = load(ReconcileSettings, clerk_secret_key=KEY, redis_url="redis://127.0.0.1")
    assert settings.redis_key_prefix == "{clerk}"
    assert settings.log_level == "info"
    assert not hasattr(settings, "clerk_webhook_signing_secret")


def test_serve_does_not_read_them(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CLERK_SECRET_KEY", "wrong")
    environment.setenv("CLERK_API_URL", "wrong")
    settings = load(Settings, clerk_webhook_signing_secret=SECRET, redis_url="redis://127.0.0.1")
    assert not set(ClerkSettings.model_fields) & set(Settings.model_fields)
    assert "wrong" not in repr(settings)


def test_the_key_is_not_taken_for_the_webhook_s_secret(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CLERK_SECRET_KEY", KEY)
    with pytest.raises(ConfigurationError) as caught:
        load(Settings, redis_url="redis://127.0.0.1")
    assert "CLERK_SECRET_KEY" not in str(caught.value)
