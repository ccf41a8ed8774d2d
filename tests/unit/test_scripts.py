"""The Lua scripts' arguments, by name."""

import re

import pytest

from service.store.scripts import APPLY_SESSION, KEEP_DEAD_LETTER, MARK_PARTITIONS, SCRIPTS, SETTLE_EXPIRY, Script


def test_a_command_has_the_scripts_keys_and_arguments_in_its_own_order() -> None:
    command = KEEP_DEAD_LETTER.command(
        confirm=0, max_dead_letters=10, dead_letter=b"{}", message_id="msg_1", dead_letters_key="{clerk}:dead-letters"
    )

    assert command[0] == "EVALSHA"
    assert re.fullmatch(r"[0-9a-f]{40}", command[1])
    assert command[2:] == (1, "{clerk}:dead-letters", "msg_1", b"{}", 10, 0)


def test_the_number_of_keys_is_that_of_the_names_that_come_from_keys() -> None:
    by_name = dict.fromkeys(APPLY_SESSION.names, "")

    assert APPLY_SESSION.command(**by_name)[2] == 7
    assert len(APPLY_SESSION.command(**by_name)) == 3 + 7 + 21


def test_a_missing_name_is_an_error_that_names_it() -> None:
    with pytest.raises(TypeError, match=r"settle_expiry\.lua: missing \['session_id'\], unknown \[\]"):
        SETTLE_EXPIRY.command(session_key="a", expiry_key="b")


def test_an_unknown_name_is_an_error_that_names_it() -> None:
    with pytest.raises(TypeError, match=r"missing \[\], unknown \['user_key'\]"):
        SETTLE_EXPIRY.command(session_key="a", expiry_key="b", session_id="c", user_key="d")


def test_a_misspelt_name_is_an_error_that_names_both() -> None:
    with pytest.raises(TypeError, match=r"missing \['session_id'\], unknown \['sesion_id'\]"):
        SETTLE_EXPIRY.command(session_key="a", expiry_key="b", sesion_id="c")


@pytest.mark.parametrize("script", [*SCRIPTS, MARK_PARTITIONS], ids=lambda script: script.name)
def test_a_script_uses_each_name_and_nothing_of_keys_and_argv_without_one(script: Script) -> None:
    code = re.sub(r"--.*", "", script.source.decode())
    opening, body = code.split("= unpack(ARGV)")

    assert "KEYS" not in body
    assert "ARGV" not in body
    assert opening.count("KEYS") == 1
    assert len(set(script.names)) == len(script.names)
    for name in script.names:
        assert re.search(rf"\b{name}\b", body), name
