"""docs/contract.md, section 3: who is let in, and which fault is answered first."""

import functools
import string
from typing import Final
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.clock import frozen_svix
from support.constants import MESSAGE_ID, NOW_S, OTHER_SECRET, SECRET
from support.signing import signed
from support.strategies import patient

from service.clerk.signature import Verifier
from service.errors import InvalidSignatureError, MissingSignatureError, SignatureError
from service.models import Delivery

BODY: Final = b'{"type":"session.created"}'
FAMILIES: Final = ("svix", "webhook")
PARTS: Final = ("id", "timestamp", "signature")
CODES: Final = {"missing_signature", "malformed_signature", "timestamp_out_of_tolerance", "invalid_signature"}

sign = functools.partial(signed, message_id=MESSAGE_ID, at=NOW_S)


def verify(
    headers: dict[str, str], body: bytes = BODY, *, now: float = NOW_S, secrets: tuple[str, ...] = (SECRET,)
) -> Delivery:
    with frozen_svix(now):
        return Verifier(secrets).verify(headers, body, now)


def refusal(headers: dict[str, str], body: bytes = BODY, *, now: float = NOW_S) -> str:
    with pytest.raises(SignatureError) as caught:
        verify(headers, body, now=now)
    assert caught.value.status == 400
    return caught.value.code


# Published by https://github.com/standard-webhooks/standard-webhooks and https://github.com/svix/svix-webhooks with
# their libraries' tests (the first two by both, the large ones in svix-webhooks/csharp), and the last by
# https://docs.svix.com/receiving/verifying-payloads/how-manual: secret, id, timestamp, body, signature.
VECTORS: Final = (
    (SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
    (
        "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk", 1649367553,
        b'{"email":"test@example.com","username":"test_user"}', "tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
    ),
    (SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b"a" * 1_048_576, "txpEUxqWZJ5nteTnymUVa+7C4NHpBeXJ6CsBAW0c3/A="),
    (SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b"a" * 262_144, "Mw4Pe2WgApuT7NSqnSq0PQPV9gbLdggCl9B865x5Xh0="),
    (SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b"a" * 262_143, "NTItnqyWMoFhk2Bbe5V/BMdcFRWgcSQaTgqLHX7FC7c="),
    (
        "whsec_plJ3nmyCDGBKInavdOK15jsl", "msg_loFOjxBNrRLzqYUf", 1731705121,
        b'{"event_type":"ping","data":{"success":true}}', "rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0=",
    ),
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("secret", "message_id", "at", "body", "signature"), VECTORS)
def test_the_public_test_vectors_are_genuine_and_with_one_bit_changed_they_are_not(
    family: str, secret: str, message_id: str, at: int, body: bytes, signature: str
) -> None:
    headers = {f"{family}-id": message_id, f"{family}-timestamp": str(at), f"{family}-signature": f"v1,{signature}"}
    assert verify(headers, body, now=at, secrets=(secret,)) == Delivery(message_id, at, body)

    with pytest.raises(InvalidSignatureError):
        verify(headers, bytes([body[0] ^ 1]) + body[1:], now=at, secrets=(secret,))


# Also published, as wrong ones.
@pytest.mark.parametrize(
    ("signature", "code"),
    [
        ("v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc=", "invalid_signature"),
        ("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OA=", "invalid_signature"),
        ("v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", "malformed_signature"),
        ("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLawdd", "malformed_signature"),
        ("v1,dawfeoifkpqwoekfpqoekf", "malformed_signature"),
        ("v1,", "malformed_signature"),
    ],
)
def test_the_public_vectors_of_wrong_signatures(signature: str, code: str) -> None:
    _, message_id, at, body, _ = VECTORS[0]
    headers = {"webhook-id": message_id, "webhook-timestamp": str(at), "webhook-signature": signature}
    assert refusal(headers, body, now=at) == code


def test_a_comparison_in_constant_time_decides() -> None:
    with mock.patch("hmac.compare_digest", return_value=False):
        assert refusal(sign(BODY)) == "invalid_signature"
    with mock.patch("hmac.compare_digest", return_value=True) as compare:
        assert verify(sign(BODY, secret=OTHER_SECRET)).id == MESSAGE_ID
    [(expected, given)] = [call.args for call in compare.call_args_list]
    assert len(expected) == len(given) == 32


def test_the_two_bits_of_base64_that_mean_nothing_do_not_matter() -> None:
    digits = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
    headers = sign(BODY)
    start, last = headers["svix-signature"][:-2], digits.index(headers["svix-signature"][-2])
    accepted = set()
    for digit in digits:
        try:
            verify(headers | {"svix-signature": f"{start}{digit}="})
        except InvalidSignatureError:
            continue
        accepted.add(digit)
    assert accepted == {digits[last & ~3 | bits] for bits in range(4)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_signature_is_genuine_in_both_header_families(family: str) -> None:
    assert verify(sign(BODY, family=family)) == Delivery(MESSAGE_ID, NOW_S, BODY)


@pytest.mark.parametrize("body", [b"", b"\x00", b" {} \r\n", "æ\u2028😀".encode(), b"not JSON"])
def test_any_utf8_body_is_verified_as_the_bytes_it_came_in(body: bytes) -> None:
    assert verify(sign(body), body).body == body


@pytest.mark.parametrize(
    "others", ["v1a,bm90IG91cnM=", "v2,x", "v1,dG9vIHNob3J0", "v1", ",", "garbage", "v1,", "\u00e9,\udcff", " "]
)
def test_other_entries_of_the_signature_header_are_skipped(others: str) -> None:
    headers = sign(BODY)
    headers["svix-signature"] = f"{others} {headers['svix-signature']} {others}"
    assert verify(headers).id == MESSAGE_ID


def test_a_second_v1_entry_may_be_the_right_one() -> None:
    headers = sign(BODY)
    wrong = sign(BODY, secret=OTHER_SECRET)["svix-signature"]
    headers["svix-signature"] = f"{wrong} {headers['svix-signature']}"
    assert verify(headers).id == MESSAGE_ID


@pytest.mark.parametrize("secret", [SECRET, OTHER_SECRET])
@pytest.mark.parametrize("secrets", [(SECRET, OTHER_SECRET), (OTHER_SECRET, SECRET)])
def test_any_of_several_secrets_will_do(secret: str, secrets: tuple[str, ...]) -> None:
    assert verify(sign(BODY, secret=secret), secrets=secrets).id == MESSAGE_ID


def test_a_secret_that_is_not_among_them_will_not() -> None:
    assert refusal(sign(BODY, secret=OTHER_SECRET)) == "invalid_signature"


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_header_left_out_or_empty_is_missing(part: str, empty: bool, family: str) -> None:
    headers = sign(BODY, family=family)
    del headers[f"{family}-{part}"]
    if empty:
        headers[f"{family}-{part}"] = ""
    assert refusal(headers) == "missing_signature"


def test_no_headers_at_all_are_missing() -> None:
    assert refusal({}) == "missing_signature"


@pytest.mark.parametrize(
    ("headers", "missing"),
    [
        ({}, "svix-id, svix-timestamp, svix-signature (or webhook-id, webhook-timestamp, webhook-signature)"),
        ({"svix-id": "msg_1"}, "svix-timestamp, svix-signature"),
        ({"webhook-id": "msg_1"}, "webhook-timestamp, webhook-signature"),
    ],
)
def test_what_is_missing_is_named_as_clerk_calls_it_unless_the_other_family_was_begun(
    headers: dict[str, str], missing: str
) -> None:
    with pytest.raises(MissingSignatureError) as raised:
        Verifier([SECRET]).verify(headers, BODY)
    assert str(raised.value) == f"Missing: {missing}."


@pytest.mark.parametrize("part", PARTS)
def test_one_svix_header_makes_that_family_count(part: str) -> None:
    name = f"svix-{part}"
    headers = sign(BODY, family="webhook") | {name: sign(BODY)[name]}
    assert refusal(headers) == "missing_signature"


def test_the_svix_family_counts_where_both_are_there() -> None:
    right, wrong = sign(BODY), sign(BODY, secret=OTHER_SECRET, family="webhook")
    assert verify(right | wrong).id == MESSAGE_ID
    right, wrong = sign(BODY, family="webhook"), sign(BODY, secret=OTHER_SECRET)
    assert refusal(right | wrong) == "invalid_signature"


def test_empty_svix_headers_do_not_hide_the_other_family() -> None:
    empty = {f"svix-{part}": "" for part in PARTS}
    assert verify(sign(BODY, family="webhook") | empty).id == MESSAGE_ID


@pytest.mark.parametrize("message_id", ["a", "-_", "m" * 128, "msg_2xYZ-09"])
def test_ids_of_1_to_128_letters_digits_and_dashes_are_well_formed(message_id: str) -> None:
    assert verify(sign(BODY, message_id=message_id)).id == message_id


@pytest.mark.parametrize(
    "message_id",
    ["m" * 129, "m" * 10_000, "msg 1", "msg.1", "msg_é", "msg_1\n", " msg_1", "msg_\u0661", "msg:1", "\udcff"],
)
def test_a_malformed_id(message_id: str) -> None:
    assert refusal(sign(BODY) | {"svix-id": message_id}) == "malformed_signature"


MALFORMED_TIMESTAMPS: Final = (
    *("1e9", "-1", f"+{NOW_S}", f" {NOW_S}", f"{NOW_S}\n", f"{NOW_S}.0", "0x1", "nan", "1_0", "now"),
    *("\u0661\u0667", "\u00b2", "0" * 13, "9" * 5000),
)


@pytest.mark.parametrize("timestamp", MALFORMED_TIMESTAMPS, ids=ascii)
def test_a_malformed_timestamp(timestamp: str) -> None:
    assert refusal(sign(BODY) | {"svix-timestamp": timestamp}) == "malformed_signature"


@pytest.mark.parametrize("timestamp", ["0", "000000000001", "9" * 12])
def test_a_timestamp_of_1_to_12_digits_is_well_formed(timestamp: str) -> None:
    assert refusal(sign(BODY) | {"svix-timestamp": timestamp}) == "timestamp_out_of_tolerance"


WITHOUT_V1_ENTRY: Final = (
    *("v1", "v1,", "v1,%", f"v1,{'A' * 44}", f"v1,{'A' * 42}=", f"v1,{'A' * 42}==", f"v1,{'A' * 43}"),
    *(f"v1,{'_' * 43}=", f"v1, {'A' * 43}=", f"V1,{'A' * 43}=", f"v1a,{'A' * 43}=", f"v2,{'A' * 43}="),
    *(f"v1;{'A' * 43}=", "A" * 43 + "=", f"v1,{'A' * 43}=,x", f"v1,{'é' * 43}=", " ", ",", "\udcff"),
)


@pytest.mark.parametrize("signature", WITHOUT_V1_ENTRY, ids=ascii)
def test_a_signature_header_without_a_well_formed_v1_entry(signature: str) -> None:
    assert refusal(sign(BODY) | {"svix-signature": signature}) == "malformed_signature"


@pytest.mark.parametrize("off", [-300, -299.5, 0, 299.5, 300])
def test_five_minutes_off_are_tolerated(off: float) -> None:
    assert verify(sign(BODY), now=NOW_S + off).sent_at == NOW_S


@pytest.mark.parametrize("off", [-86_400, -301, -300.01, 300.01, 301, 86_400])
def test_more_than_five_minutes_off_are_not(off: float) -> None:
    assert refusal(sign(BODY), now=NOW_S + off) == "timestamp_out_of_tolerance"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param(sign(BODY), BODY + b" ", id="body"),
        pytest.param(sign(BODY) | {"svix-id": "msg_other"}, BODY, id="id"),
        pytest.param(sign(BODY) | {"svix-timestamp": str(NOW_S + 1)}, BODY, id="timestamp"),
        pytest.param(sign(BODY) | {"svix-signature": f"v1,{'A' * 43}="}, BODY, id="signature"),
    ],
)
def test_one_thing_changed_after_signing_is_invalid(headers: dict[str, str], body: bytes) -> None:
    assert refusal(headers, body) == "invalid_signature"


@pytest.mark.parametrize("body", [b"\xff", b'{"type":"\xed\xa0\x80"}', b"\xc0\x80", "{}".encode("utf-16")])
def test_a_body_that_is_not_utf8_is_invalid_however_it_is_signed(body: bytes) -> None:
    assert refusal(sign(body), body) == "invalid_signature"


OLD: Final = str(NOW_S - 301)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"id": "", "timestamp": "x", "signature": "x"}, "missing_signature"),
        ({"id": "not an id", "signature": ""}, "missing_signature"),
        ({"id": "not an id", "timestamp": OLD}, "malformed_signature"),
        ({"timestamp": OLD, "signature": "v1,x"}, "malformed_signature"),
        ({"timestamp": OLD, "signature": f"v1,{'A' * 43}="}, "timestamp_out_of_tolerance"),
        ({"signature": f"v1,{'A' * 43}="}, "invalid_signature"),
    ],
)
def test_what_is_wrong_first_is_answered(changes: dict[str, str], code: str) -> None:
    headers = sign(BODY) | {f"svix-{part}": value for part, value in changes.items()}
    assert refusal(headers) == code


def test_no_refusal_quotes_a_secret_a_signature_or_the_body() -> None:
    right = sign(BODY)
    quoted = (SECRET, SECRET.removeprefix("whsec_"), right["svix-signature"].removeprefix("v1,"), "session.")
    for headers in ({}, right | {"svix-id": "?"}, right | {"svix-timestamp": OLD}, right | {"svix-id": "m"}):
        with pytest.raises(SignatureError) as caught:
            verify(headers)
        assert str(caught.value)
        assert not [value for value in quoted if value in str(caught.value)]


def _header(part: str) -> st.SearchStrategy[str]:
    good = sign(BODY)[f"svix-{part}"]
    return st.one_of(
        st.just(good), st.text(), st.text("vV1a,= +/-_0123456789"), st.from_regex(r"v1,[A-Za-z0-9+/]{43}=")
    )


# The right id and timestamp with any body but the one that was signed: no chance to be right.
_HEADERS = st.fixed_dictionaries({}, optional={f"{f}-{p}": _header(p) for f in FAMILIES for p in PARTS})


@patient
@given(_HEADERS, st.binary().filter(lambda body: body != BODY), st.floats(0, 1e11) | st.just(float(NOW_S)))
@example({"svix-id": "m", "svix-timestamp": "9" * 12, "svix-signature": f"v1,{'A' * 43}="}, b"", 1e12 - 1)
def test_whatever_comes_in_the_refusal_is_of_one_family(headers: dict[str, str], body: bytes, now: float) -> None:
    assert refusal(headers, body, now=now) in CODES


@patient
@given(st.binary() | st.text().map(str.encode))
def test_a_signed_body_is_genuine_just_if_it_is_utf8(body: bytes) -> None:
    try:
        body.decode()
    except UnicodeDecodeError:
        assert refusal(sign(body), body) == "invalid_signature"
    else:
        assert verify(sign(body), body).body == body
