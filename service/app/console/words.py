"""Times, spans and places in words: what the pages and the live feed say alike."""

import datetime
from typing import Any

from clerk_session_feed import lenient_json

_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def clock(unix_ms: int) -> str:
    """Return the time of day, as `09:17:25.123`, in UTC."""
    return _format(unix_ms, "%H:%M:%S.") + f"{unix_ms % 1000:03d}"


def moment(unix_ms: int, now_ms: float) -> str:
    """Return the time of day; of another day than now's, its day and time, as `11-28 09:17:25`. In UTC."""
    is_today = _format(unix_ms, "%Y-%m-%d") == _format(now_ms, "%Y-%m-%d")
    return clock(unix_ms) if is_today else _format(unix_ms, "%m-%d %H:%M:%S")


def utc(unix_ms: float) -> str:
    """Return a time as `2026-11-29 09:17:25 UTC`; one that Python can't show, as Unix milliseconds."""
    return _format(unix_ms, "%Y-%m-%d %H:%M:%S UTC")


def _format(unix_ms: float, how: str) -> str:
    try:
        return datetime.datetime.fromtimestamp(unix_ms / 1000, datetime.UTC).strftime(how)
    except (OverflowError, OSError, ValueError):
        return str(unix_ms)


def span(milliseconds: float) -> str:
    """Return a span of time in its two largest units: `6 d 23 h`, `3 min 5 s`, `0 s`."""
    left = max(0, int(milliseconds // 1000))
    parts: list[str] = []
    for size, unit in _UNITS:
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size} {unit}")
            left %= size
        elif parts:
            break
    return " ".join(parts[:2])


def place_of(activity: Any) -> str:
    """Return with what and where a session was last used: `Chrome 128 · Oslo, NO`; empty if that is not known."""
    if not isinstance(activity, dict):
        return ""
    browser, city, country = (str(activity.get(name) or "") for name in ("browser_name", "city", "country"))
    version = str(activity.get("browser_version") or "").partition(".")[0]
    device = str(activity.get("device_type") or "")
    with_what = f"{browser} {version}".strip() if browser else device
    return " · ".join(part for part in (with_what, ", ".join(filter(None, (city, country)))) if part)


def text_of(name: str, value: Any) -> str:
    """Return the value of a session's field for people; a time as one."""
    if value is None:
        return "null"
    if name.endswith("_at") and isinstance(value, int) and not isinstance(value, bool):
        return utc(value)
    return value if isinstance(value, str) else lenient_json.dumps(value)
