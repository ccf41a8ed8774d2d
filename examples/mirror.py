"""A worker that keeps a table of live sessions in SQLite; the statement that writes is PostgreSQL's, too.

    REDIS_URL=redis://… python mirror.py sessions.db NAME
    sqlite3 sessions.db "SELECT * FROM live_sessions"

It needs clerk-session-feed. Run as many as you like, each with a NAME of its own that stays the same after a
restart. Each update goes to one of them; if that one dies, to another.
"""

import contextlib
import signal
import sqlite3
import sys

from clerk_session_feed import ConfigurationError, FeedError, RedisError, SessionFeed, SessionUpdate

# Rows stay when their session ends: an older update that comes late must not bring the session back.
SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
  id TEXT PRIMARY KEY, user_id TEXT NOT NULL, status TEXT NOT NULL, live INTEGER NOT NULL, expire_at INTEGER,
  cursor_ms INTEGER NOT NULL, cursor_number INTEGER NOT NULL
) WITHOUT ROWID;
CREATE VIEW IF NOT EXISTS live_sessions AS
  SELECT id, user_id, expire_at FROM sessions
  WHERE live AND (expire_at IS NULL OR expire_at > strftime('%s', 'now') * 1000);
"""
# Between workers there is no order, and after a crash updates come again: the greater cursor wins. The
# revision can't decide: it begins again at 1 if Redis lost the session.
UPSERT = """
INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
  user_id = excluded.user_id, status = excluded.status, live = excluded.live, expire_at = excluded.expire_at,
  cursor_ms = excluded.cursor_ms, cursor_number = excluded.cursor_number
WHERE (excluded.cursor_ms, excluded.cursor_number) > (sessions.cursor_ms, sessions.cursor_number)
"""


def row(update: SessionUpdate) -> tuple[object, ...]:
    session = update.session
    cursor = map(int, update.cursor.split("-"))
    return session.id, session.user_id, session.status, session.live, session.expire_at, *cursor


def main(path: str, name: str) -> None:
    with SessionFeed.from_env() as feed, contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(SCHEMA)
        # The group begins with the state of every session, and does so again if it missed entries.
        for update in feed.consume("mirror", name, resync=True):
            with database:  # commits; the update is acknowledged after that, when the next one is asked for
                database.execute(UPSERT, row(update))


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit())  # an update that is not acknowledged comes again
    try:
        file, name = sys.argv[1:]
    except ValueError:
        sys.exit("It needs a file and a name: python mirror.py sessions.db NAME")
    try:
        main(file, name)
    except (ConfigurationError, FeedError, RedisError, sqlite3.Error) as error:
        sys.exit(str(error))
