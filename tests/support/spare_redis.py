"""A redis-server that tests may do anything with, and each finds as new."""

import contextlib
from typing import Any

import redis

from service.dev.embedded import EmbeddedRedis
from support.redis_clients import client_of
from support.redis_servers import redis_server


class SpareRedis:
    """The server of one test after the other: to start one takes five times as long as to undo what a test did."""

    def __init__(self, binary: str) -> None:
        self._binary = binary
        self._stack = contextlib.ExitStack()
        self._server: EmbeddedRedis | None = None
        self._configuration: dict[str, str] = {}

    def as_new(self) -> EmbeddedRedis:
        """Return the server as it was when it started, or another one if this can't be undone: it is frozen, say."""
        if self._server is None or not self._renew(self._server):
            self.close()
            self._server = self._stack.enter_context(redis_server(self._binary))
            with client_of(self._server.url) as client:
                self._configuration = client.config_get("*")
        return self._server

    def _renew(self, server: EmbeddedRedis) -> bool:
        assert server.process is not None
        if server.process.poll() is None:
            # With a password, or replicas, it is another server than it was.
            with contextlib.suppress(redis.RedisError), client_of(server.url, socket_timeout=1) as client:
                if client.role()[::2] == ["master", []]:
                    self._undo(client)
                    return True
        return False

    def _undo(self, client: Any) -> None:
        for name, value in client.config_get("*").items():
            if value != self._configuration[name]:
                client.config_set(name, self._configuration[name])
        client.execute_command("ACL", "SETUSER", "default", "reset", "on", "nopass", "~*", "&*", "+@all")
        if others := [name for name in client.acl_users() if name != "default"]:
            client.acl_deluser(*others)
        for kind in ("normal", "pubsub"):
            client.client_kill_filter(_type=kind, skipme=True)
        client.client_unpause()
        client.flushall()
        client.script_flush()
        client.acl_log_reset()
        client.config_resetstat()

    def close(self) -> None:
        self._stack.close()
        self._server = None
