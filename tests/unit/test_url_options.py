"""The options of a REDIS_URL that other programs share: taken, passed over, or refused by name."""

import pytest
from clerk_session_feed.redis_url import RedisUrl


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        # TLS, as it is turned on by others.
        ("redis://h/0?ssl=true", "rediss://h/0"),
        ("redis://h/0?tls=1", "rediss://h/0"),
        ("redis://h/0?tls", "rediss://h/0"),
        ("redis://h/0?useTls=yes", "rediss://h/0"),
        ("redis://h/0?socket.tls=true", "rediss://h/0"),
        ("redis://h/0?sslmode=require", "rediss://h/0"),
        ("redis://h/0?sslmode=verify-full", "rediss://h/0?ssl_cert_reqs=required"),
        ("redis+cluster://h?tls=true", "rediss://h/"),
        ("redis://h/0?ssl=false", "redis://h/0"),
        ("redis://h/0?sslmode=disable", "redis://h/0"),
        ("rediss://h/0?tls=true", "rediss://h/0"),
        # Verification, as others say it.
        ("rediss://h/0?ssl_cert_reqs=CERT_NONE", "rediss://h/0?ssl_cert_reqs=none"),
        ("rediss://h/0?ssl_cert_reqs=none", "rediss://h/0?ssl_cert_reqs=none"),
        ("rediss://h/0?ssl_cert_reqs=VerifyMode.CERT_REQUIRED", "rediss://h/0?ssl_cert_reqs=required"),
        ("rediss://h/0?ssl_cert_reqs=CERT_OPTIONAL", "rediss://h/0?ssl_cert_reqs=optional"),
        ("rediss://h/0?tlsRejectUnauthorized=false", "rediss://h/0?ssl_cert_reqs=none"),
        ("rediss://h/0?rejectUnauthorized=true", "rediss://h/0?ssl_cert_reqs=required"),
        ("rediss://h/0?skip_verify=true", "rediss://h/0?ssl_cert_reqs=none"),
        ("rediss://h/0?skip_verify=false", "rediss://h/0?ssl_cert_reqs=required"),
        ("rediss://h/0?allowSelfSigned=true", "rediss://h/0?ssl_cert_reqs=none"),
        ("rediss://h/0?ssl_params[verify_mode]=0", "rediss://h/0?ssl_cert_reqs=none"),
        ("rediss://h/0?ssl[verify_peer]=1&ssl[cafile]=/ca", "rediss://h/0?ssl_cert_reqs=required&ssl_ca_certs=/ca"),
        ("rediss://h/0?verifyPeer=FULL", "rediss://h/0?ssl_cert_reqs=required"),
        ("rediss://h/0?verifyPeer=CA", "rediss://h/0?ssl_check_hostname=false"),
        ("rediss://h/0?ssl_check_hostname=False", "rediss://h/0?ssl_check_hostname=false"),
        ("rediss://h/0?sslHost=name", "rediss://h/0?ssl_server_hostname=name"),
        ("rediss://h/0?verify_ssl=false", "rediss://h/0?ssl_cert_reqs=none"),
        ("rediss://h/0?ssl_no_verify=1", "rediss://h/0?ssl_cert_reqs=none"),
        ("rediss://h/0?tlsAllowInvalidCertificates=true", "rediss://h/0?ssl_cert_reqs=none"),
        ("rediss://h/0?tlsAllowInvalidHostnames=true", "rediss://h/0?ssl_check_hostname=false"),
        ("rediss://h/0?checkServerIdentity=false", "rediss://h/0?ssl_check_hostname=false"),
        *(
            (f"rediss://h/0?{name}={value}", f"rediss://h/0?ssl_min_version={number}")
            for number, values in {
                771: ("771", "TLSv1.2", "tls1_2", "1.2", "VersionTLS12"),
                772: ("772", "TLSv1.3"),
            }.items()
            for value in values
            for name in ("ssl_min_version", "minVersion", "tlsMinVersion", "min_tls_version")
        ),
        # What says the same twice.
        ("rediss://:p%40@h/2?ssl=true&tls=1&database=2&password=p%40", "rediss://:p%40@h/2"),
        ("rediss://h?verify=false&rejectUnauthorized=0", "rediss://h/?ssl_cert_reqs=none"),
        # Passwords may look like anything.
        ("redis://h?password=a,ssl=true", "redis://h/?password=a,ssl%3Dtrue"),
        # The database, and who connects.
        ("redis://h?database=2", "redis://h/?db=2"),
        ("redis://h/2?db=2", "redis://h/2"),
        ("redis://h?defaultDatabase=2", "redis://h/?db=2"),
        ("unix:///s?dbindex=2", "unix:///s?db=2"),
        ("redis://h/0?user=u&auth=p", "redis://h/0?username=u&password=p"),
    ],
)
def test_what_is_plain_is_taken(url: str, meant: str) -> None:
    parsed = RedisUrl.parse(url)
    assert (parsed.server_url, parsed.passed_over) == (meant, ())


PASSED_OVER = (
    "family=0",
    "protocol=3",
    "timeout=5s",
    "pool_size=10",
    "min_idle_conns=1",
    "dial_timeout=5s",
    "read_timeout=3s",
    "conn_max_lifetime=1h",
    "max_retries=3",
    "retryStrategy=x",
    "maxRetriesPerRequest=null",
    "enableReadyCheck=false",
    "lazyConnect=true",
    "keepAlive=30000",
    "connectionName=web",
    "keyPrefix=app:",
    "abortConnect=false",
    "syncTimeout=5000",
    "allowAdmin=true",
    "clientName=web",
    "libraryName=x",
    "reconnect_attempts=1",
    "driver=hiredis",
    "namespace=cache",
    "persistent=1",
    "read_write_timeout=0",
    "weight=1",
    "visibility_timeout=3600",
    "max_connections=20",
    "socket_timeout=5",
    "retry_on_timeout=true",
    "decode_responses=true",
    "encoding=utf-8",
    "pingInterval=1000",
    "RESP=3",
    "readFrom=replica",
    "stream=messages",
    "sslmode=prefer",
    "tls_handshake_timeout=5s",
    "maint_notifications_mode=auto",
    "natMap=x",
    "connection_limit=5",
    "testOnBorrow=true",
    "testWhileIdle=true",
    "minEvictableIdleTimeMillis=60000",
    "maxTotal=8",
    "maxWaitMillis=5",
    "wait=true",
    "sep=:",
    "unacked_key=u",
    "slotsRefreshInterval=5",
    "identity_suffix=x",
)


@pytest.mark.parametrize("option", PASSED_OVER)
def test_what_means_nothing_here_is_passed_over(option: str) -> None:
    parsed = RedisUrl.parse(f"redis://h/0?{option}")
    assert (parsed.server_url, parsed.passed_over) == ("redis://h/0", (option.partition("=")[0],))


def test_each_name_is_told_once() -> None:
    parsed = RedisUrl.parse("redis+cluster://h?timeout=1&pool_size=2&timeout=3")
    assert parsed.passed_over == ("timeout", "pool_size")


@pytest.mark.parametrize("option", ["ssl_cert_reqs=CERT_NONE", "rejectUnauthorized=0", "ssl_check_hostname=false"])
def test_without_tls_there_is_nobody_to_be_trusted(option: str) -> None:
    parsed = RedisUrl.parse(f"redis://h/0?{option}")
    assert (parsed.server_url, parsed.passed_over) == ("redis://h/0", (option.partition("=")[0],))


def fault_of(url: str) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # its text is what the tests look at
        RedisUrl.parse(url)
    assert len(str(error.value).splitlines()) == 1
    assert "hunter2" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "nonsense",
            "addr",
            "host",
            "sentinelMasterId",
            "master_name",
            "cluster",
            "sslProtocols",
            "ssl_validate_ocsp",
        ),
        *("checkCertificateRevocation", "startTls", "authPool", "secure_timeout"),
        *("maxVersion", "trustPool", "peerTimeout", "ALPNProtocols"),
    ],
)
def test_an_option_that_is_not_known_is_named_and_its_value_is_not(name: str) -> None:
    for url in ("redis://h/0", "rediss://h/0", "unix:///s"):
        said = fault_of(f"{url}?db=1&{name}=hunter2")
        assert said == f"has an option that is not known ({name}): correct it, or leave it out"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("ssl_cert_reqs=hunter2", "whose value is not known, like none or required (ssl_cert_reqs)"),
        ("tls=hunter2", "whose value is neither true nor false (tls)"),
        ("skip_verify=hunter2", "whose value is neither true nor false (skip_verify)"),
        ("ssl_check_hostname=hunter2", "whose value is neither true nor false (ssl_check_hostname)"),
    ],
)
def test_a_word_about_tls_that_is_not_plain_is_refused(option: str, said: str) -> None:
    assert said in fault_of(f"rediss://h/0?{option}")


@pytest.mark.parametrize(
    ("url", "both"),
    [
        ("redis://h?tls_enabled=false&ssl=true", "tls_enabled, ssl"),
        ("redis://h?ssl=false&tls=true", "ssl, tls"),
        ("rediss://h?insecure=true&ssl_cert_reqs=required", "insecure, ssl_cert_reqs"),
        ("rediss://h?verify=false&rejectUnauthorized=true", "verify, rejectUnauthorized"),
        ("redis://h?sslmode=verify-full&ssl_cert_reqs=none", "sslmode, ssl_cert_reqs"),
        ("rediss://h?ssl_cert_reqs=none&ssl_check_hostname=true", "ssl_cert_reqs, ssl_check_hostname"),
        ("rediss://h?sni=a&servername=b", "sni, servername"),
        ("rediss://h?ssl_ca_certs=/a&tls.ca=/b", "ssl_ca_certs, tls.ca"),
        ("redis://h?db=1&database=2", "db, database"),
        ("redis://h?db=1&db=2", "db, db"),
        ("redis://h/1?db=2", "its path, db"),
        ("redis+sentinel://h/main/1?database=2", "its path, database"),
        ("unix:///s?db=1&dbindex=2", "db, dbindex"),
        ("redis://:hunter2@h?auth=p", "before the @, auth"),
        ("redis://hunter2@h?user=p", "before the @, user"),
        ("unix://:hunter2@/s?password=p", "before the @, password"),
        ("redis://h?password=hunter2&pass=p", "password, pass"),
    ],
)
def test_options_that_contradict_each_other_are_both_named(url: str, both: str) -> None:
    assert fault_of(url) == f"says two things that contradict each other ({both}): leave out one of them"


@pytest.mark.parametrize(
    "option",
    [
        "abortConnect=false,ssl=true,password=hunter2",
        "pool_size=2;ssl=true;db=3",
        "pool_size=2;tls",
        "timeout=1%3Bpassword=hunter2",
        "timeout=1+ssl=true",
        "client_name=a,database=2",
        "sep=,&pool_size=2|auth=hunter2",
    ],
)
def test_options_are_not_lost_behind_another_separator(option: str) -> None:
    said = fault_of(f"redis://h/0?{option}")
    assert "whose value holds other options, which & has to separate" in said


@pytest.mark.parametrize("value", ["TLSv1.1", "1.0", "770", "hunter2", ""])
@pytest.mark.parametrize("name", ["ssl_min_version", "minVersion"])
def test_the_oldest_version_of_tls_is_one_that_is_safe(name: str, value: str) -> None:
    assert fault_of(f"rediss://h/0?{name}={value}") == (
        f"has an option whose value is neither TLSv1.2 nor TLSv1.3 ({name}): correct it, or leave it out"
    )


@pytest.mark.parametrize("option", ["tls=false", "ssl=0", "sslmode=disable"])
def test_a_url_that_begins_with_tls_is_not_left_without(option: str) -> None:
    assert fault_of(f"rediss://h/0?{option}").startswith("begins with rediss://, and an option turns TLS off")


@pytest.mark.parametrize("option", ["ssl_ca_certs=/ca", "ssl_cert_reqs=required", "sslHost=h", "tls.ca=/ca"])
def test_an_option_that_wants_tls_is_not_lost_without(option: str) -> None:
    said = fault_of(f"redis://h/0?{option}")
    assert said == f"has an option for TLS ({option.partition('=')[0]}): begin with rediss://, or leave it out"


def test_a_socket_has_no_tls() -> None:
    assert "names a socket, and TLS" in fault_of("unix:///s?ssl=true")


@pytest.mark.parametrize("url", ["redis://h?db=two", "unix:///s?database=-1", "redis://h?defaultDatabase=1x"])
def test_a_database_under_any_name_is_a_number(url: str) -> None:
    assert "names a database that is no number" in fault_of(url)


def test_the_rest_of_a_password_is_not_taken_for_a_name() -> None:
    """With ? in the password, what follows it looks like options."""
    for rest in ("hunter2@h:6379/0", "hunter2=3@h:6379/0", "timeout=hunter2@h", "timeout2=3&hunter2@h"):
        said = fault_of(f"redis://app:12?{rest}")
        assert "? as %3F" in said
        assert "hunter2" not in said
    assert "its name is not shown" in fault_of("redis://h?hunter2!=3")
