"""Compares what a client's driver tells with what a conformance scenario demands: clients/conformance/README.md."""

import contextlib
import json
import re
import time
from typing import Any, Final

from support.conformance_drivers import FOLDER, Update

_SHORT: Final = re.compile(r"(?:(snapshot|stale) )?(\w+)(?:/(\d+))?(?: (\w+))?")
"""An update in short: `sess_1/2`, `snapshot sess_1/2 ended`, `stale sess_1`."""
_TOLD_AT_LEAST: Final = {"outcome", "cursor", "revision", "previous_status", "event", "session", "partition"} | {
    *("is_snapshot", "is_live", "position", "json")
}


def message_with(values: dict[str, Any]) -> dict[str, Any]:
    """Return a message with values set by dotted path."""
    message = json.loads((FOLDER / "message.json").read_text())
    for path, value in values.items():
        *parents, last = path.split(".")
        target = message
        for name in parents:
            target = target[name]
        target[last] = value
    return dict(message)


def check_update(update: Update) -> None:
    """What holds of every update."""
    assert not _TOLD_AT_LEAST - update.keys(), f"it lacks {_TOLD_AT_LEAST - update.keys()}"
    message, session = json.loads(update["json"]), update["session"]
    for part in ("event", "session"):
        assert _is_in(update[part], message[part]), f"the {part} {update[part]} is not the message's: {message[part]}"
    for name in ("cursor", "revision", "previous_status"):
        assert update[name] == message[name], f"{name} is not the message's"
    assert update["position"] == (None if update["is_snapshot"] else update["cursor"])
    ends_at = session["expire_at"]
    assert update["is_live"] == (session["live"] and (ends_at is None or ends_at > time.time() * 1000)), "is_live"


def _is_in(part: Any, whole: Any) -> bool:
    """Compare; a client may leave out the keys that it does not know, and have some that the message left out."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(_is_in(value, whole[key]) for key, value in part.items() if key in whole)
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) == len(whole) and all(map(_is_in, part, whole))
    return bool(part == whole)


def match(expected: Any, got: Any) -> None:
    """Compare: an object may have more keys than are expected; keys may be dotted paths."""
    if isinstance(expected, str) and isinstance(got, dict):
        expected = lengthened(expected)
    if isinstance(expected, list) and isinstance(got, list):
        assert len(expected) == len(got), f"{list(map(shortened, got))} are not {len(expected)}"
        for number, (each, found) in enumerate(zip(expected, got, strict=True)):
            try:
                match(each, found)
            except AssertionError as error:
                raise AssertionError(f"number {number}: {error}; all: {list(map(shortened, got))}") from None
    elif isinstance(expected, dict) and isinstance(got, dict):
        for path, value in expected.items():
            found = got
            for name in path.split("."):
                if name == "message" and "json" in got:
                    found = json.loads(got["json"])
                else:
                    assert isinstance(found, dict), f"{path} in {shortened(got)}"
                    assert name in found, f"no {path} in {shortened(got)}"
                    found = found[name]
            match(value, found)
    else:
        # Not 1 for true.
        assert (type(expected), expected) == (type(got), got), f"{shortened(got)} is not {expected!r}"


def match_any_order(expected: list[Any], got: list[Update], *, are_snapshots: bool = False) -> None:
    """Compare with as many updates, whose order does not matter."""
    assert len(got) == len(expected), f"{list(map(shortened, got))} are not {len(expected)}"
    left = list(got)
    for each in expected:
        wanted = lengthened(each) if isinstance(each, str) else each
        wanted = wanted | {"is_snapshot": True} if are_snapshots else wanted
        for update in left:
            with contextlib.suppress(AssertionError):
                match(wanted, update)
                left.remove(update)
                break
        else:
            raise AssertionError(f"no {each} among {list(map(shortened, got))}")


def lengthened(short: str) -> dict[str, Any]:
    found = _SHORT.fullmatch(short)
    if found is None:
        raise ValueError(f"{short!r} is no update in short")
    kind, session, revision, status = found.groups()
    update: dict[str, Any] = {"session.id": session, "is_snapshot": kind == "snapshot"}
    update["outcome"] = "stale" if kind == "stale" else "applied"
    if revision is not None:
        update["revision"] = int(revision)
    if status is not None:
        update["session.status"] = status
    return update


def shortened(update: Any) -> Any:
    if not isinstance(update, dict) or not update.keys() >= {"session", "is_snapshot"}:
        return update
    kind = "snapshot " if update["is_snapshot"] else "stale " if update["outcome"] == "stale" else ""
    return f"{kind}{update['session']['id']}/{update['revision']} {update['session']['status']}"
